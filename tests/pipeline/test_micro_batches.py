"""Batches cut into micro-batches: together they say what the whole says, and the head finds its rows."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from tandem.devices.batch import Batch, BatchLayout
from tandem.pipeline.micro_batches import MicroBatches

PAGE = 16
EACH = 32
LAYOUT = BatchLayout(max_rows=64, max_sequences=8, max_samples=20, max_pages=200, kv_groups=2)


def filled(draw: random.Random, rows: int) -> Batch:
    """Sequences of random lengths with that many rows in all; pages are numbered as they come; rows are sampled."""
    batch = Batch(LAYOUT)
    sequences = draw.randint(1, min(8, rows))
    cuts = [0, *sorted(draw.sample(range(1, rows), sequences - 1)), rows]
    at = 0
    for index, (first, stop) in enumerate(pairwise(cuts)):
        count, past = stop - first, draw.randint(0, 60)
        length = past + count
        batch.rows[first:stop, 0] = index
        batch.rows[first:stop, 1] = range(past, length)
        batch.rows[first:stop, 2] = [draw.randrange(100) for _ in range(count)]
        batch.sequences[index, :4] = (first, count, length, 7 - index)
        for group in range(2):
            skipped = past // PAGE if group else 0
            entries = -(-length // PAGE) - skipped
            batch.sequences[index, 4 + 2 * group :][:2] = (at, skipped)
            batch.pages[at : at + entries] = range(1000 + at, 1000 + at + entries)
            at += entries
    samples = draw.randint(0, 20)
    batch.samples[:samples, 0] = [draw.randrange(rows) for _ in range(samples)]
    batch.samples[:samples, 1] = [draw.randrange(8) for _ in range(samples)]
    batch.set_counts(rows, sequences, samples)
    return batch


def rows_of(batch: Batch) -> list[tuple[int, ...]]:
    """Each row as attention sees it: slot, position, token, and the page of each group that its position lies in."""
    seen = []
    for row, (sequence, position, token, _) in enumerate(batch.rows[: batch.n_rows].tolist()):
        first, count, length, slot, *tables = batch.sequences[sequence].tolist()
        assert first <= row < first + count and position == length - count + row - first
        pages = [
            batch.pages[offset + position // PAGE - skipped]
            for offset, skipped in zip(tables[::2], tables[1::2], strict=True)
        ]
        seen.append((slot, position, token, *map(int, pages)))
    return seen


@pytest.mark.parametrize("seed", range(40))
def test_the_parts_are_the_whole(seed: int) -> None:
    draw = random.Random(seed)
    count = draw.randint(2, 4)
    micro = MicroBatches(replace(LAYOUT, max_rows=EACH * count), count, EACH, PAGE)
    for rows in (draw.randint(1, 64), draw.randint(1, 5), 64):
        batch = filled(draw, rows)
        before = batch.data.copy()
        used = micro.split(batch)
        assert used == min(count, rows)
        parts = micro.batches[:used]
        assert [row for part in parts for row in rows_of(part)] == rows_of(batch)
        sizes = [part.n_rows for part in parts]
        assert max(sizes) - min(sizes) <= 1 and all(part.n_samples == 0 for part in parts)
        where = [at * EACH + row for at, size in enumerate(sizes) for row in range(size)]
        head, samples = micro.head, batch.n_samples
        assert head.samples[:samples, 0].tolist() == [where[row] for row in batch.samples[:samples, 0]]
        assert np.array_equal(head.samples[:samples, 1], batch.samples[:samples, 1])
        assert (head.n_rows, head.n_sequences, head.n_samples) == (where[-1] + 1, 1, samples)
        assert np.array_equal(head.rows[: head.n_rows, 1], np.arange(head.n_rows))
        assert np.array_equal(batch.data, before)
