"""The step's buffers as the GPU sees them: the host's own memory where it can be imported, or else a mirror of it."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

from tandem.devices.vulkan.memory import Memory, View


class SharedArray:
    """A host array that shaders read and write. `imported`: they work in place; otherwise `push` and `pull` copy."""

    def __init__(self, memory: Memory, array: npt.NDArray[Any]) -> None:
        self._memory = memory
        self._array = array.reshape(len(array), -1) if array.size else array
        imported = memory.import_host(array)
        self.imported = imported is not None
        self.view: View = imported or memory.host(max(1, array.nbytes)).all()
        weakref.finalize(self, memory.free, self.view.buffer).atexit = False

    def push(self, first: int, count: int) -> None:
        """Rows [first, first + count) of the array, to the mirror."""
        if not self.imported and count:
            self._rows()[first : first + count] = self._array[first : first + count]
            self._memory.counters.copied += count * self._array.strides[0]

    def pull(self, first: int, count: int, columns: int | None = None) -> None:
        """Rows [first, first + count) of the mirror, or their first `columns` elements, to the array."""
        if not self.imported and count:
            rows = np.s_[first : first + count, :columns]
            self._array[rows] = self._rows()[rows]
            self._memory.counters.copied += self._array[rows].nbytes

    def _rows(self) -> npt.NDArray[Any]:
        mapped = self.view.mapped
        assert mapped is not None
        rows: npt.NDArray[Any] = mapped[: self._array.nbytes].view(self._array.dtype).reshape(self._array.shape)
        return rows


class SharedArrays:
    """The host arrays that a device's programs work on; those of equal memory are one, as long as a program has it."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._known: weakref.WeakValueDictionary[tuple[int, int], SharedArray] = weakref.WeakValueDictionary()

    def get(self, array: npt.NDArray[Any]) -> SharedArray:
        # A known array is kept alive by its SharedArray, so nobody else can have its address.
        key = (array.ctypes.data, array.nbytes)
        shared = self._known.get(key)
        if shared is None or not array.nbytes:
            shared = SharedArray(self._memory, array)
            self._known[key] = shared
        return shared
