"""Tensors as files hold them: a name, a packed type, a shape and bytes that are mapped, not read."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tandem.weights.files import MappedFile


class TensorType(Enum):
    """Packed types by their GGUF number, elements per block and bytes per block."""

    F32 = (0, 1, 4)
    F16 = (1, 1, 2)
    Q4_0 = (2, 32, 18)
    Q4_1 = (3, 32, 20)
    Q5_0 = (6, 32, 22)
    Q5_1 = (7, 32, 24)
    Q8_0 = (8, 32, 34)
    Q4_K = (12, 256, 144)
    Q5_K = (13, 256, 176)
    Q6_K = (14, 256, 210)
    BF16 = (30, 1, 2)

    def __init__(self, ggml_id: int, block: int, block_bytes: int) -> None:
        self.ggml_id = ggml_id
        self.block = block
        self.block_bytes = block_bytes

    def row_bytes(self, columns: int) -> int:
        """Bytes of one row; `columns` must be a multiple of the block."""
        return columns // self.block * self.block_bytes


class FileRange(NamedTuple):
    """Bytes of an open file from `offset` on. path: for messages. descriptor: open as long as the tensor's data."""

    path: str
    descriptor: int
    offset: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """`shape` is row-major with the contiguous dimension last: a matrix is (rows, columns), y = W x has rows outputs.

    data: uint8, one-dimensional, exactly the tensor's bytes; usually a read-only view of a mapped file.
    """

    name: str
    type: TensorType
    shape: tuple[int, ...]
    data: npt.NDArray[np.uint8]

    @property
    def elements(self) -> int:
        n = 1
        for dimension in self.shape:
            n *= dimension
        return n

    @property
    def file(self) -> FileRange | None:
        """Where the bytes can be read, if they are a mapped file's."""
        base: object = self.data
        while isinstance(base, np.ndarray):
            base = base.base
        if not (isinstance(base, memoryview) and isinstance(base.obj, MappedFile)):
            return None
        start = np.frombuffer(base.obj, np.uint8).ctypes.data
        # Names of files need not be text, messages are.
        path = str(base.obj.path).encode(errors="backslashreplace").decode()
        return FileRange(path, base.obj.descriptor, self.data.ctypes.data - start)

    @property
    def nbytes(self) -> int:
        return int(self.data.nbytes)
