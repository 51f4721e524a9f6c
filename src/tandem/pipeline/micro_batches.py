"""Cutting a step's batch into micro-batches, which travel through the pipeline by themselves."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from tandem.devices.batch import Batch, BatchLayout, Int32Array


class MicroBatches:
    """`count` batches and the head's. Micro-batch i has rows [i * rows, (i + 1) * rows) of the step's residual stream.

    A chunk of a prompt may be cut in two: its first part is computed before its second, as every lane runs
    micro-batch 0 before micro-batch 1 at each stage. The head runs once for all of them: its batch names their rows
    where they lie.
    """

    def __init__(self, layout: BatchLayout, count: int, rows: int, page_size: int) -> None:
        self.batches = tuple(Batch(layout) for _ in range(count))
        self.head = Batch(layout)
        self._rows = rows
        self._page_size = page_size
        self._groups = layout.kv_groups
        # Of one sequence, as its head sees it; no page is looked at.
        self.head.rows[:, 1] = np.arange(layout.max_rows, dtype=np.int32)
        self._behind: Int32Array = np.zeros(layout.max_samples, dtype=np.int32)

    def split(self, batch: Batch) -> int:
        """Fills the micro-batches with equal parts of the step's rows, which must lie in the order of their sequences;
        returns how many there are.
        """
        rows = batch.n_rows
        count = max(1, min(len(self.batches), rows))
        bounds = [rows * i // count for i in range(count + 1)]
        for micro, (start, stop) in zip(self.batches, pairwise(bounds), strict=False):
            self._fill(micro, batch, start, stop)
        self._fill_head(batch, bounds)
        return count

    def _fill(self, micro: Batch, batch: Batch, start: int, stop: int) -> None:
        """Rows [start, stop) of the batch, with the sequences that they belong to."""
        count = stop - start
        if not count:
            micro.set_counts(0, 0, 0)
            return
        first, last = int(batch.rows[start, 0]), int(batch.rows[stop - 1, 0])
        sequences = last - first + 1
        micro.rows[:count] = batch.rows[start:stop]
        micro.rows[:count, 0] -= first
        parts = micro.sequences[:sequences]
        parts[:] = batch.sequences[first : last + 1]
        parts[:, 0] -= start
        before, behind = -int(parts[0, 0]), int(parts[-1, 0] + parts[-1, 1]) - count
        parts[0, 0] += before
        parts[0, 1] -= before
        parts[-1, 1] -= behind
        parts[-1, 2] -= behind
        self._copy_pages(micro, batch, parts)
        micro.set_counts(count, sequences, 0)

    def _copy_pages(self, micro: Batch, batch: Batch, parts: Int32Array) -> None:
        """The pages that the sequences' tables name, to where they are in the batch."""
        low, high = len(batch.pages), 0
        for group in range(self._groups):
            offsets, firsts = parts[:, 4 + 2 * group], parts[:, 5 + 2 * group]
            low = min(low, int(offsets.min()))
            high = max(high, int((offsets - firsts - (-parts[:, 2] // self._page_size)).max()))
        if low < high:
            micro.pages[low:high] = batch.pages[low:high]

    def _fill_head(self, batch: Batch, bounds: list[int]) -> None:
        samples = batch.n_samples
        chosen, behind = batch.samples[:samples, 0], self._behind[:samples]
        head = self.head
        head.samples[:samples] = batch.samples[:samples]
        for start, stop in pairwise(bounds[:-1]):
            np.greater_equal(chosen, stop, out=behind, casting="unsafe")
            behind *= self._rows - (stop - start)
            head.samples[:samples, 0] += behind
        rows = (len(bounds) - 2) * self._rows + bounds[-1] - bounds[-2]
        head.sequences[0, :3] = (0, rows, rows)
        head.set_counts(rows, 1, samples)
