"""Load on a server with OpenAI's API: what its users see, whoever made it.

Requests stream their answers. Times are the client's: the first token's from the moment at which the request was due,
so that a client or a server that cannot keep up shows; between tokens where a piece of an answer arrives.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tandem.bench.http_stream import Server, ServerFailure
from tandem.bench.report import Distribution
from tandem.bench.trace import TraceRequest
from tandem.errors import BenchError

Api = Literal["chat", "completions"]
PATHS: dict[Api, str] = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
# Common words, a token or two each with every tokenizer.
_WORDS = ("the", "old", "fox", "went", "down", "to", "the", "sea", "and", "saw", "a", "ship", "in", "the", "wind")


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent. requests: arrival times count for an open loop. concurrency: how many at once in a closed loop,
    where each begins as another one ends; None: each begins when it arrives. speed: of the trace's clock.
    ignore_eos: answers of exactly the length asked for, where the server knows that option.
    """

    requests: Sequence[TraceRequest]
    concurrency: int | None = None
    speed: float = 1.0
    ignore_eos: bool = False
    temperature: float = 1.0
    timeout_s: float = 600.0


@dataclass(slots=True)
class Seen:
    """One request as the client saw it, in seconds since the run began. pieces: of text, when each came."""

    due: float
    sent: float = 0.0
    ended: float = 0.0
    pieces: list[float] = field(default_factory=list)
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    failure: str | None = None
    detail: str = ""

    @property
    def tokens(self) -> int:
        """As the server counts them; pieces of text where it does not say."""
        return len(self.pieces) if self.new_tokens is None else self.new_tokens


def words(count: int, number: int) -> str:
    """A prompt of about `count` tokens. They differ from their first word on, so that no cache has them."""
    return " ".join([f"{number}:", *(_WORDS[(number + i) % len(_WORDS)] for i in range(max(1, count - 2)))])


async def first_model(server: Server) -> str:
    """The first model that a server lists. Raises BenchError."""
    try:
        body = b"".join([line async for line in server.stream("GET", "/v1/models")])
        model = json.loads(body)["data"][0]["id"]
    except ServerFailure as failure:
        raise BenchError(
            f"the server does not list its models ({failure.kind}: {failure!s:.200}); is it one?"
        ) from None
    except (ValueError, LookupError, TypeError):
        raise BenchError("the server's list of models is not OpenAI's; name one with --model") from None
    return str(model)


