"""Bad input: OpenAI's error object, the right status, never a 5xx."""

from __future__ import annotations

import json
import time

import pytest
from served import Server

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        (CHAT, b"{", 400, None),
        (CHAT, b"\xff\xfe", 400, None),
        (CHAT, b'{"messages":[{"content":' + b"[" * 100_000, 400, None),
        (CHAT, {}, 422, None),
        (CHAT, {"messages": []}, 422, "messages"),
        (CHAT, {"messages": HI, "n": "two"}, 422, "n"),
        (CHAT, {"messages": HI, "temperature": -1}, 422, "temperature"),
        (CHAT, {"messages": HI, "tempreature": 1}, 422, None),
        (CHAT, {"messages": HI, "model": "gpt-4"}, 404, "model"),
        (CHAT, {"messages": HI, "n": 100}, 400, None),
        (CHAT, {"messages": [{"content": "no role"}]}, 400, "messages"),
        (CHAT, {"messages": HI, "logit_bias": {"dog": 1}}, 400, "logit_bias"),
        (CHAT, {"messages": HI, "logit_bias": {"99999999": 1}}, 400, None),
        (CHAT, {"messages": HI, "chat_template_kwargs": {"template": "x"}}, 400, "chat_template_kwargs"),
        (CHAT, {"messages": [{"role": "user", "content": "\ud800"}]}, 400, None),
        ("/v1/completions", {"prompt": ""}, 400, None),
        ("/v1/completions", {"prompt": [1, "a"]}, 400, "prompt"),
        ("/v1/completions", {"prompt": [[]]}, 400, None),
        ("/v1/completions", {"prompt": [2**31 - 1]}, 400, None),
        ("/v1/completions", {"prompt": [5] * 600}, 400, None),
        ("/v1/completions", {"prompt": "word " * 300_000}, 400, "prompt"),
        ("/v1/completions", {"prompt": "a", "min_tokens": 9, "max_tokens": 3}, 400, None),
        ("/v1/completions", {"prompt": "a", "response_format": {"type": "lark", "lark": "start: nothing"}}, 400, None),
        ("/tokenize", {}, 400, "prompt"),
        ("/detokenize", {"tokens": [-1]}, 422, "tokens[0]"),
    ],
)
def test_bad_bodies(server: Server, path: str, body: object, status: int, param: str | None) -> None:
    got, answer = server.post(path, body)
    assert got == status, answer
    error = answer["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"] and "\n" not in error["message"]
    assert error["param"] == param


def test_routes_methods_and_types(server: Server) -> None:
    for method, path, headers, status in (
        ("GET", "/v2/nothing", {}, 404),
        ("GET", "/v1/models/nothing", {}, 404),
        ("GET", CHAT, {}, 405),
        ("DELETE", "/v1/models", {}, 405),
        ("POST", CHAT, {"Content-Type": "text/plain"}, 415),
    ):
        got, answer, _ = server.request(method, path, {"messages": HI} if method == "POST" else None, headers)
        assert got == status, answer
        assert set(answer["error"]) == {"message", "type", "param", "code"}


def test_body_limit(server: Server) -> None:
    assert server.post(CHAT, b" " * (9 << 20))[0] == 413
    connection = server.connect()
    connection.putrequest("POST", CHAT)
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    try:
        for _ in range(9):
            connection.send(b"100000\r\n" + b" " * (1 << 20) + b"\r\n")
        connection.send(b"0\r\n\r\n")
    except BrokenPipeError:
        pass  # it has heard enough
    assert connection.getresponse().status == 413


def test_context_is_named(server: Server) -> None:
    _, answer = server.post("/v1/completions", {"prompt": [5] * 600})
    assert answer["error"]["code"] == "context_length_exceeded"
    assert "512" in answer["error"]["message"]


def test_request_ids(server: Server) -> None:
    _, _, headers = server.request("GET", "/health", headers={"x-request-id": "mine-1"})
    assert headers["x-request-id"] == "mine-1"
    _, _, headers = server.request("GET", "/health", headers={"x-request-id": "bad id\t"})
    assert headers["x-request-id"] not in ("", "bad id\t")


def test_other_names_are_refused(server: Server) -> None:
    """A web page that has pointed its own name at this machine."""
    assert server.get("/v1/models", Host="evil.example")[0] == 403
    assert server.get("/v1/models", Host="localhost:1")[0] == 200
    assert server.get("/v1/models", Host="[::1]:1")[0] == 200


def test_log_lines_are_json(server: Server) -> None:
    server.post("/v1/completions", {"prompt": "A secret tale", "max_tokens": 2}, **{"x-request-id": "for-the-log"})
    # The line is written when the answer is out.
    deadline = time.monotonic() + 10
    while not (found := [line for line in list(server.log) if "for-the-log" in line]) and time.monotonic() < deadline:
        time.sleep(0.01)
    (line,) = [json.loads(line) for line in found]
    assert line["status"] == 200 and line["completion_tokens"] == 2 and line["model"] == "tandem-stories-22m"
    assert not any("secret" in line for line in server.log)
