"""Prefill, decode and mixed throughput of an engine, for each batch size at each context depth.

Depth is how many positions a sequence has before the measured part begins. They are computed for real: each of the
concurrent sequences has a beginning of its own, which the prefix cache keeps between measurements.

prefill  `batch` prompts of `prompt_tokens` new tokens each, submitted at once, until each has its first token
decode   `new_tokens` steps in which exactly `batch` sequences get one token each
mixed    `mixed_steps` full steps: `batch` sequences decode, and prompts that keep coming fill the rest of the rows

All rates are rows per second. Everything is measured once per round, and the order turns around every round.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any

import numpy as np

from tandem.bench.report import Summary
from tandem.bench.subject import Subject
from tandem.engine.build import EngineConfig
from tandem.engine.engine import Engine
from tandem.engine.request import Delta, Request
from tandem.engine.sampling_params import SamplingParams
from tandem.errors import BenchError
from tandem.memory.plan import PAGE_SIZE
from tandem.memory.prefix import extend_keys, first_live_page
from tandem.models.spec import ModelSpec
from tandem.pipeline.timing import PipelineTimes

KINDS = ("prefill", "decode", "mixed")
BATCHES = (1, 2, 4, 8, 9, 12, 16, 24, 32, 64)
GREEDY: Mapping[str, Any] = {"temperature": 0.0}
_WARM_STEPS = 2


@dataclass(frozen=True, slots=True)
class Workload:
    """What is measured. rows: the largest step, prefill chunk and mixed step; more than the largest batch."""

    kinds: tuple[str, ...] = KINDS
    batches: tuple[int, ...] = BATCHES
    depths: tuple[int, ...] = (0, 512)
    prompt_tokens: int = 128
    new_tokens: int = 32
    mixed_steps: int = 4
    rounds: int = 5
    rows: int = 256

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in KINDS:
                raise BenchError(f"there is no measurement {kind!r}; choose of {', '.join(KINDS)}")
        if self.rows <= max(self.batches):
            raise BenchError(
                f"a step of {self.rows} rows leaves none for prompts beside {max(self.batches)} sequences; "
                "give more rows or smaller batches"
            )

    @property
    def prompts_in_flight(self) -> int:
        """Prompts that a mixed step may need to be full, when all but one of the rows are theirs."""
        return -(-self.rows // self.prompt_tokens) + 1

    @property
    def context(self) -> int:
        """Whole pages for the longest sequence, and one page that admission keeps in reserve; in positions."""
        # Those that decode first go on while the last of their batch are still at their prompt's last page.
        start = 4 + max(self.batches) * PAGE_SIZE // self.rows
        steps = _WARM_STEPS + max(self.new_tokens, self.mixed_steps)
        longest = max(self.depths) + max(self.prompt_tokens, start + steps) + 2
        return (-(-longest // PAGE_SIZE) + 1) * PAGE_SIZE

    def engine_config(self, spec: ModelSpec, **engine: Any) -> EngineConfig:
        """An engine of just the size that this needs; `engine` are other fields of EngineConfig.

        Raises BenchError for sizes that go beyond the model's context.
        """
        if self.context > spec.context:
            raise BenchError(
                f"a depth of {max(self.depths):,} with prompts of {self.prompt_tokens:,} and answers of "
                f"{self.new_tokens:,} tokens needs a context of {self.context:,}, and {spec.name} was trained for "
                f"{spec.context:,}; choose smaller sizes"
            )
        sequences = max(self.batches) + self.prompts_in_flight
        return EngineConfig(
            **engine,
            context=self.context,
            max_sequences=sequences,
            full_sequences=sequences,
            rows=max(self.rows, sequences),
        )


@dataclass(frozen=True, slots=True)
class Span:
    """What the engine did while something was timed.

    seconds: of the wall clock; waited: of them, for the devices; sampling: in the sampler's native call.
    pipeline: what the lanes did. allocations: of 4 KiB and more by native code. bytes_copied: of KV pages.
    wasted_rows: of `rows`, those dropped; whole_rows: of logits, that a device had to bring.
    """

    seconds: float
    pipeline: PipelineTimes
    waited: float
    sampling: float
    steps: int
    rows: int
    sampled: int
    allocations: int
    bytes_copied: int
    wasted_rows: int
    whole_rows: int

    @property
    def overhead(self) -> float:
        """The share of time between native calls: Python that schedules, fills the batch, commits and hands on."""
        return 1 - (self.waited + self.sampling) / self.seconds


class ThroughputBench:
    """Drives an engine that serves nothing else. Every method leaves it idle.

    copied: only the first of the beginnings is computed; the pages of the others are copies of its pages, each in a
    place of its own. A step reads as much, and the positions of many deep sequences need not be computed.
    sampling: fields of SamplingParams, of every request.
    """

    def __init__(
        self, engine: Engine, workload: Workload, *, copied: bool = False, sampling: Mapping[str, Any] = GREEDY
    ) -> None:
        self._engine = engine
        self._sampling = sampling
        self._workload = workload
        self._copied = copied
        # Never the same twice: a prompt that the prefix cache knows would not be computed.
        self._draw = np.random.default_rng()
        self._ids = count()
        self._beginnings = [self._tokens(max(workload.depths) + 1) for _ in range(max(workload.batches))]

    def measure(self, kind: str, batch: int, depth: int, *, new_tokens: int | None = None) -> Span:
        """One measurement of a kind of KINDS. new_tokens: steps of a decode, None for the workload's."""
        self._compute_beginnings(batch, depth)
        if kind == "decode":
            return self._decode(batch, depth, new_tokens or self._workload.new_tokens)
        return {"prefill": self._prefill, "mixed": self._mixed}[kind](batch, depth)

    def warm_up(self) -> None:
        """Touches the memory that the measurements will use."""
        for kind in self._workload.kinds:
            self.measure(kind, max(self._workload.batches), max(self._workload.depths))

    def _prefill(self, batch: int, depth: int) -> Span:
        for beginning in self._beginnings[:batch]:
            self._submit(beginning[:depth] + self._tokens(self._workload.prompt_tokens), 1)
        with self._timed() as span:
            self._run_until_idle()
        # What a beginning has behind its last whole page is computed again.
        return self._checked(span(), batch * (self._workload.prompt_tokens + depth % PAGE_SIZE))

    def _decode(self, batch: int, depth: int, new_tokens: int) -> Span:
        with self._decoding(batch, depth), self._timed() as span:
            for _ in range(new_tokens):
                self._step()
        return self._checked(span(), batch * new_tokens)

    def _mixed(self, batch: int, depth: int) -> Span:
        prompts = self._workload.prompts_in_flight
        with self._decoding(batch, depth) as decoding:
            ids = [self._submit(self._tokens(self._workload.prompt_tokens), 1) for _ in range(prompts)]

            def step() -> None:
                for delta in self._step():
                    if delta.ended and delta.request_id not in decoding:
                        ids.append(self._submit(self._tokens(self._workload.prompt_tokens), 1))

            step()
            with self._timed() as span:
                for _ in range(self._workload.mixed_steps):
                    step()
            for request_id in ids:
                self._engine.cancel(request_id)
        return self._checked(span(), self._workload.mixed_steps * self._engine.limits.rows)

    @contextmanager
    def _decoding(self, batch: int, depth: int) -> Iterator[set[str]]:
        """`batch` sequences of `depth` positions that all decode; yields their ids, and ends them."""
        context = self._engine.limits.context
        ids = {self._submit(beginning[: depth + 1], context) for beginning in self._beginnings[:batch]}
        began: set[str] = set()
        while began != ids:
            began |= {delta.request_id for delta in self._step() if delta.tokens}
        for _ in range(_WARM_STEPS):
            self._step()
        yield ids
        for request_id in ids:
            self._engine.cancel(request_id)
        self._run_until_idle()

    def _compute_beginnings(self, batch: int, depth: int) -> None:
        """Sees that the first `depth` positions of each sequence are in the prefix cache, up to its last whole page."""
        computed = self._beginnings[: 1 if self._copied else batch]
        for beginning in computed:
            self._submit(beginning[: depth + 1], 1)
        self._run_until_idle()
        for beginning in self._beginnings[len(computed) : batch]:
            self._copy_pages(computed[0][:depth], beginning[:depth])

    def _copy_pages(self, computed: list[int], tokens: list[int]) -> None:
        """As if `tokens` had been computed: what goes on from there finds copies of the pages of `computed`."""
        cache = self._engine.cache
        keys: tuple[list[bytes], list[bytes]] = ([], [])
        for each, of in zip(keys, (computed, tokens), strict=True):
            extend_keys(each, array("i", of), cache.page_size)
        for group, pool, allocator in zip(cache.groups, cache.pools, cache.allocators, strict=True):
            first = first_live_page(len(tokens), group.window, cache.page_size)
            for known, new in zip(keys[0][first:], keys[1][first:], strict=True):
                source = allocator.find(known)
                if source is None:
                    raise BenchError("a computed page was given up before it was copied; is the KV pool too small?")
                if allocator.find(new) is None:
                    # A page that is taken must not be the one that is read.
                    allocator.retain(source)
                    page = allocator.take()
                    pool.copy_page(source, page)
                    allocator.publish(page, new)
                    allocator.release(page)
                    allocator.release(source)

    def _run_until_idle(self) -> None:
        while not self._engine.idle:
            self._step()

    def _step(self) -> list[Delta]:
        deltas = self._engine.step()
        for delta in deltas:
            if delta.error is not None:
                raise BenchError(f"the engine failed while it was measured: {delta.error}")
        return deltas

    def _submit(self, prompt: list[int], max_tokens: int) -> str:
        request_id = str(next(self._ids))
        params = SamplingParams(max_tokens=max_tokens, ignore_eos=True, **self._sampling)
        self._engine.submit(Request(id=request_id, prompt=prompt, params=params))
        return request_id

    def _tokens(self, n: int) -> list[int]:
        tokens: list[int] = self._draw.integers(self._engine.vocab, size=n).tolist()
        return tokens

    @contextmanager
    def _timed(self) -> Iterator[Callable[[], Span]]:
        """Yields a function that, after the block, tells what happened in it."""
        counters = self._engine.counters
        names = ["wait_seconds", "sample_seconds", "steps", "rows", "sampled", "allocations", "bytes_copied"]
        names += ["wasted_rows", "whole_rows"]
        before, lanes_before = [getattr(counters, name) for name in names], counters.pipeline.copy()
        spans: list[Span] = []
        start = time.perf_counter()
        yield lambda: spans[0]
        seconds = time.perf_counter() - start
        passed = (getattr(counters, name) - was for name, was in zip(names, before, strict=True))
        spans.append(Span(seconds, counters.pipeline.since(lanes_before), *passed))

    @staticmethod
    def _checked(span: Span, rows: int) -> Span:
        # A token that a device could not guess leaves its sequence out of a step.
        if span.rows != rows and not span.wasted_rows:
            raise BenchError(
                f"{span.rows} rows were computed where {rows} were to be measured; is the KV pool too small?"
            )
        return span


