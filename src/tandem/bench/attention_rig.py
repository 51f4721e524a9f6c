"""Attention of the CPU device alone: blocks with narrow projections over a KV pool that is full."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from tandem import _native
from tandem.devices.base import Event, KVGroupSpec, StepBuffers
from tandem.devices.batch import Batch, BatchLayout
from tandem.devices.cpu.device import CpuDevice
from tandem.devices.spec import AttentionSpec, NormSpec
from tandem.weights.tensor import Tensor, TensorType

_WIDTH = 32
_LAYERS = 4
_PAGE = _native.PAGE_SIZE


@dataclass(frozen=True, slots=True)
class AttentionShape:
    heads: int
    kv_heads: int
    head_dim: int


class AttentionRig:
    """`sequences` sequences of `depth` positions; a program of `_LAYERS` layers, whose time is shared out among them.

    Use as a context manager. Raises DeviceError for shapes and KV types that the device refuses.
    """

    def __init__(
        self, shape: AttentionShape, dtype: str, sequences: int, depth: int, rows: int, threads: int, isa: str
    ) -> None:
        self._depth, self._sequences = depth, sequences
        self._pages = -(-depth // _PAGE)
        self._device = CpuDevice(threads, isa or None)
        kv: Any = dtype
        group = KVGroupSpec(0, tuple(range(_LAYERS)), shape.kv_heads, shape.head_dim, None, dtype=kv)
        self.position_bytes = group.page_bytes / group.page_size / _LAYERS
        pool = self._device.allocate_kv(group, sequences * self._pages)
        blocks = [self._device.load(_spec(shape, layer), _block_weights(shape)) for layer in range(_LAYERS)]
        self._rows = max(rows, _PAGE)
        buffers = StepBuffers(
            np.ones((self._rows, _WIDTH), np.float32), np.zeros((1, 1), np.float32), np.zeros((0, 0, 0), np.float32)
        )
        self._program = self._device.link(blocks, rows=self._rows, buffers=buffers, kv=[pool])
        self._hidden = buffers.hidden
        self._timeline, self._values = _native.Timeline(), itertools.count(1)
        # Real keys and values in every page: pages that nobody wrote are all one page of zeros.
        self._run(self._batch([(0, _PAGE, _PAGE)]))
        for page in range(1, pool.pages):
            pool.copy_page(0, page)

    def __enter__(self) -> AttentionRig:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._device.close()

    def decode(self, rows: int) -> Callable[[float], float]:
        """Times one row each of `rows` sequences; all the sequences take turns. Seconds of one layer."""
        turns = max(1, self._sequences // rows)
        batches = [self._batch([(turn * rows + i, 1, self._depth) for i in range(rows)]) for turn in range(turns)]
        return lambda seconds: self._time(batches, seconds)

    def prefill(self, rows: int) -> Callable[[float], float]:
        """Times the first `rows` positions of one sequence. Seconds of one layer."""
        batches = [self._batch([(0, rows, rows)])]
        return lambda seconds: self._time(batches, seconds)

    def _time(self, batches: list[Batch], seconds: float) -> float:
        self._run(batches[0])
        start = time.perf_counter()
        calls, spent = 0, 0.0
        while spent < seconds:
            calls += 1
            self._run(batches[calls % len(batches)])
            spent = time.perf_counter() - start
        return spent / calls / _LAYERS

    def _run(self, batch: Batch) -> None:
        event = Event(self._timeline, next(self._values))
        self._hidden[: batch.n_rows] = 1.0  # the residual must not grow
        self._program.submit(batch, signal=event)
        event.wait()

    def _batch(self, parts: list[tuple[int, int, int]]) -> Batch:
        """Parts: (sequence, its rows, its length with them)."""
        batch = Batch(BatchLayout(self._rows, len(parts), 1, len(parts) * self._pages, kv_groups=1))
        row = 0
        for i, (sequence, rows, length) in enumerate(parts):
            batch.rows[row : row + rows, 0] = i
            batch.rows[row : row + rows, 1] = np.arange(length - rows, length)
            batch.sequences[i] = (row, rows, length, i, i * self._pages, 0)
            first = sequence * self._pages
            batch.pages[i * self._pages : (i + 1) * self._pages] = np.arange(first, first + self._pages)
            row += rows
        batch.set_counts(row, len(parts), 0)
        return batch


def _spec(shape: AttentionShape, layer: int) -> AttentionSpec:
    return AttentionSpec(
        layer, _WIDTH, shape.heads, shape.kv_heads, shape.head_dim, shape.head_dim**-0.5, NormSpec(1e-6), rope=None
    )


def _block_weights(shape: AttentionShape) -> dict[str, Tensor]:
    rng = np.random.default_rng(0)
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    shapes = {"norm": (_WIDTH,), "q": (q, _WIDTH), "k": (kv, _WIDTH), "v": (kv, _WIDTH), "o": (_WIDTH, q)}
    weights = {}
    for role, size in shapes.items():
        values = rng.standard_normal(size, dtype=np.float32)
        weights[role] = Tensor(role, TensorType.F32, size, values.view(np.uint8).reshape(-1))
    return weights