async def run_load(
    server: Server, api: Api, model: str, load: Load, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Sends the load and tells what was seen: see `summary`."""
    seen = [Seen(request.arrival_s / load.speed) for request in load.requests]
    done = 0
    start, cpu = time.perf_counter(), time.process_time()

    def now() -> float:
        return time.perf_counter() - start

    async def one(index: int) -> None:
        nonlocal done
        await _ask(server, PATHS[api], _body(api, model, load, index), seen[index], now, load.timeout_s)
        done += 1
        if progress is not None:
            progress(done, len(seen))

    async def worker(indices: list[int]) -> None:
        while indices:
            index = indices.pop()
            seen[index].due = now()
            await one(index)

    async def arrive(index: int) -> None:
        await asyncio.sleep(max(0.0, seen[index].due - now()))
        await one(index)

    if load.concurrency is not None:
        waiting = list(reversed(range(len(seen))))
        await asyncio.gather(*(worker(waiting) for _ in range(min(load.concurrency, len(seen)))))
    else:
        await asyncio.gather(*(arrive(index) for index in range(len(seen))))
    return summary(seen, now(), time.process_time() - cpu)


def _body(api: Api, model: str, load: Load, index: int) -> bytes:
    request = load.requests[index]
    text = words(request.prompt_tokens, index)
    prompt = {"messages": [{"role": "user", "content": text}]} if api == "chat" else {"prompt": text}
    more = {"ignore_eos": True} if load.ignore_eos else {}
    return json.dumps(
        {
            "model": model, **prompt, "max_tokens": request.new_tokens, "temperature": load.temperature, "seed": index,
            "stream": True, "stream_options": {"include_usage": True}, **more,
        }
    ).encode()  # fmt: skip


async def _ask(server: Server, path: str, body: bytes, seen: Seen, now: Callable[[], float], timeout_s: float) -> None:
    seen.sent = now()
    try:
        async with asyncio.timeout(timeout_s):
            await _listen(server, path, body, seen, now)
    except ServerFailure as failure:
        seen.failure, seen.detail = failure.kind, str(failure)
    except TimeoutError:
        seen.failure = "timeout"
    seen.ended = now()


async def _listen(server: Server, path: str, body: bytes, seen: Seen, now: Callable[[], float]) -> None:
    """Reads a stream of events to its end. Raises ServerFailure for one that has none, or tells of an error."""
    finished = False
    async for line in server.stream("POST", path, body):
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            finished = True
            continue
        try:
            event = json.loads(data)
            if "error" in event:
                raise ServerFailure("error in the stream", str(event["error"])[:500])
            usage, choices = event.get("usage"), event.get("choices")
            if choices:
                if _text(choices[0]):
                    seen.pieces.append(now())
                finished = finished or choices[0].get("finish_reason") is not None
            if usage:
                seen.prompt_tokens, seen.new_tokens = usage["prompt_tokens"], usage["completion_tokens"]
        except (ValueError, LookupError, TypeError, AttributeError):
            raise ServerFailure("not OpenAI's events", data[:200].decode(errors="replace")) from None
    if not finished:
        raise ServerFailure("broken off", "the stream ended without an end")


def _text(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta", choice)
    return bool(delta.get("content") or delta.get("text") or delta.get("reasoning_content") or delta.get("tool_calls"))


def summary(seen: Sequence[Seen], seconds: float, client_cpu_s: float) -> dict[str, Any]:
    """ttft_s: from when a request was due to its first piece. itl_s: between pieces. request_s: from due to end.
    late_s: by how much the client sent after a request was due. client_cpu_s: of this process.
    Distributions are of requests that ended well, None where there are none; `failures` counts the others by kind,
    with an example of each.
    """
    good = [each for each in seen if each.failure is None]
    new, prompt = sum(each.tokens for each in good), sum(each.prompt_tokens or 0 for each in good)
    edges = sorted([(each.sent, 1) for each in seen] + [(each.ended, -1) for each in seen])
    running = peak = 0
    for _, change in edges:
        running += change
        peak = max(peak, running)
    gaps = [b - a for each in good for a, b in zip(each.pieces, each.pieces[1:], strict=False)]
    return {
        "requests": len(seen),
        "completed": len(good),
        "failures": dict(Counter(each.failure for each in seen if each.failure is not None)),
        "failure_examples": {each.failure: each.detail for each in reversed(seen) if each.failure is not None},
        "seconds": seconds,
        "most_at_once": peak,
        "prompt_tokens": prompt,
        "new_tokens": new,
        "tokens_counted_by": "server" if all(each.new_tokens is not None for each in good) else "client",
        "new_tokens_per_s": new / seconds,
        "tokens_per_s": (new + prompt) / seconds,
        "requests_per_s": len(good) / seconds,
        "ttft_s": _spread([each.pieces[0] - each.due for each in good if each.pieces]),
        "itl_s": _spread(gaps),
        "request_s": _spread([each.ended - each.due for each in good]),
        "late_s": _spread([each.sent - each.due for each in seen]),
        "client_cpu_s": client_cpu_s,
        "client_cpu_us_per_token": 1e6 * client_cpu_s / new if new else None,
    }


def _spread(values: list[float]) -> dict[str, Any] | None:
    return Distribution.of(values).to_json() if values else None


def steady(requests: int, prompt_tokens: int, new_tokens: int, rate: float | None) -> list[TraceRequest]:
    """Equal requests; rate: so many arrive in a second, at equal distances; None: all at once."""
    each = 0.0 if rate is None else 1 / rate
    return [TraceRequest(number * each, prompt_tokens, new_tokens) for number in range(requests)]
