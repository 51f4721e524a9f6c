"""The step's buffers as the GPU sees them: the host's own memory where it can be imported, or else a mirror of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tandem.devices.vulkan.memory import Memory, View

Float32Array = npt.NDArray[np.float32]


class SharedArray:
    """A host array that shaders read and write. `imported`: they work in place; otherwise `push` and `pull` copy."""

    def __init__(self, memory: Memory, array: npt.NDArray[Any]) -> None:
        self._memory = memory
        self._array = array.reshape(len(array), -1) if array.size else array
        imported = memory.import_host(array)
        self.imported = imported is not None
        self.view: View = imported or memory.host(max(1, array.nbytes)).all()

    def push(self, first: int, count: int) -> None:
        """Rows [first, first + count) of the array, to the mirror."""
        if not self.imported and count:
            self._rows()[first : first + count] = self._array[first : first + count]
            self._memory.counters.copied += count * self._array.strides[0]

    def pull(self, first: int, count: int) -> None:
        """Rows [first, first + count) of the mirror, to the array."""
        if not self.imported and count:
            self._array[first : first + count] = self._rows()[first : first + count]
            self._memory.counters.copied += count * self._array.strides[0]

    def _rows(self) -> Float32Array:
        mapped = self.view.mapped
        assert mapped is not None
        floats: Float32Array = mapped[: self._array.nbytes].view(np.float32).reshape(self._array.shape)
        return floats

    def free(self) -> None:
        self._memory.free(self.view.buffer)
