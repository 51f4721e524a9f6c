"""What variants of a product take on the GPU: run over a model's own matrices, one after another, as a step does."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from math import inf
from statistics import median

import numpy as np
import numpy.typing as npt

from tandem.devices.base import WAKING_SECONDS
from tandem.devices.vulkan.context import Context
from tandem.devices.vulkan.dispatch import LANES, Dispatch, Grid, Use, grids, push
from tandem.devices.vulkan.kept import PipelineKey
from tandem.devices.vulkan.matrices import Matrix
from tandem.devices.vulkan.memory import Buffer, Memory, View
from tandem.devices.vulkan.packing import BLOCK
from tandem.devices.vulkan.pipelines import Pipelines
from tandem.devices.vulkan.products import TAKE_FLOATS, extent_of, specialized
from tandem.devices.vulkan.profile import Timestamps
from tandem.devices.vulkan.recording import GROUPS_BYTES, Recording
from tandem.devices.vulkan.variants import BYTES, Extent, Variant
from tandem.devices.vulkan.workspace import padded, quantized_words

log = logging.getLogger("tandem.vulkan")

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
# Bytes of results that are compared.
_COMPARED = 1 << 20
# A run of so many seconds needs no other to be believed, nor one before it.
_LONG = 1e-3
# A GPU that was idle for so many seconds is woken.
_DOZING = 0.1


class ProductTimer:
    """Takes some memory until it is closed. rows: at most; columns: of its matrices; results: words of the largest, all
    rows and splits together. exact: sums keep one order, so a variant with cooperative matrices that gives other
    results than the first of its size to be raced counts as taking forever. Raises DeviceError where the memory is not
    there.
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
        exact: bool,
    ) -> None:
        self._context, self._memory, self._pipelines = context, memory, pipelines
        self._buffers: list[Buffer] = []
        self._busy_until = 0.0
        self._exact = exact
        self._expected: dict[tuple[Extent, int], npt.NDArray[np.float32]] = {}
        self._rows: tuple[int, int, bool] | None = None
        words = rows * max(max(padded(width), quantized_words(width)) for width in columns)
        try:
            self._step = self._taken(memory.host(4 * _STEP_WORDS))
            self._table = self._taken(memory.host(_GRIDS * GROUPS_BYTES))
            self._x = self._taken(memory.device(4 * words, clear=False))
            self._y = self._taken(memory.device(4 * results, clear=False))
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
        chosen = _enough(matrices)
        as_bytes = chosen[0].type.block > 1 and variants[0].shader not in TAKE_FLOATS
        self._set_rows(rows, chosen[0].columns, as_bytes=as_bytes)
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
            # What others are compared with comes first.
            times = {
                variant: [_first(runs[variant]) if self._agrees(runs[variant], variant, chosen[-1], rows) else inf]
                for variant in sorted(variants, key=lambda variant: variant.shader == BYTES)
            }
            best = min(first for (first,) in times.values())
            left = [variant for variant, (first,) in times.items() if first <= _HOPELESS * best]
            for _ in range(min(_RUNS - 1, int(_LONG * _RUNS / best))):
                for variant in left:
                    times[variant].append(runs[variant]())
        self._busy_until = time.perf_counter()
        return {variant: median(each) / len(chosen) for variant, each in times.items()}

    def _agrees(self, run: Callable[[], float], variant: Variant, last: Matrix, rows: int) -> bool:
        """last: the matrix that a run multiplies with in the end."""
        key = (extent_of(last), rows)
        if not self._exact or (key in self._expected and variant.shader != BYTES):
            return True
        run()
        part = self._y.part(0, min(_COMPARED, 4 * rows * last.rows))
        results = self._memory.read(part).view(np.float32)
        expected = self._expected.setdefault(key, results.copy())
        agrees = np.array_equal(results, expected, equal_nan=True)
        if not agrees:
            log.warning("%s: %s gives other results with this driver, and is not used", self._context.name, variant)
        return agrees

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

    def _set_rows(self, rows: int, columns: int, *, as_bytes: bool) -> None:
        """A batch, as step.glsl reads it, and what it multiplies with: a GPU's clock depends on that, too."""
        mapped = self._step.mapped
        assert mapped is not None
        mapped.view(np.int32)[[1, 3]] = rows
        if self._rows == (rows, columns, as_bytes):
            return
        random = np.random.default_rng(0)
        if as_bytes:
            self._memory.write(self._x, [_quantized(random, rows, columns)])
        else:
            self._memory.write(self._x, [random.normal(0, 0.02, (rows, padded(columns))).astype(np.float32)])
        self._rows = rows, columns, as_bytes

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


def _quantized(random: np.random.Generator, rows: int, columns: int) -> npt.NDArray[np.uint32]:
    """Rows of 8-bit activations, [rows, words], as quantize.glsl makes them."""
    blocks = padded(columns) // BLOCK
    integers = random.integers(-127, 128, (rows, 2 * blocks, BLOCK // 2), np.int8)
    scales = np.full((rows, blocks), 1 / 127, np.float32)
    found = np.zeros((rows, quantized_words(columns)), np.uint32)
    found[:, : 8 * blocks] = integers.reshape(rows, -1).view(np.uint32)
    found[:, 8 * blocks : 10 * blocks : 2] = scales.view(np.uint32)
    found[:, 8 * blocks + 1 : 10 * blocks : 2] = integers.sum(2, dtype=np.int16).view(np.uint32)
    found[:, 10 * blocks : 10 * blocks + -(-blocks // 32)] = np.float32(1 / 127).view(np.uint32)
    return found


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
