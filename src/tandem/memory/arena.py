"""Host memory that is allocated once: a page-aligned arena from which a step's arrays are cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

ALIGNMENT = 4096


def aligned(size: int) -> int:
    """`size` rounded up to whole memory pages."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class Arena:
    """`size` bytes, zero-filled, page-aligned, so that devices can import it. Sealed once everything has been cut."""

    def __init__(self, size: int) -> None:
        self.size = aligned(size)
        raw = np.zeros(self.size + ALIGNMENT, dtype=np.uint8)
        start = -raw.ctypes.data % ALIGNMENT
        self._memory: npt.NDArray[np.uint8] = raw[start : start + self.size]
        self._used = 0
        self._sealed = False

    @property
    def used(self) -> int:
        return self._used

    def take(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """The next page-aligned array; MemoryError when the plan was too small or the arena is sealed."""
        kind = np.dtype(dtype)
        size = kind.itemsize
        for dimension in shape:
            size *= dimension
        if self._sealed or self._used + size > self.size:
            state = "sealed" if self._sealed else f"{self.size - self._used} bytes left"
            raise MemoryError(f"the arena cannot give {size} bytes: {state}")
        view = self._memory[self._used : self._used + size].view(kind).reshape(shape)
        self._used += aligned(size)
        return view

    def seal(self) -> None:
        self._sealed = True
