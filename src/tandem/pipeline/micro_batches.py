"""Cutting a step's batch into micro-batches, which travel through the pipeline by themselves."""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise

import numpy as np

from tandem.devices.base import Float32Array
from tandem.devices.batch import SAMPLE_STRIDE, Batch, BatchLayout, Int32Array


class MicroBatches:
    """`count` batches and the head's, for steps of one turn. Micro-batch i has rows [i * rows, (i + 1) * rows) of the
    step's residual stream.

    A chunk of a prompt may be cut in two: its first part is computed before its second, as every lane runs
    micro-batch 0 before micro-batch 1 at each stage. The head runs once for all of them: its batch names their rows
    where they lie.
    """

    def __init__(self, layout: BatchLayout, count: int, rows: int, page_size: int, turn: int = 0) -> None:
        self.batches = tuple(Batch(layout, turn) for _ in range(count))
        self.head = Batch(layout, turn)
        self._rows = rows
        self._bounds = [0]
        self._page_size = page_size
        # Of one sequence, as its head sees it; no page is looked at.
        self.head.rows[:, 1] = np.arange(layout.max_rows, dtype=np.int32)
        self._head_samples = self.head.samples.reshape(-1).data
        # An array, as numpy makes one of every number that it is given.
        self._first: Int32Array = np.zeros(1, dtype=np.int32)

    def split(self, batch: Batch) -> int:
        """Fills the micro-batches with equal parts of the step's rows, which must lie in the order of their sequences;
        returns how many there are. Allocates no arrays.
        """
        rows = batch.n_rows
        count = max(1, min(len(self.batches), rows))
        bounds = [rows * i // count for i in range(count + 1)]
        for micro, (start, stop) in zip(self.batches, pairwise(bounds), strict=False):
            self._fill(micro, batch, start, stop)
        self._fill_head(batch, bounds)
        self._bounds = bounds
        return count

    def join(self, hidden: Float32Array) -> Float32Array:
        """The rows of the step that was split last in the batch's order, from where they lie in the residual stream."""
        parts = [
            hidden[micro * self._rows : micro * self._rows + stop - start]
            for micro, (start, stop) in enumerate(pairwise(self._bounds))
        ]
        return np.concatenate(parts)

    def _fill(self, micro: Batch, batch: Batch, start: int, stop: int) -> None:
        """Rows [start, stop) of the batch, with the sequences that they belong to."""
        count = stop - start
        if not count:
            micro.set_counts(0, 0, 0)
            return
        first, last = int(batch.rows[start, 0]), int(batch.rows[stop - 1, 0])
        micro.rows[:count] = batch.rows[start:stop]
        numbers = micro.rows[:count, 0]
        self._first[0] = first
        np.subtract(numbers, self._first, out=numbers)
        low, high = len(batch.pages), 0
        for index in range(first, last + 1):
            begin, rows, length, slot, *tables = batch.sequences[index].tolist()
            behind = max(0, begin + rows - stop)
            rows, length, begin = begin + rows - behind - max(begin, start), length - behind, max(begin, start) - start
            micro.sequences[index - first] = (begin, rows, length, slot, *tables)
            pages = -(-length // self._page_size)
            for offset, skipped in zip(tables[::2], tables[1::2], strict=True):
                low, high = min(low, offset), max(high, offset + pages - skipped)
        if low < high:
            micro.pages[low:high] = batch.pages[low:high]
        micro.set_counts(count, last - first + 1, 0)

    def _fill_head(self, batch: Batch, bounds: list[int]) -> None:
        head, samples = self.head, batch.n_samples
        head.samples[:samples] = batch.samples[:samples]
        data = self._head_samples
        for at in range(0, samples * SAMPLE_STRIDE, SAMPLE_STRIDE):
            micro = bisect_right(bounds, data[at]) - 1
            data[at] += micro * self._rows - bounds[micro]
        rows = (len(bounds) - 2) * self._rows + bounds[-1] - bounds[-2]
        head.sequences[0, :3] = (0, rows, rows)
        head.set_counts(rows, 1, samples)
