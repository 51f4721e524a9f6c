"""Writes a schedule into a batch. It allocates nothing: rows and page tables go straight into the batch's memory."""

from __future__ import annotations

import numpy as np

from tandem.devices.batch import HEADER, ROW_STRIDE, SAMPLE_STRIDE, Batch
from tandem.engine.scheduler import Schedule
from tandem.memory.kv_cache import KVCache


class BatchBuilder:
    """Fills one reusable batch. `context`: the largest number of positions of a sequence."""

    def __init__(self, batch: Batch, cache: KVCache, context: int) -> None:
        self._batch = batch
        self._page_size = cache.page_size
        layout = batch.layout
        # A memoryview stores single integers several times faster than a numpy array does.
        self._data = batch.data.data
        self._sequences_at = HEADER + layout.max_rows * ROW_STRIDE
        self._samples_at = self._sequences_at + layout.max_sequences * layout.sequence_stride
        self._pages_at = self._samples_at + layout.max_samples * SAMPLE_STRIDE
        self._stride = layout.sequence_stride
        self._positions = np.arange(context, dtype=np.int32).data

    def fill(self, step: Schedule) -> Batch:
        """The step as a batch. Entries for sampled tokens come first, then those that score prompt tokens, each in the
        order of the schedule; an entry names its row and the slot of the sequence that it is for.
        """
        data, page_size, sequences = self._data, self._page_size, step.sequences
        at, sequence_at, sample_at, page_at = HEADER, self._sequences_at, self._samples_at, 0
        row = 0
        for i, sequence in enumerate(sequences):
            start, rows, slot = step.starts[i], step.rows[i], sequence.slot
            length = start + rows
            if rows == 1:
                data[at] = i
                data[at + 1] = start
                # What a step in flight samples lies in the sequence's slot once that has ended.
                data[at + 2] = sequence.tokens[start] if start < len(sequence.tokens) else -1 - slot
            else:
                stop = at + rows * ROW_STRIDE
                self._batch.rows[row : row + rows, 0] = i
                data[at + 1 : stop : ROW_STRIDE] = self._positions[start:length]
                data[at + 2 : stop : ROW_STRIDE] = memoryview(sequence.tokens)[start:length]
            data[sequence_at] = row
            data[sequence_at + 1] = rows
            data[sequence_at + 2] = length
            data[sequence_at + 3] = slot
            tables, last = sequence.tables, -(-length // page_size)
            group_at = sequence_at + 4
            for table, first in zip(tables.tables, tables.first, strict=True):
                data[group_at] = page_at
                data[group_at + 1] = first
                entries = last - first
                begin = self._pages_at + page_at
                data[begin : begin + entries] = memoryview(table)[first:last]
                page_at += entries
                group_at += 2
            at += rows * ROW_STRIDE
            row += rows
            sequence_at += self._stride
            if step.samples[i]:
                data[sample_at] = row - 1
                data[sample_at + 1] = slot
                sample_at += SAMPLE_STRIDE
                for fork in sequence.forks:
                    data[sample_at] = row - 1
                    data[sample_at + 1] = fork.slot
                    sample_at += SAMPLE_STRIDE
        if any(step.scores):
            sample_at = self._fill_scores(step, sample_at)
        samples = (sample_at - self._samples_at) // SAMPLE_STRIDE
        self._batch.set_counts(row, len(sequences), samples)
        return self._batch

    def _fill_scores(self, step: Schedule, sample_at: int) -> int:
        row = 0
        for sequence, start, rows, scores in zip(step.sequences, step.starts, step.rows, step.scores, strict=True):
            stop = row + min(rows, sequence.prompt_len - 1 - start)
            for scored in range(stop - scores, stop):
                self._data[sample_at] = scored
                self._data[sample_at + 1] = sequence.slot
                sample_at += SAMPLE_STRIDE
            row += rows
        return sample_at
