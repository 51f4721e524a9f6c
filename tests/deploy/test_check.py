"""A running service is checked by asking it; one that is not as it should be is named."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

import pytest
from services import bundled_plan, on_vulkan

from tandem.bench.ceilings import Ceilings
from tandem.deploy.check import Running, expected_throughput
from tandem.errors import DeployError


class Answers(BaseHTTPRequestHandler):
    """What a server says: `said` replaces an answer."""

    said: ClassVar[dict[str, tuple[int, Any]]] = {}
    keys: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        self._say({"/health": {"status": "ok"}, "/v1/models": {"data": [{"id": "stories"}]}}[self.path])

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._say({"usage": {"completion_tokens": body["max_tokens"]}})

    def _say(self, usual: Any) -> None:
        self.keys.append(self.headers["Authorization"])
        code, answer = self.said.get(self.path, (200, usual))
        self.send_response(code)
        self.end_headers()
        self.wfile.write(answer if isinstance(answer, bytes) else json.dumps(answer).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def running(server: HTTPServer, key: str | None = None) -> Running:
    return Running("0.0.0.0", server.server_port, key)


def test_a_good_one(server: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Answers, "keys", [])
    service = running(server, "secret")
    assert service.health() == "stories"
    assert service.complete("stories", 3)[0] == 3
    assert set(Answers.keys) == {"Bearer secret"}


def test_what_a_request_costs_in_any_case_is_no_throughput(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Running, "complete", lambda self, model, tokens: (tokens, 0.25 + tokens / 64))
    assert Running("127.0.0.1", 1).throughput("stories") == 64


@pytest.mark.parametrize(
    ("path", "answer", "message"),
    [
        ("/health", (503, {"status": "starting"}), "/health answers 503"),
        ("/health", (200, b"<html>"), "/health does not answer"),
        ("/health", (200, [1]), "something else than a JSON object"),
        ("/v1/models", (200, {"data": []}), "serves no model"),
        ("/v1/models", (401, {"error": "no key"}), "answers 401.*no key"),
    ],
)
def test_a_bad_one(
    server: HTTPServer, monkeypatch: pytest.MonkeyPatch, path: str, answer: tuple[int, Any], message: str
) -> None:
    monkeypatch.setattr(Answers, "said", {path: answer})
    with pytest.raises(DeployError, match=message):
        running(server).health()


def test_completions_that_tell_nothing(server: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Answers, "said", {"/v1/completions": (200, {"usage": {"completion_tokens": 5}})})
    with pytest.raises(DeployError, match="too few tokens"):
        running(server).throughput("stories")
    monkeypatch.setattr(Answers, "said", {"/v1/completions": (200, {"text": "x"})})
    with pytest.raises(DeployError, match="without saying how many tokens"):
        running(server).complete("stories", 5)


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(DeployError, match=r"does not answer: .*refused.*is the service running"):
        Running("127.0.0.1", port).health()


def test_what_to_expect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token reads the weights, 22.6 MiB of the bundled model, once."""
    measured = Ceilings(isa="scalar", threads=3, int8=0, bf16=None, f32=0, read=100 * bundled_plan().devices[0].weights)
    monkeypatch.setattr("tandem.deploy.check.measure_ceilings", lambda threads: measured if threads == 3 else None)
    assert expected_throughput(bundled_plan(), 3) == 100
    assert expected_throughput(on_vulkan(bundled_plan()), 1) is None
