"""Load on a stand-in server: every request is sent once and counted once, and what goes wrong is told by kind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.serve_stub import ServeStub
from cli.commands import tandem
from tandem.bench.http_stream import Server, ServerFailure
from tandem.bench.serve import Load, Seen, first_model, run_load, steady, summary
from tandem.bench.trace import TraceRequest
from tandem.errors import BenchError


@pytest.fixture(params=[True, False], ids=["chunked", "plain"])
def stub(request: pytest.FixtureRequest) -> Iterator[ServeStub]:
    server = ServeStub(chunked=request.param)
    yield server
    server.close()


def run(stub: ServeStub, load: Load, **options: Any) -> dict[str, Any]:
    return asyncio.run(run_load(Server.at(stub.url + "/v1/", "secret"), options.get("api", "chat"), "stub-1", load))


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_a_closed_loop_sends_each_request_once(stub: ServeStub, api: str) -> None:
    seen = run(stub, Load(steady(20, 12, 5, None), concurrency=3, ignore_eos=True), api=api)
    assert (seen["requests"], seen["completed"], seen["failures"]) == (20, 20, {})
    assert (seen["prompt_tokens"], seen["new_tokens"], seen["tokens_counted_by"]) == (20 * 11, 20 * 8, "server")
    assert stub.most <= 3 and 1 <= seen["most_at_once"] <= 3
    assert (seen["ttft_s"]["n"], seen["itl_s"]["n"], seen["request_s"]["n"]) == (20, 60, 20)
    assert sorted(body["seed"] for body in stub.bodies) == list(range(20))
    [body] = [body for body in stub.bodies if body["seed"] == 7]
    assert (body["model"], body["max_tokens"], body["stream"], body["ignore_eos"]) == ("stub-1", 5, True, True)
    assert set(stub.keys) == {"Bearer secret"}


def test_failures_are_told_by_kind(stub: ServeStub) -> None:
    stub.behave = {1: "429", 2: "break", 3: "garbage", 4: "error", 5: "hang", 7: "429"}
    seen = run(stub, Load(steady(9, 5, 5, None), concurrency=9, timeout_s=1.0))
    expected = {"HTTP 429": 2, "broken off": 1, "not OpenAI's events": 1, "error in the stream": 1, "timeout": 1}
    assert seen["failures"] == expected
    assert seen["completed"] == 3
    assert "the queue is full" in seen["failure_examples"]["HTTP 429"]
    assert "the device was lost" in seen["failure_examples"]["error in the stream"]


def test_a_server_that_is_not_there() -> None:
    server = ServeStub()
    server.close()
    seen = run(server, Load(steady(2, 5, 5, None), concurrency=1))
    assert (seen["failures"], seen["completed"], seen["ttft_s"]) == ({"no connection": 2}, 0, None)
    with pytest.raises(BenchError, match="does not list its models"):
        asyncio.run(first_model(Server.at(server.url)))


def test_what_is_no_http_is_told() -> None:
    async def main() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"SSH-2.0-OpenSSH\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ServerFailure) as failure:
            async for _ in Server.at(f"http://127.0.0.1:{port}").stream("GET", "/"):
                pass
        assert failure.value.kind == "no HTTP"
        server.close()

    asyncio.run(main())


def test_arrivals_are_those_of_the_trace() -> None:
    stub = ServeStub(pieces=2)
    try:
        trace = [TraceRequest(at, 8, 4) for at in (0.0, 0.4, 0.8)]
        seen = run(stub, Load(trace, speed=4.0))
        assert seen["completed"] == 3
        assert seen["seconds"] >= 0.2
        assert all(late >= 0 for late in (seen["late_s"]["p50"], seen["late_s"]["max"]))
    finally:
        stub.close()


def test_the_times_of_requests_that_are_known() -> None:
    good = Seen(due=1.0, sent=1.5, ended=4.0, pieces=[2.0, 2.5, 4.0], prompt_tokens=10, new_tokens=6)
    uncounted = Seen(due=0.0, sent=0.0, ended=2.0, pieces=[1.0, 2.0])
    failed = Seen(due=0.0, sent=0.0, ended=1.0, pieces=[0.5], failure="HTTP 500", detail="why")
    told = summary([good, uncounted, failed], seconds=4.0, client_cpu_s=0.5)
    assert (told["new_tokens"], told["prompt_tokens"], told["tokens_counted_by"]) == (8, 10, "client")
    assert (told["new_tokens_per_s"], told["tokens_per_s"], told["requests_per_s"]) == (2.0, 4.5, 0.5)
    assert (told["ttft_s"]["mean"], told["ttft_s"]["max"]) == (1.0, 1.0)
    assert (told["itl_s"]["n"], told["itl_s"]["max"]) == (3, 1.5)
    assert (told["request_s"]["max"], told["late_s"]["max"]) == (3.0, 0.5)
    assert (told["most_at_once"], told["client_cpu_us_per_token"]) == (2, 62500.0)
    assert (told["failures"], told["failure_examples"]) == ({"HTTP 500": 1}, {"HTTP 500": "why"})


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", "http://host:x", ""])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(BenchError, match="is no address of a server"):
        Server.at(url)


def test_the_command_writes_what_it_saw(tmp_path: Path) -> None:
    stub = ServeStub()
    stub.behave = {2: "429"}
    result = tmp_path / "result.json"
    try:
        done = tandem("bench", "serve", "--url", stub.url, "--requests", 6, "--concurrency", 2, "--json", result)
        assert done.exit_code == 0, done.stderr
        assert "5 of 6 requests" in done.stdout and "failed: 1 x HTTP 429" in done.stdout
        told = json.loads(result.read_text())
        assert told["server"] == {"url": stub.url, "model": "stub-1", "api": "chat"}
        assert told["serve"]["completed"] == 5 and told["load"]["concurrency"] == 2
        for options, says in (
            (("--rate", 2, "--concurrency", 2), "give one of"),
            (("--rate", -1), "--rate -1 is not possible"),
        ):
            refused = tandem("bench", "serve", "--url", stub.url, *options)
            assert refused.exit_code == 2 and says in refused.stderr
    finally:
        stub.close()
