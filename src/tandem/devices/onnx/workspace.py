"""Scratch that all programs of a device share, as they run one at a time: named arrays, each as large as any needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

# Of every array; a provider may want its tensors so.
_ALIGNMENT = 64


class Workspace:
    """generation: grows when the arrays move, which happens only while programs are linked."""

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}
        self._memory: npt.NDArray[np.uint8] | None = None
        self._offsets: dict[str, int] = {}
        self.generation = 0

    @property
    def bytes(self) -> int:
        return workspace_bytes(self._sizes)

    def reserve(self, needs: Mapping[str, int]) -> None:
        """Makes room for arrays of these names and bytes, beside what others need."""
        merged = merge([self._sizes, needs])
        if merged != self._sizes:
            self._sizes, self._memory = merged, None
            self.generation += 1

    def array(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
        """The array of that name, or its beginning; zero-filled when it is first asked for."""
        if self._memory is None:
            raw = np.zeros(workspace_bytes(self._sizes), dtype=np.uint8)
            start = -raw.ctypes.data % _ALIGNMENT
            self._memory, at = raw[start:], 0
            for each, size in self._sizes.items():
                self._offsets[each] = at
                at += _rounded(size)
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        assert size <= self._sizes[name], name
        start = self._offsets[name]
        found: npt.NDArray[Any] = self._memory[start : start + size].view(dtype).reshape(shape)
        return found


def merge(needs: list[dict[str, int]] | list[Mapping[str, int]]) -> dict[str, int]:
    """The largest of each name."""
    found: dict[str, int] = {}
    for need in needs:
        for name, size in need.items():
            found[name] = max(size, found.get(name, 0))
    return found


def workspace_bytes(sizes: Mapping[str, int]) -> int:
    return sum(map(_rounded, sizes.values())) + _ALIGNMENT if sizes else 0


def _rounded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
