"""Load, clients that leave, engines that die, servers that are told to end."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import Server

pytestmark = pytest.mark.server

LONG = {"prompt": "Once upon a time", "max_tokens": 400, "ignore_eos": True}


@pytest.fixture
def fresh() -> Iterator[Server]:
    """A server of one's own: two sequences at once, two in the queue."""
    running = Server("--context", "512", "--max-sequences", "2", "--max-queue", "2", "--drain-timeout", "20")
    try:
        running.wait_ready()
        yield running
    finally:
        running.stop()


def begin(server: Server, body: dict[str, object]) -> socket.socket:
    """A stream whose first event has come; the connection is all there is of it."""
    connection = socket.create_connection((server.host, server.port), timeout=30)
    data = json.dumps({**body, "stream": True}).encode()
    connection.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(data), data)
    )
    received = b""
    while b"data: " not in received:
        piece = connection.recv(65536)
        assert piece, received
        received += piece
    return connection


def rest(connection: socket.socket) -> str:
    received = b""
    while b"[DONE]" not in received and (piece := connection.recv(1 << 16)):
        received += piece
    connection.close()
    return received.decode()


def wait_until_idle(server: Server, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while server.metric("tandem_live_samples") or server.metric("tandem_kv_pages", state="used"):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_client_that_leaves_frees_its_pages(fresh: Server) -> None:
    begin(fresh, {**LONG, "n": 2}).close()
    wait_until_idle(fresh)
    assert fresh.metric("tandem_requests_total", outcome="cancelled") == 1
    assert fresh.metric("tandem_generated_tokens_total") < 800


def test_a_full_queue_is_said(fresh: Server) -> None:
    streams = [begin(fresh, LONG) for _ in range(2)]
    waiting = begin_without_answer(fresh, LONG, 2)
    status, answer, headers = fresh.request("POST", "/v1/completions", LONG)
    assert status == 429 and answer["error"]["code"] == "queue_full" and int(headers["Retry-After"]) >= 1
    for connection in (*streams, *waiting):
        connection.close()
    wait_until_idle(fresh)
    assert fresh.post("/v1/completions", {"prompt": "a", "max_tokens": 1})[0] == 200


def begin_without_answer(server: Server, body: dict[str, object], count: int) -> list[socket.socket]:
    """Requests that wait in the queue."""
    connections = []
    for _ in range(count):
        connection = socket.create_connection((server.host, server.port), timeout=30)
        data = json.dumps(body).encode()
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(data), data)
        )
        connections.append(connection)
    deadline = time.monotonic() + 10
    while server.metric("tandem_live_samples") < 2 + count:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return connections


def test_an_engine_that_dies_is_started_again(fresh: Server) -> None:
    stream = begin(fresh, LONG)
    os.kill(fresh.engine, signal.SIGKILL)
    text = rest(stream)
    error, done = text.strip().split("data: ")[-2:]
    assert json.loads(error)["error"]["code"] == "engine_died" and "SIGKILL" in error
    assert "[DONE]" in done
    # The next request waits for the new engine.
    status, answer = fresh.post("/v1/completions", {"prompt": "Once", "max_tokens": 3, "temperature": 0})
    assert status == 200 and answer["usage"]["completion_tokens"] == 3
    assert fresh.metric("tandem_engine_restarts_total") == 1
    fresh.wait_ready()


def test_running_requests_finish_when_told_to_end(fresh: Server) -> None:
    stream = begin(fresh, {**LONG, "max_tokens": 100})
    fresh.process.terminate()
    text = rest(stream)
    assert '"finish_reason":"length"' in text and text.count("[DONE]") == 1
    assert fresh.process.wait(30) == 0


def test_the_deadline_ends_what_still_runs() -> None:
    server = Server("--max-sequences", "2", "--drain-timeout", "0")
    server.wait_ready()
    child = server.engine
    stream = begin(server, {**LONG, "max_tokens": 900})
    server.process.terminate()
    text = rest(stream)
    assert '"code":"shutting_down"' in text and text.count("[DONE]") == 1
    assert server.process.wait(30) == 0
    assert not Path(f"/proc/{child}").exists()


def test_a_request_has_a_time_limit() -> None:
    server = Server("--request-timeout", "1")
    try:
        server.wait_ready()
        status, answer = server.post("/v1/completions", {**LONG, "max_tokens": 900, "n": 16})
        assert status == 504 and answer["error"]["code"] == "timeout"
        wait_until_idle(server)
        assert server.metric("tandem_requests_total", outcome="timeout") == 1
    finally:
        server.stop()


def test_keys() -> None:
    server = Server(env={"TANDEM_API_KEY": "sesame"})
    try:
        assert server.get("/health")[0] == 200
        for headers in ({}, {"Authorization": "Bearer nothing"}, {"Authorization": "sesame"}):
            status, answer = server.get("/v1/models", **headers)
            assert status == 401 and answer["error"]["code"] == "invalid_api_key"
        assert server.get("/v1/models", Authorization="Bearer sesame")[0] == 200
        assert server.get("/v1/models", Authorization="Bearer sesame", Host="any.example")[0] == 200
    finally:
        server.stop()
    assert not any("sesame" in line for line in server.log)
