"""Blocks of one kind, loaded on one device as a model's would be, and programs of them that can be timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from tandem._native import Timeline
from tandem.devices.base import WAKING_SECONDS, Device, Event, KVGroupSpec, StepBuffers
from tandem.devices.batch import Batch, BatchLayout
from tandem.devices.candidates import CandidateBuffers, candidate_shapes
from tandem.devices.segment import Loadable
from tandem.devices.spec import AttentionSpec, HeadSpec, KVDtype
from tandem.memory.arena import Arena
from tandem.memory.plan import PAGE_SIZE
from tandem.pipeline.profile import block_without_layer

# KV pools of a measurement; sequences that need more share pages, far apart.
_POOL_BYTES = 256 << 20
_MOST_SAMPLES = 64
_MOST_QUEUED = 16
_ONE = int(np.float32(1).view(np.int32))


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to measure. seconds: for a point, about. longest: a run that takes longer ends a curve: from there on,
    time is taken to grow with the rows.
    """

    seconds: float
    longest: float
    least: int = 5


class BlockRig:
    """Some blocks of one kind, one after another in a program of their own.

    The device's lane must be idle; close lets the blocks go, not the device.
    """

    def __init__(
        self,
        device: Device,
        loadables: Sequence[Loadable],
        rows: int,
        *,
        kv_dtype: KVDtype = "f16",
        depth: int = 1,
        vocab: int = 1,
    ) -> None:
        """depth: the longest context. vocab: of the tokens that rows name, and of a head's logits."""
        spec = loadables[0][0]
        self.blocks = len(loadables)
        self._head = isinstance(spec, HeadSpec)
        self.rows = min(rows, _MOST_SAMPLES) if self._head else rows
        self.vocab = vocab
        self._random = np.random.default_rng(0)
        loaded = [
            device.load(block_without_layer(block, layer), weights, part)
            for layer, (block, weights, part) in enumerate(loadables)
        ]
        self._pages, pools = 0, []
        self._pages_each = -(-max(depth, rows) // PAGE_SIZE)
        if isinstance(spec, AttentionSpec):
            group = KVGroupSpec(
                0, tuple(range(len(loadables))), spec.kv_heads, spec.head_dim, spec.window, PAGE_SIZE, kv_dtype,
                self._pages_each * PAGE_SIZE,
            )  # fmt: skip
            self._pages = max(self._pages_each, min(_POOL_BYTES // group.page_bytes, 32 * self._pages_each))
            pools = [device.allocate_kv(group, self._pages)]
        self._layout = BatchLayout(
            self.rows, self.rows, self.rows, max(self._pages, self.rows * self._pages_each), len(pools)
        )
        self._buffers = self._make_buffers(device, spec, loadables)
        self._program = device.link(loaded, rows=self.rows, buffers=self._buffers, kv=pools)
        self._runner = Runner()
        if pools:
            self._fill(pools[0])
        if device.info.threads is None:
            self._wake()

    def time(self, batch: Batch, patience: Patience) -> float:
        """Seconds of one run of the whole program, until the host has it."""
        return self._runner.time(lambda: self._refresh(batch), lambda event: self.submit(batch, event), patience)

    def time_queued(self, batch: Batch, patience: Patience) -> float:
        """Seconds of one run among many that are queued at once, so that nobody's waking up is in it."""
        self._refresh(batch)
        self._runner.run(lambda event: self.submit(batch, event))
        self._refresh(batch)
        once = self._runner.run(lambda event: self.submit(batch, event))
        runs = max(1, min(_MOST_QUEUED, round(patience.seconds / patience.least / once)))
        if runs == 1:
            if once > patience.seconds:
                return once
            self._refresh(batch)
            return min(once, self._runner.run(lambda event: self.submit(batch, event)))
        return self.queued_seconds(batch, runs, patience) / runs

    def queued_seconds(self, batch: Batch, runs: int, patience: Patience) -> float:
        """Seconds of so many runs that are queued at once."""

        def submit(last: Event) -> None:
            for _ in range(runs - 1):
                self.submit(batch, None)
            self.submit(batch, last)

        return self._runner.time(lambda: self._refresh(batch), submit, patience)

    def submit(self, batch: Batch, signal: Event | None, wait: Sequence[Event] = ()) -> None:
        self._program.submit(batch, wait, signal)

    def batch(self, sequences: int, rows: int, length: int) -> Batch:
        """`sequences` sequences, each with its last `rows` rows up to position `length`; a head samples every row."""
        batch = Batch(self._layout)
        n = sequences * rows
        batch.rows[:n, 0] = np.repeat(np.arange(sequences), rows)
        batch.rows[:n, 1] = np.tile(np.arange(length - rows, length), sequences)
        batch.rows[:n, 2] = self._random.integers(self.vocab, size=n)
        each = -(-length // PAGE_SIZE) if self._pages else 0
        for i in range(sequences):
            batch.sequences[i, :4] = (i * rows, rows, length, i)
            if each:
                batch.sequences[i, 4:6] = (i * each, 0)
                batch.pages[i * each : (i + 1) * each] = (np.arange(each) + i * each) % self._pages
        samples = n if self._head else 0
        batch.samples[:samples, 0] = np.arange(samples)
        batch.samples[:samples, 1] = np.arange(samples)
        batch.set_counts(n, sequences, samples)
        return batch

    def _make_buffers(self, device: Device, spec: Any, loadables: Sequence[Loadable]) -> StepBuffers:
        slices = max((part.index + 1 for _, _, part in loadables if part is not None), default=0)
        slices = max([slices, *(getattr(block, "slices", 0) for block, _, _ in loadables)])
        picks = self._head and device.info.candidates > 0
        shapes: dict[str, tuple[int, ...]] = {
            "hidden": (self.rows, spec.hidden),
            "logits": (self.rows if self._head else 1, self.vocab if self._head else 1),
            "partials": (slices, self.rows, spec.hidden),
            "slots": (self.rows,),
        }
        asked = candidate_shapes(self.rows, self.rows, self.vocab) if picks else {}
        sizes = [*shapes.values(), *asked.values()]
        arena = Arena(sum(4 * int(np.prod(size)) + 4096 for size in sizes))
        arrays: dict[str, Any] = {
            name: arena.take(size, np.int32 if name == "slots" else np.float32) for name, size in shapes.items()
        }
        buffers = StepBuffers(**arrays)
        if picks:
            candidates = CandidateBuffers(**{name: arena.take(size, np.int32) for name, size in asked.items()})
            candidates.asks[:, :7] = (1, 0, _ONE, -1, 0, 0, _ONE)
            buffers.candidates = (candidates,)
        return buffers

    def _fill(self, pool: Any) -> None:
        """Real keys and values in every page: pages that nobody wrote may all be one page of zeros."""
        self._refresh(batch := self.batch(1, min(self.rows, PAGE_SIZE), min(self.rows, PAGE_SIZE)))
        self._runner.run(lambda event: self.submit(batch, event))
        for page in range(1, pool.pages):
            pool.copy_page(0, page)

    def _wake(self) -> None:
        batch, end = self.batch(1, 1, 1), time.perf_counter() + WAKING_SECONDS
        while time.perf_counter() < end:
            self.queued_seconds(batch, 4, Patience(0.0, 0.0))

    def _refresh(self, batch: Batch) -> None:
        # The residual must not grow from run to run.
        self._buffers.hidden[: batch.n_rows] = 0.1


class Runner:
    """Times what signals an event."""

    def __init__(self) -> None:
        self._timeline, self._values = Timeline(), count(1)

    def run(self, submit: Callable[[Event], None]) -> float:
        """Seconds until the event is there."""
        event = Event(self._timeline, next(self._values))
        start = time.perf_counter()
        submit(event)
        event.wait()
        return time.perf_counter() - start

    def time(self, prepare: Callable[[], None], submit: Callable[[Event], None], patience: Patience) -> float:
        """The fastest of several runs, after one that nobody counts: what others do on the machine only adds to it."""
        prepare()
        first = self.run(submit)
        if first > patience.longest:
            # The first run compiles and records, which may be long or may be nothing beside this.
            prepare()
            return first if first > 10 * patience.longest else min(first, self.run(submit))
        runs: list[float] = []
        while len(runs) < patience.least or sum(runs) < patience.seconds:
            prepare()
            runs.append(self.run(submit))
        return min(runs)


def chain_seconds(links: Sequence[tuple[BlockRig, Batch]], patience: Patience) -> tuple[float, float]:
    """Programs that wait for each other, queued at once: seconds until the last is done, and of queueing them."""
    timelines, values = [Timeline() for _ in links], count(1)
    queued: list[float] = []

    def submit(last: Event) -> None:
        value, start = next(values), time.perf_counter()
        wait: Sequence[Event] = ()
        for i, (rig, batch) in enumerate(links):
            signal = last if i == len(links) - 1 else Event(timelines[i], value)
            rig.submit(batch, signal, wait)
            wait = (signal,)
        queued.append(time.perf_counter() - start)

    return Runner().time(lambda: None, submit, patience), min(queued)
