"""Packed matrices and vectors in device memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from tandem.devices.vulkan.memory import Memory, Part, View, rounded
from tandem.devices.vulkan.packing import PANEL, Bytes, blocks_of, pack_rows, padded_rows, row_words
from tandem.devices.vulkan.probe import GpuLimits
from tandem.devices.vulkan.staging import SLOT_BYTES
from tandem.errors import DeviceError
from tandem.weights.tensor import Tensor

Float32Array = npt.NDArray[np.float32]

_ALIGNMENT = 256
# Outputs that a workgroup of product.comp makes at least.
GROUP_OUTPUTS = 4


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows [first, first + rows) of a matrix, in a binding of their own."""

    first: int
    rows: int
    view: View


class Matrix:
    """The rows of one tensor, or of several of one type and width after another, split over as many bindings as the
    device's limits ask for.
    """

    def __init__(self, memory: Memory, limits: GpuLimits, tensors: Sequence[Tensor]) -> None:
        self.type = tensors[0].type
        self.rows, self.columns = sum(tensor.shape[0] for tensor in tensors), tensors[0].shape[1]
        self.blocks = blocks_of(self.columns)
        self.row_words = row_words(self.type, self.columns)
        self.chunks: list[Chunk] = []
        self.bytes = 0
        for first, rows in split_rows(limits, tensors):
            size = padded_rows(rows) * self.row_words * 4
            buffer = memory.device(size, clear=False)
            memory.fill(buffer.all(), _parts(tensors, first, rows))
            self.chunks.append(Chunk(first, rows, buffer.all()))
            self.bytes += buffer.size
        buffers = [chunk.view.buffer for chunk in self.chunks]
        weakref.finalize(self, memory.free_all, buffers).atexit = False
        self._sources = [_owner(tensor) for tensor in tensors]

    def holds(self, tensors: Sequence[Tensor]) -> bool:
        """Whether tensors at the same addresses are still those that this matrix was made of."""
        owners = [source() for source in self._sources]
        return all(
            owner is not None and owner is _owner(tensor)() and tensor.type is self.type
            for owner, tensor in zip(owners, tensors, strict=True)
        )


def matrix_key(tensors: Sequence[Tensor]) -> tuple[tuple[int, int], ...]:
    """Where the tensors' bytes are: what tells one matrix from another."""
    return tuple((tensor.data.ctypes.data, tensor.nbytes) for tensor in tensors)


def _owner(tensor: Tensor) -> weakref.ref[Any]:
    """Whoever owns the tensor's bytes: an array or a mapping. Their address is theirs only as long as it lives."""
    owner: Any = tensor.data
    while isinstance(owner, np.ndarray) and owner.base is not None:
        owner = owner.base
    return weakref.ref(owner if not isinstance(owner, bytes) else tensor.data)


def split_rows(limits: GpuLimits, tensors: Sequence[Tensor]) -> Iterator[tuple[int, int]]:
    """(first row, rows) of each binding that a matrix takes."""
    rows = sum(tensor.shape[0] for tensor in tensors)
    row_bytes = row_words(tensors[0].type, tensors[0].shape[1]) * 4
    most = min(limits.storage_range, limits.allocation) // _ALIGNMENT * _ALIGNMENT // row_bytes
    # A product's workgroups stand in the first dimension of its grid.
    most = min(most, limits.groups[0] * GROUP_OUTPUTS) // PANEL * PANEL
    if most == 0 or PANEL * row_bytes > SLOT_BYTES:
        raise DeviceError(
            f"vulkan: {PANEL} rows of tensor '{tensors[0].name}' ({PANEL * row_bytes:,} bytes) exceed the device's "
            "limits"
        )
    for first in range(0, rows, most):
        yield first, min(most, rows - first)


def matrix_bytes(limits: GpuLimits, tensors: Sequence[Tensor]) -> int:
    """What `Matrix` keeps resident."""
    row_bytes = row_words(tensors[0].type, tensors[0].shape[1]) * 4
    return sum(rounded(padded_rows(rows) * row_bytes) for _, rows in split_rows(limits, tensors))


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


def _parts(tensors: Sequence[Tensor], first: int, rows: int) -> list[Part]:
    """Rows [first, first + rows) of the tensors together, some panels at a time, packed where they shall lie."""
    type, columns = tensors[0].type, tensors[0].shape[1]
    row_bytes = row_words(type, columns) * 4
    step = max(1, SLOT_BYTES // row_bytes // PANEL) * PANEL
    parts: list[Part] = []
    for start in range(first, first + rows, step):
        stop = min(start + step, first + rows)
        pack = partial(_pack, tensors, start, stop)
        parts.append((padded_rows(stop - start) * row_bytes, pack))
    return parts


def _pack(tensors: Sequence[Tensor], start: int, stop: int, out: Bytes) -> None:
    """Rows [start, stop) of the tensors together."""
    pieces, at = [], 0
    for tensor in tensors:
        data = tensor.data.reshape(tensor.shape[0], -1)
        pieces.append(data[max(0, start - at) : max(0, stop - at)])
        at += len(data)
    held = [piece for piece in pieces if len(piece)]
    pack_rows(tensors[0].type, held[0] if len(held) == 1 else np.concatenate(held), out)
