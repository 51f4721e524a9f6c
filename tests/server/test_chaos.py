"""Many streams, clients that leave, bodies that are broken, engines that are killed, all at once.

Every accepted request ends exactly once, those that end well have the tokens that they have alone; afterwards no page
is used and memory is where it was. `pytest -m server --chaos-seconds 300` is the long form.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections import Counter
from pathlib import Path

import pytest
from msgspec.structs import replace
from served import Server

from tandem.llm import LLM

pytestmark = pytest.mark.server

CLIENTS = 256
PROMPTS = ["Once upon a time", "The sea was", "A little dog", "In the forest", "She said", "Long ago a king"]
BROKEN = [b"{", b"[]", b'{"prompt": 3}', b'{"prompt": "a", "n": 0}', b"\xff"]
CONTEXT = 256


def jobs() -> list[dict[str, object]]:
    """Short and long answers, greedy and sampled."""
    return [
        {"prompt": PROMPTS[i % 6], "max_tokens": 4 + 7 * (i % 8), "temperature": 0.9 * (i % 3), "seed": i}
        for i in range(24)
    ]


def alone(job: dict[str, object], llm: LLM) -> str:
    given = {name: value for name, value in job.items() if name != "prompt"}
    params = replace(llm.get_default_sampling_params(), **given)
    return llm.generate(str(job["prompt"]), params)[0].outputs[0].text


class Chaos:
    def __init__(self, server: Server, expected: list[tuple[dict[str, object], str]], seconds: float) -> None:
        self.server = server
        self.expected = expected
        self.seconds = seconds
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []

    async def run(self) -> list[int]:
        """Memory of the server in bytes, some times a second, from when all clients were there."""
        self.until = asyncio.get_running_loop().time() + self.seconds
        clients = [asyncio.create_task(self.client(random.Random(number))) for number in range(CLIENTS)]
        killer = asyncio.create_task(self.kill())
        sizes = []
        while not all(client.done() for client in clients):
            await asyncio.sleep(0.25)
            sizes.append(resident(self.server.process.pid))
        await asyncio.gather(*clients)
        await killer
        return sizes

    async def kill(self) -> None:
        pause = max(4.0, self.seconds / 10)
        while asyncio.get_running_loop().time() + pause < self.until:
            await asyncio.sleep(pause)
            try:
                os.kill(self.server.engine, signal.SIGKILL)
                self.seen["kill"] += 1
            except ValueError:
                pass  # it is being started again

    async def client(self, dice: random.Random) -> None:
        while asyncio.get_running_loop().time() < self.until:
            reader, writer = await asyncio.open_connection(self.server.host, self.server.port)
            try:
                async with asyncio.timeout(60):
                    kind = await self.request(dice, reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError, TimeoutError) as error:
                kind = f"broken: {error!r}"
            finally:
                writer.close()
            self.seen[kind] += 1
            if kind in ("full", "engine died", "unavailable"):
                await asyncio.sleep(dice.random() / 2)

    async def request(self, dice: random.Random, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        job, text = dice.choice(self.expected)
        malformed = dice.random() < 0.05
        leave_after = dice.randrange(1, 8) if dice.random() < 0.1 else None
        body = dice.choice(BROKEN) if malformed else json.dumps({**job, "stream": True}).encode()
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        status = int((await reader.readline()).split()[1])
        if malformed:
            assert status in (400, 422), (status, body)
            return "malformed"
        if status != 200:
            assert status in (429, 503), status
            return "full" if status == 429 else "unavailable"
        got, done, events = "", 0, 0
        while done == 0:
            line = await reader.readline()
            if not line:
                raise ConnectionError("the stream ended without [DONE]")
            if not line.startswith(b"data: "):
                continue
            if line.strip() == b"data: [DONE]":
                done += 1
                continue
            event = json.loads(line[6:])
            if "error" in event:
                assert event["error"]["code"] == "engine_died", event
                assert (await reader.readuntil(b"[DONE]")).count(b"data:") == 1
                return "engine died"
            got += event["choices"][0]["text"]
            events += 1
            if events == leave_after:
                return "left"
        rest = await reader.readuntil(b"0\r\n\r\n")
        assert b"data:" not in rest
        if got != text:
            self.wrong.append(f"{job}: {got!r} instead of {text!r}")
        return "finished"


def resident(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise AssertionError


def test_chaos(pytestconfig: pytest.Config) -> None:
    seconds = float(pytestconfig.getoption("--chaos-seconds"))
    with LLM(context=CONTEXT) as llm:
        expected = [(job, alone(job, llm)) for job in jobs()]
    server = Server(
        "--context", str(CONTEXT), "--max-sequences", "64", "--rows", "128", "--max-queue", "160",
        "--log-level", "error",
    )  # fmt: skip
    try:
        server.wait_ready()
        chaos = Chaos(server, expected, seconds)
        sizes = asyncio.run(chaos.run())
        print(dict(chaos.seen))
        assert chaos.wrong == []
        assert not [kind for kind in chaos.seen if kind.startswith("broken")], chaos.seen
        assert all(chaos.seen[kind] for kind in ("finished", "left", "malformed", "kill")), chaos.seen
        server.wait_ready()
        # A last request, for the state after everything.
        assert server.post("/v1/completions", {"prompt": "a", "max_tokens": 1})[0] == 200
        assert server.metric("tandem_live_samples") == 0
        assert server.metric("tandem_kv_pages", state="used") == 0
        assert server.metric("tandem_requests_total", outcome="finished") >= chaos.seen["finished"]
        accepted = sum(chaos.seen[kind] for kind in ("finished", "left", "engine died"))
        ended = sum(
            server.metric("tandem_requests_total", outcome=kind) for kind in ("finished", "cancelled", "failed")
        )
        refused_late = chaos.seen["unavailable"]
        assert accepted + 1 <= ended <= accepted + 1 + refused_late
        # Flat: the last quarter against the second.
        quarter = len(sizes) // 4
        early, late = max(sizes[quarter : 2 * quarter]), max(sizes[-quarter:])
        print(f"server: {early / 2**20:.1f} MiB, then {late / 2**20:.1f} MiB")
        assert late < early * 1.02 + (2 << 20)
    finally:
        server.stop()
