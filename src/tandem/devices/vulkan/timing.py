"""What variants of a product take on the GPU: run over a model's own matrices, one after another, as a step does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from statistics import median

import numpy as np

from tandem.devices.base import WAKING_SECONDS
from tandem.devices.vulkan.context import Context
from tandem.devices.vulkan.dispatch import LANES, Dispatch, Grid, Use, grids, push
from tandem.devices.vulkan.kept import PipelineKey
from tandem.devices.vulkan.matrices import Matrix
from tandem.devices.vulkan.memory import Buffer, Memory, View
from tandem.devices.vulkan.pipelines import Pipelines
from tandem.devices.vulkan.products import specialized
from tandem.devices.vulkan.profile import Timestamps
from tandem.devices.vulkan.recording import GROUPS_BYTES, Recording
from tandem.devices.vulkan.variants import Variant
from tandem.devices.vulkan.workspace import padded, quantized_words

# Bytes of weights that a run reads, at least where there are so many: beyond the caches of today's GPUs, where a step
# never finds them. Where a size has fewer, other weights are read in between.
_COLD = 64 << 20
_MOST_MATRICES = 12
_FLUSH_GROUPS = 1024
_FLUSH_TURN = 16 * LANES * _FLUSH_GROUPS * 8
_GRIDS, _STEP_WORDS = 8, 64
# A kernel whose first run takes so many times as long as the best one's is not run again.
_HOPELESS = 1.25
_RUNS = 5
# A run of so many seconds needs no other to be believed, nor one before it.
_LONG = 1e-3
# A GPU that was idle for so many seconds is woken.
_DOZING = 0.1


class ProductTimer:
    """Takes some memory until it is closed. rows: at most; columns: of its matrices; results: words of the largest, all
    rows and splits together. Raises DeviceError where the memory is not there.
    """

    def __init__(
        self,
        context: Context,
        memory: Memory,
        pipelines: Pipelines,
        *,
        rows: int,
        columns: Iterable[int],
        results: int,
    ) -> None:
        self._context, self._memory, self._pipelines = context, memory, pipelines
        self._buffers: list[Buffer] = []
        self._busy_until = 0.0
        words = rows * max(max(padded(width), quantized_words(width)) for width in columns)
        try:
            self._step = self._taken(memory.host(4 * _STEP_WORDS))
            self._table = self._taken(memory.host(_GRIDS * GROUPS_BYTES))
            self._x = self._taken(memory.device(4 * words, clear=False))
            self._y = self._taken(memory.device(4 * results, clear=False))
            # Small numbers, whether they are read as floats or as bytes: a GPU's clock depends on what it multiplies.
            values = np.random.default_rng(0).normal(0, 0.02, 1 << 16).astype(np.float32)
            memory.write(self._x, [np.resize(values, words)])
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._memory.free_all(self._buffers)

    def race(
        self, matrices: Sequence[Matrix], others: Iterable[Matrix], rows: int, variants: Sequence[Variant]
    ) -> dict[Variant, float]:
        """Median seconds of one product by each variant, run in turns; of a hopeless one those of its first run.

        matrices: of one type and size. others: that are read in between, so that caches forget these.
        """
        self._set_rows(rows)
        chosen = _enough(matrices)
        flush = _flush(chosen, others)
        keys = [
            (each.shader, each.constants) for variant in variants for each in specialized(variant, chosen[0], False, 1)
        ]
        self._pipelines.prepare(keys)
        with ExitStack() as opened:
            prepared = partial(self._prepared, matrices=chosen, rows=rows, flush=flush, opened=opened)
            runs = {variants[0]: prepared(variants[0])}
            self._keep_awake(runs[variants[0]], keys)
            runs = {variant: runs.get(variant) or prepared(variant) for variant in variants}
            times = {variant: [_first(run)] for variant, run in runs.items()}
            best = min(first for (first,) in times.values())
            left = [variant for variant, (first,) in times.items() if first <= _HOPELESS * best]
            for _ in range(min(_RUNS - 1, int(_LONG * _RUNS / best))):
                for variant in left:
                    times[variant].append(runs[variant]())
        self._busy_until = time.perf_counter()
        return {variant: median(each) / len(chosen) for variant, each in times.items()}

    def _taken(self, buffer: Buffer) -> View:
        self._buffers.append(buffer)
        return buffer.all()

    def _keep_awake(self, run: Callable[[], float], keys: Sequence[PipelineKey]) -> None:
        """Runs something until the GPU's clock is high and pipelines are made."""
        now = time.perf_counter()
        sleepy = self._context.gpu.type != "cpu" and now > self._busy_until + _DOZING
        end = now + (WAKING_SECONDS if sleepy else 0)
        while time.perf_counter() < end or not self._pipelines.ready(keys):
            run()

    def _set_rows(self, rows: int) -> None:
        """As step.glsl reads a batch: rows and samples."""
        mapped = self._step.mapped
        assert mapped is not None
        mapped.view(np.int32)[[1, 3]] = rows

    def _prepared(
        self, variant: Variant, matrices: Sequence[Matrix], rows: int, flush: View | None, opened: ExitStack
    ) -> Callable[[], float]:
        """What runs a variant once over all matrices; gives seconds."""
        dispatches, timed = [], []
        for matrix in matrices:
            if flush is not None:
                dispatches.append(self._read(flush))
            for each in specialized(variant, matrix, False, variant.splits):
                timed.append(len(dispatches))
                uses = (
                    Use(0, self._step),
                    Use(1, each.chunk.view),
                    Use(2, self._x),
                    Use(3, self._y, "write"),
                    Use(4, self._x),
                )
                values = push(*each.values, matrix.rows, each.chunk.first, rows * matrix.rows, 0, 0.0)
                dispatches.append(Dispatch(each.shader, each.constants, uses, values, each.grid))
        found = grids(dispatches)
        assert len(found) <= _GRIDS
        times = Timestamps(self._context, len(dispatches))
        opened.callback(times.close)
        recording = Recording(self._context, self._pipelines, dispatches, found, self._table, times.queries)
        groups = np.array([(grid.x, -(-rows // grid.tile), 1) for grid in found], np.uint32)

        def run() -> float:
            table = self._table.mapped
            assert table is not None
            table[: groups.nbytes] = groups.reshape(-1).view(np.uint8)
            self._context.run(recording.commands)
            seconds = times.read()
            return sum(seconds[at] for at in timed)

        return run

    def _read(self, flush: View) -> Dispatch:
        uses = (Use(0, flush), Use(1, self._y, "write"))
        # `tile` keeps the grid one workgroup high for any rows.
        return Dispatch("ceiling_read", (LANES,), uses, push(flush.size // 16), Grid(_FLUSH_GROUPS, 1 << 30))


def _first(run: Callable[[], float]) -> float:
    """Of a run whose code and descriptors have been brought."""
    seconds = run()
    return run() if seconds < _LONG else seconds


def _enough(matrices: Sequence[Matrix]) -> list[Matrix]:
    """As many as it takes to read from memory, not from a cache."""
    each = max(1, matrices[0].bytes)
    return list(matrices[: min(_MOST_MATRICES, -(-_COLD // each))])


def _flush(chosen: Sequence[Matrix], others: Iterable[Matrix]) -> View | None:
    """What to read between two products so that caches forget; None where the products alone do that, or nothing is
    there that is large enough: then a step finds much in caches, too.
    """
    if sum(matrix.bytes for matrix in chosen) >= _COLD:
        return None
    views = (chunk.view for matrix in others if matrix not in chosen for chunk in matrix.chunks)
    largest = max(views, key=lambda view: view.size, default=None)
    turns = 0 if largest is None else min(largest.size, _COLD) // _FLUSH_TURN
    return largest.part(0, turns * _FLUSH_TURN) if largest is not None and turns else None
