"""The KV pages of one group, in float32, and their use through a batch's page tables."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tandem.devices.base import KVGroupSpec
from tandem.devices.batch import Batch
from tandem.devices.ref.math import Float32Array
from tandem.errors import DeviceError


class RefKVPool:
    """keys, values: [layers, pages, page_size, kv_heads, head_dim], float32 whatever the group's dtype."""

    def __init__(self, group: KVGroupSpec, pages: int) -> None:
        shape = (len(group.layers), pages, group.page_size, group.kv_heads, group.head_dim)
        self.group = group
        self.pages = pages
        self.keys: Float32Array = np.zeros(shape, dtype=np.float32)
        self.values: Float32Array = np.zeros(shape, dtype=np.float32)

    def copy_page(self, source: int, target: int) -> None:
        self.keys[:, target] = self.keys[:, source]
        self.values[:, target] = self.values[:, source]


@dataclass(frozen=True, slots=True)
class SequenceRows:
    """One sequence's part of a batch: rows [first, first + count), positions [start, start + count)."""

    index: int
    first: int
    count: int
    start: int

    @property
    def rows(self) -> slice:
        return slice(self.first, self.first + self.count)

    @property
    def stop(self) -> int:
        return self.start + self.count


def sequences_of(batch: Batch) -> list[SequenceRows]:
    """The batch's sequences with rows. Raises DeviceError where rows and sequences contradict each other."""
    found = []
    covered = 0
    for index in range(batch.n_sequences):
        first, count, length = (int(value) for value in batch.sequences[index, :3])
        if count == 0:
            continue
        sequence = SequenceRows(index, first, count, length - count)
        rows = batch.rows[sequence.rows]
        if first < 0 or first + count > batch.n_rows or np.any(rows[:, 0] != index):
            raise DeviceError(f"batch: sequence {index} names rows that are not its own")
        if sequence.start < 0 or np.any(rows[:, 1] != np.arange(sequence.start, length)):
            raise DeviceError(f"batch: the positions of sequence {index} do not end at its length {length}")
        covered += count
        found.append(sequence)
    if covered != batch.n_rows:
        raise DeviceError(f"batch: {batch.n_rows} rows, but its sequences have {covered}")
    return found


class PageView:
    """One sequence's keys and values in one layer, addressed by position."""

    def __init__(self, pool: RefKVPool, layer: int, batch: Batch, sequence: int) -> None:
        group = pool.group
        self._keys = pool.keys[group.layers.index(layer)]
        self._values = pool.values[group.layers.index(layer)]
        self._page_size = group.page_size
        self._pages = pool.pages
        self._table = batch.pages
        offset, first = batch.sequences[sequence, 4 + 2 * group.index : 6 + 2 * group.index]
        self._offset, self._first = int(offset), int(first)
        self._what = f"batch: sequence {sequence}, KV group {group.index}"

    def write(self, start: int, keys: Float32Array, values: Float32Array) -> None:
        """Stores positions [start, start + n); keys and values are [n, kv_heads, head_dim]."""
        page, slot = self._locate(start, start + len(keys))
        self._keys[page, slot] = keys
        self._values[page, slot] = values

    def read(self, start: int, stop: int) -> tuple[Float32Array, Float32Array]:
        """Keys and values of positions [start, stop), [n, kv_heads, head_dim] each."""
        page, slot = self._locate(start, stop)
        return self._keys[page, slot], self._values[page, slot]

    def _locate(self, start: int, stop: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        positions = np.arange(start, stop, dtype=np.int64)
        entries = self._offset + positions // self._page_size - self._first
        if (
            np.any(positions // self._page_size < self._first)
            or np.any(entries >= len(self._table))
            or self._offset < 0
        ):
            raise DeviceError(f"{self._what}: its page table does not cover positions [{start}, {stop})")
        pages = self._table[entries].astype(np.int64)
        if np.any(pages < 0) or np.any(pages >= self._pages):
            raise DeviceError(f"{self._what}: its page table names a page outside the pool of {self._pages}")
        return pages, positions % self._page_size
