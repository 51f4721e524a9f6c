"""Replays a trace: requests arrive when the trace says, whether or not the engine keeps up, and each is watched.

TTFT is from a request's arrival to its first token, waiting in the queue included. ITL is each gap between two tokens
of one request. Prompts are random tokens, so the prefix cache finds nothing; answers have the trace's length.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tandem.bench.report import Distribution
from tandem.bench.trace import TraceRequest
from tandem.engine.engine import Engine
from tandem.engine.request import Request
from tandem.engine.sampling_params import SamplingParams
from tandem.errors import BenchError


@dataclass(slots=True)
class Replay:
    """What was seen, all times in seconds after the start.

    first, last: by request, its first and last token. token_times: of all tokens, ascending. gaps: between tokens of
    one request. step_*: by step, its end, its rows, and how many sequences ran and waited after it. native_s: the part
    of `seconds` that devices and sampler took; idle_s: in which there was nothing to do.
    """

    requests: Sequence[TraceRequest]
    speed: float
    seconds: float = 0.0
    idle_s: float = 0.0
    native_s: float = 0.0
    preemptions: int = 0
    first: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)
    token_times: array[float] = field(default_factory=lambda: array("d"))
    gaps: array[float] = field(default_factory=lambda: array("d"))
    step_ends: array[float] = field(default_factory=lambda: array("d"))
    step_rows: array[int] = field(default_factory=lambda: array("i"))
    step_running: array[int] = field(default_factory=lambda: array("i"))
    step_waiting: array[int] = field(default_factory=lambda: array("i"))

    def arrival(self, index: int) -> float:
        return self.requests[index].arrival_s / self.speed

    def add_token(self, index: int, now: float) -> None:
        if self.first[index]:
            self.gaps.append(now - self.last[index])
        else:
            self.first[index] = now
        self.last[index] = now
        self.token_times.append(now)

    def per_second(self) -> dict[str, list[float]]:
        """For each whole second: generated tokens, rows computed, and the most sequences that ran and waited in it."""
        seconds = max(1, int(self.seconds))
        edges = np.arange(seconds + 1)
        ends = np.asarray(self.step_ends)
        second = np.minimum(ends.astype(np.int64), seconds - 1)
        running, waiting = np.zeros(seconds), np.zeros(seconds)
        np.maximum.at(running, second, np.asarray(self.step_running))
        np.maximum.at(waiting, second, np.asarray(self.step_waiting))
        return {
            "new_tokens": np.histogram(np.asarray(self.token_times), edges)[0].astype(float).tolist(),
            "rows": np.histogram(ends, edges, weights=np.asarray(self.step_rows))[0].tolist(),
            "running": running.tolist(),
            "waiting": waiting.tolist(),
        }

    def to_json(self) -> dict[str, Any]:
        prompt_tokens = sum(request.prompt_tokens for request in self.requests)
        seconds = self.per_second()
        n = len(self.requests)
        return {
            "requests": n,
            "prompt_tokens": prompt_tokens,
            "new_tokens": len(self.token_times),
            "seconds": self.seconds,
            "steps": len(self.step_ends),
            "rows": sum(self.step_rows),
            "preemptions": self.preemptions,
            "overhead": 1 - self.native_s / (self.seconds - self.idle_s),
            "idle_share": self.idle_s / self.seconds,
            "new_tokens_per_s": len(self.token_times) / self.seconds,
            "tokens_per_s": (prompt_tokens + len(self.token_times)) / self.seconds,
            "requests_per_s": n / self.seconds,
            "ttft_s": Distribution.of([self.first[i] - self.arrival(i) for i in range(n)]).to_json(),
            "itl_s": Distribution.of(self.gaps).to_json() if self.gaps else None,
            "request_s": Distribution.of([self.last[i] - self.arrival(i) for i in range(n)]).to_json(),
            "new_tokens_in_a_second": Distribution.of(seconds["new_tokens"]).to_json(),
            "rows_in_a_second": Distribution.of(seconds["rows"]).to_json(),
            "per_second": seconds,
        }


def replay(
    engine: Engine,
    requests: Sequence[TraceRequest],
    *,
    speed: float = 1.0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Replay:
    """Runs an idle engine through the trace; `speed` divides the times between arrivals.

    progress: called with (requests finished, requests). Raises BenchError when a request fails.
    """
    seen = Replay(requests, speed, first=[0.0] * len(requests), last=[0.0] * len(requests))
    draw = np.random.default_rng(seed)
    counters = engine.counters
    native_before, preempted_before = counters.wait_seconds + counters.sample_seconds, counters.preemptions
    arrived = finished = 0
    start = time.perf_counter()
    while finished < len(requests):
        now = time.perf_counter() - start
        while arrived < len(requests) and seen.arrival(arrived) <= now:
            engine.submit(_request(arrived, requests[arrived], draw, engine.vocab))
            arrived += 1
        if engine.idle:
            time.sleep(max(0.0, seen.arrival(arrived) - now))
            seen.idle_s += time.perf_counter() - start - now
            continue
        rows = counters.rows
        deltas = engine.step()
        now = time.perf_counter() - start
        seen.step_ends.append(now)
        seen.step_rows.append(counters.rows - rows)
        seen.step_running.append(len(engine.scheduler.running))
        seen.step_waiting.append(engine.scheduler.waiting)
        for delta in deltas:
            if delta.error is not None:
                raise BenchError(f"a request of the trace failed: {delta.error}")
            for _ in delta.tokens:
                seen.add_token(int(delta.request_id), now)
            finished += delta.ended
        if progress is not None:
            progress(finished, len(requests))
    seen.seconds = time.perf_counter() - start
    seen.native_s = counters.wait_seconds + counters.sample_seconds - native_before
    seen.preemptions = counters.preemptions - preempted_before
    return seen


def _request(index: int, request: TraceRequest, draw: np.random.Generator, vocab: int) -> Request:
    params = SamplingParams(temperature=0.0, max_tokens=request.new_tokens, ignore_eos=True)
    return Request(id=str(index), prompt=draw.integers(vocab, size=request.prompt_tokens).tolist(), params=params)
