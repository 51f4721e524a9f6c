"""What a program does, as data: dispatches with the bytes that they read and write, and the barriers that follow."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from tandem.devices.batch import Batch
from tandem.devices.vulkan.memory import View

LANES = 64
# Of heads.comp: those that work on one head.
TEAM = 64
# Of shaders whose workgroups go over whole rows.
ROW_LANES = 256
# As in split.glsl.
MAX_SPLITS, SHORTEST_SPLIT = 16, 256
# Steps of more rows keep the GPU busy with a workgroup for all splits of a row.
SPLIT_ROWS = 64
NONE = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Use:
    """A binding. columns: where every row of a written matrix is touched only in [start, stop); None means all of it.

    Two uses of one view with disjoint columns do not meet.
    """

    binding: int
    view: View
    access: Literal["read", "write", "both"] = "read"
    columns: tuple[int, int] | None = None

    def meets(self, other: Use) -> bool:
        """Whether the two share bytes of which one of them writes."""
        if self.access == other.access == "read" or self.view.buffer is not other.view.buffer:
            return False
        a, b = self.view, other.view
        if a.offset + a.size <= b.offset or b.offset + b.size <= a.offset:
            return False
        if a == b and self.columns is not None and other.columns is not None:
            return self.columns[0] < other.columns[1] and other.columns[0] < self.columns[1]
        return True


@dataclass(frozen=True, slots=True)
class Grid:
    """Workgroups: `x`, times one for every `tile` of the step's rows or samples. when: none in a step that asks for no
    candidates, has no adjustments, or wants no row whole.

    each: tiles do not reach over the rows of one sequence. splits: times the splits that the row of most of them has
    under this attention window (0: none); None for one.
    """

    x: int
    tile: int = 1
    sampled: bool = False
    when: Literal["", "asked", "adjusted", "whole"] = ""
    each: bool = False
    splits: int | None = None


def most_splits(batch: Batch, window: int) -> int:
    """A bound of the splits that split.glsl cuts any row's keys into."""
    last = batch.rows[: batch.n_rows, 1]
    first = np.maximum(last + 1 - window, 0) if window else np.zeros_like(last)
    return int(np.max(np.minimum(last // SHORTEST_SPLIT - first // SHORTEST_SPLIT + 1, MAX_SPLITS), initial=1))


@dataclass(frozen=True, slots=True)
class Dispatch:
    """constants: of the shader's specialization, in order, LANES first. block: what it works for, for a profile."""

    shader: str
    constants: tuple[int, ...]
    uses: tuple[Use, ...]
    push: bytes
    grid: Grid
    block: str = ""


def groups(count: int, size: int) -> int:
    """Workgroups of `size` that `count` of something need."""
    return -(-count // size)


def push(*values: int | float) -> bytes:
    """Push constants: 32-bit integers and floats, as the shader's block has them."""
    return b"".join(struct.pack("<f" if isinstance(value, float) else "<I", value) for value in values)


def barriers(dispatches: Iterable[Dispatch]) -> list[bool]:
    """For each dispatch, whether it must wait for those before it: it meets one since the last barrier."""
    needed: list[bool] = []
    since: list[Use] = []
    for dispatch in dispatches:
        wait = any(use.meets(other) for use in dispatch.uses for other in since)
        if wait:
            since = []
        since += dispatch.uses
        needed.append(wait)
    return needed


def grids(dispatches: Sequence[Dispatch]) -> list[Grid]:
    """The distinct grids, in order of first use: one entry each of a step's table of workgroup counts."""
    return list(dict.fromkeys(dispatch.grid for dispatch in dispatches))


class Table:
    """Workgroup counts of a list of grids, as a step needs them."""

    def __init__(self, grids: Sequence[Grid]) -> None:
        self._tile = np.array([grid.tile for grid in grids])
        self._sampled = np.array([grid.sampled for grid in grids])
        self._groups = np.ones((len(grids), 3), np.uint32)
        self._groups[:, 0] = [grid.x for grid in grids]
        self._bytes = self._groups.reshape(-1).view(np.uint8)
        self._when = [(index, grid.when) for index, grid in enumerate(grids) if grid.when]
        self._each = [(index, grid.tile) for index, grid in enumerate(grids) if grid.each]
        self._splits = [(index, grid.splits) for index, grid in enumerate(grids) if grid.splits is not None]
        self._counts: tuple[int, int, frozenset[str]] = (-1, -1, frozenset())

    def groups(self, batch: Batch, wants: frozenset[str]) -> npt.NDArray[np.uint8]:
        """VkDispatchIndirectCommands for a step, valid until the next call. wants: what there is of that which grids
        are launched only `when`.
        """
        rows, samples = batch.n_rows, batch.n_samples
        if (rows, samples, wants) != self._counts:
            self._counts = (rows, samples, wants)
            self._groups[:, 1] = -(-np.where(self._sampled, samples, rows) // self._tile)
            for index, when in self._when:
                self._groups[index, 1] *= when in wants
        for index, tile in self._each:
            self._groups[index, 1] = np.sum(-(-batch.sequences[: batch.n_sequences, 1] // tile))
        for index, window in self._splits:
            self._groups[index, 2] = most_splits(batch, window)
        return self._bytes
