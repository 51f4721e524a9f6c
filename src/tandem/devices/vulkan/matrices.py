"""Packed matrices and vectors in device memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from tandem.devices.vulkan.memory import Memory, Part, View, rounded
from tandem.devices.vulkan.packing import blocks_of, pack_rows, row_words
from tandem.devices.vulkan.probe import GpuLimits
from tandem.devices.vulkan.staging import SLOT_BYTES
from tandem.errors import DeviceError
from tandem.weights.tensor import Tensor, TensorType

Float32Array = npt.NDArray[np.float32]

_ALIGNMENT = 256
# Outputs of a workgroup of product.comp: LANES / SHARE.
GROUP_OUTPUTS = 4


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows [first, first + rows) of a matrix, in a binding of their own."""

    first: int
    rows: int
    view: View


class Matrix:
    """A matrix whose rows are split over as many bindings as the device's limits ask for."""

    def __init__(self, memory: Memory, limits: GpuLimits, tensor: Tensor) -> None:
        self.type = tensor.type
        self.rows, self.columns = tensor.shape
        self.blocks = blocks_of(self.columns)
        self.row_words = row_words(tensor.type, self.columns)
        self.chunks: list[Chunk] = []
        self.bytes = 0
        packed = tensor.data.reshape(self.rows, -1)
        for first, rows in split_rows(limits, tensor):
            size = rows * self.row_words * 4
            buffer = memory.device(size, clear=False)
            memory.fill(buffer.all(), _parts(self.type, packed[first : first + rows], self.columns))
            self.chunks.append(Chunk(first, rows, buffer.all()))
            self.bytes += buffer.size
        buffers = [chunk.view.buffer for chunk in self.chunks]
        weakref.finalize(self, memory.free_all, buffers).atexit = False
        self._source = _owner(tensor)

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor at the same address is still the one that this matrix was made of."""
        source = self._source()
        return source is not None and source is _owner(tensor)() and tensor.type is self.type


def _owner(tensor: Tensor) -> weakref.ref[Any]:
    """Whoever owns the tensor's bytes: an array or a mapping. Their address is theirs only as long as it lives."""
    owner: Any = tensor.data
    while isinstance(owner, np.ndarray) and owner.base is not None:
        owner = owner.base
    return weakref.ref(owner if not isinstance(owner, bytes) else tensor.data)


def split_rows(limits: GpuLimits, tensor: Tensor) -> Iterator[tuple[int, int]]:
    """(first row, rows) of each binding that a matrix takes."""
    rows, columns = tensor.shape
    row_bytes = row_words(tensor.type, columns) * 4
    most = min(limits.storage_range, limits.allocation) // _ALIGNMENT * _ALIGNMENT // row_bytes
    # A product's workgroups stand in the first dimension of its grid.
    most = min(most, limits.groups[0] * GROUP_OUTPUTS)
    if most == 0:
        raise DeviceError(f"vulkan: a row of tensor '{tensor.name}' ({row_bytes:,} bytes) exceeds the device's limits")
    for first in range(0, rows, most):
        yield first, min(most, rows - first)


def matrix_bytes(limits: GpuLimits, tensor: Tensor) -> int:
    """What `Matrix` keeps resident."""
    row_bytes = row_words(tensor.type, tensor.shape[1]) * 4
    return sum(rounded(rows * row_bytes) for _, rows in split_rows(limits, tensor))


class Vectors:
    """A block's float32 vectors in one buffer; `at` gives the element where each begins."""

    def __init__(self, memory: Memory, vectors: Mapping[str, Float32Array]) -> None:
        self.at: dict[str, int] = {}
        total = 0
        for name, vector in vectors.items():
            self.at[name] = total
            total += vector.size
        buffer = memory.device(total * 4)
        memory.write(buffer.all(), vectors.values())
        self.view = buffer.all()
        self.bytes = buffer.size
        weakref.finalize(self, memory.free, buffer).atexit = False


def _parts(type: TensorType, rows: npt.NDArray[np.uint8], columns: int) -> list[Part]:
    """Some rows at a time, packed where they shall lie."""
    row_bytes = row_words(type, columns) * 4
    step = max(1, SLOT_BYTES // row_bytes)
    cut = [rows[start : start + step] for start in range(0, len(rows), step)]
    return [(len(piece) * row_bytes, partial(pack_rows, type, piece, columns)) for piece in cut]