def run_throughput(
    subject: Subject, workload: Workload, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Measures everything in interleaved rounds; returns the result as JSON values.

    progress: called with (measurements done, measurements).
    """
    bench = ThroughputBench(subject.engine, workload)
    bench.warm_up()
    points = [
        (kind, batch, depth) for depth in workload.depths for batch in workload.batches for kind in workload.kinds
    ]
    spans: dict[tuple[str, int, int], list[Span]] = {point: [] for point in points}
    for turn in range(workload.rounds):
        for done, point in enumerate(reversed(points) if turn % 2 else points):
            spans[point].append(bench.measure(*point))
            if progress is not None:
                progress(turn * len(points) + done + 1, workload.rounds * len(points))
    return {
        **subject.to_json(),
        "workload": asdict(workload),
        "results": [
            {
                "depth": depth,
                "batch": batch,
                **{
                    kind: _summarize(spans[kind, batch, depth], _quantities(kind, batch, depth, subject, workload))
                    for kind in workload.kinds
                },
                "lanes": {kind: _lanes(spans[kind, batch, depth]) for kind in workload.kinds},
            }
            for depth in workload.depths
            for batch in workload.batches
        ],
    }


def _quantities(
    kind: str, batch: int, depth: int, subject: Subject, workload: Workload
) -> dict[str, Callable[[Span], float]]:
    quantities: dict[str, Callable[[Span], float]] = {
        "tokens_per_s": lambda span: span.rows / span.seconds,
        "step_s": lambda span: span.seconds / span.steps,
        "overhead": lambda span: span.overhead,
        "sampling": lambda span: span.sampling / span.seconds,
        "allocations_per_step": lambda span: span.allocations / span.steps,
        "bytes_copied_per_step": lambda span: span.bytes_copied / span.steps,
    }
    if kind == "decode":
        length = depth + _WARM_STEPS + workload.new_tokens / 2
        quantities["bandwidth_share"] = lambda span: subject.bandwidth_share(span.seconds / span.steps, batch, length)
    if kind == "mixed":
        quantities["decode_tokens_per_s"] = lambda span: batch * span.steps / span.seconds
    return quantities


def _summarize(spans: Sequence[Span], quantities: Mapping[str, Callable[[Span], float]]) -> dict[str, Any]:
    return {name: Summary.of([of(span) for span in spans]).to_json() for name, of in quantities.items()}


def _lanes(spans: Sequence[Span]) -> dict[str, Any]:
    return {name: _lane(name, spans) for name in spans[0].pipeline.lanes}


def _lane(name: str, spans: Sequence[Span]) -> dict[str, Any]:
    """Of one lane: its share of a step's time in programs, hand-overs that it waited for, and seconds that each took
    (None where there were none).
    """
    lanes = [span.pipeline.lanes[name] for span in spans]
    taken = [lane.hand_over_seconds / lane.hand_overs for lane in lanes if lane.hand_overs]
    return {
        "busy": Summary.of(
            [lane.busy_seconds / span.pipeline.seconds for lane, span in zip(lanes, spans, strict=True)]
        ).to_json(),
        "hand_overs_per_step": Summary.of(
            [lane.hand_overs / span.steps for lane, span in zip(lanes, spans, strict=True)]
        ).to_json(),
        "hand_over_s": Summary.of(taken).to_json() if taken else None,
    }


def relative_to_smaller(rates: Mapping[int, float]) -> dict[int, float]:
    """For each batch size but the smallest: its rate over the best rate of all smaller ones. Below 1 is a dip."""
    sizes = sorted(rates)
    return {size: rates[size] / max(rates[smaller] for smaller in sizes[:i]) for i, size in enumerate(sizes) if i}
