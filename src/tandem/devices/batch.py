"""The batch: one step's work as one int32 structure, the same bytes for every device.

Layout version 1, all int32, offsets in elements, fixed by the capacity so that a device may record them once:

    header     [16]                         version, rows, sequences, samples, then the offsets and strides below
    rows       [max_rows, 4]                sequence, position, token, reserved
    sequences  [max_sequences, 4 + 2*G]     first row, rows, length after this step, slot; then for each KV group
                                            (page-table offset into `pages`, logical page of that first entry)
    samples    [max_samples, 4]             row, slot, reserved, reserved
    pages      [max_pages]                  physical page ids, the tables of all sequences and groups one after another

`sequence` in a row indexes `sequences`. A row's token is a vocabulary id, or `-1 - slot` for the token that a device
will have put into that token slot before this step runs. Rows of a sequence are consecutive and ascending in
position. Logical page p of a sequence (positions [p*page, (p+1)*page)) is `pages[offset + p - first]`; a sliding
window's table starts at its first live page.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

VERSION = 1
HEADER = 16
ROW_STRIDE = 4
SAMPLE_STRIDE = 4

Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class BatchLayout:
    """Capacities of a batch; `kv_groups` is the number of KV groups (page tables per sequence).

    turns: how many steps may be in flight. Their batches, and what the host and a head tell each other, take turns.
    """

    max_rows: int
    max_sequences: int
    max_samples: int
    max_pages: int
    kv_groups: int
    turns: int = 1

    @property
    def sequence_stride(self) -> int:
        return 4 + 2 * self.kv_groups

    @property
    def size(self) -> int:
        """Number of int32 elements of one batch."""
        return (
            HEADER
            + self.max_rows * ROW_STRIDE
            + self.max_sequences * self.sequence_stride
            + self.max_samples * SAMPLE_STRIDE
            + self.max_pages
        )


class Batch:
    """A reusable batch of fixed capacity; `data` is what devices read. Fill the views, then `set_counts`.

    turn: of the layout's turns; steps that are in flight at the same time have different ones.
    """

    __slots__ = ("data", "layout", "pages", "rows", "samples", "sequences", "turn")

    def __init__(self, layout: BatchLayout, turn: int = 0) -> None:
        self.layout = layout
        self.turn = turn
        self.data: Int32Array = np.zeros(layout.size, dtype=np.int32)
        rows_at = HEADER
        sequences_at = rows_at + layout.max_rows * ROW_STRIDE
        samples_at = sequences_at + layout.max_sequences * layout.sequence_stride
        pages_at = samples_at + layout.max_samples * SAMPLE_STRIDE
        self.rows: Int32Array = self.data[rows_at:sequences_at].reshape(layout.max_rows, ROW_STRIDE)
        self.sequences: Int32Array = self.data[sequences_at:samples_at].reshape(
            layout.max_sequences, layout.sequence_stride
        )
        self.samples: Int32Array = self.data[samples_at:pages_at].reshape(layout.max_samples, SAMPLE_STRIDE)
        self.pages: Int32Array = self.data[pages_at:]
        self.data[:HEADER] = (
            VERSION, 0, 0, 0,
            rows_at, ROW_STRIDE, sequences_at, layout.sequence_stride,
            samples_at, SAMPLE_STRIDE, pages_at, layout.kv_groups,
            layout.max_rows, layout.max_sequences, layout.max_samples, layout.max_pages,
        )  # fmt: skip

    @property
    def n_rows(self) -> int:
        return int(self.data[1])

    @property
    def n_sequences(self) -> int:
        return int(self.data[2])

    @property
    def n_samples(self) -> int:
        return int(self.data[3])

    def set_counts(self, rows: int, sequences: int, samples: int) -> None:
        self.data[1:4] = (rows, sequences, samples)
