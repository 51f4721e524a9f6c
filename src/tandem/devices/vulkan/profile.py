"""Where a step's time goes on the GPU: a timestamp after every dispatch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tandem.devices.vulkan.binding import constants as vk
from tandem.devices.vulkan.binding.loader import NULL, call, create, ffi, struct
from tandem.devices.vulkan.context import Context
from tandem.devices.vulkan.dispatch import Dispatch
from tandem.errors import DeviceError


@dataclass(frozen=True, slots=True)
class DispatchTime:
    """One dispatch of a program, in order. weight_bytes: of packed weights that it reads; 0 for other shaders."""

    shader: str
    constants: tuple[int, ...]
    seconds: float
    weight_bytes: int


class Timestamps:
    """Queries for the begin of a recording and the end of each of its dispatches."""

    def __init__(self, context: Context, dispatches: Sequence[Dispatch]) -> None:
        self._context = context
        self._dispatches = dispatches
        if not context.gpu.limits.timestamp_ns:
            raise DeviceError(
                f"{context.name}: {context.gpu.name} keeps no time on its queues; there is no profile of it"
            )
        info = struct("VkQueryPoolCreateInfo", queryType=vk.QUERY_TIMESTAMP, queryCount=len(dispatches) + 1)
        self.queries: Any = create("vkCreateQueryPool", "VkQueryPool", context.handle, info, NULL)

    def read(self) -> list[DispatchTime]:
        """What the last run took."""
        ticks = np.zeros(len(self._dispatches) + 1, np.uint64)
        target = ffi.cast("void*", ticks.ctypes.data)
        flags = vk.QUERY_RESULT_64_BIT | vk.QUERY_RESULT_WAIT
        handle = self._context.handle
        call("vkGetQueryPoolResults", handle, self.queries, 0, ticks.size, ticks.nbytes, target, 8, flags)
        seconds = np.diff(ticks).astype(np.float64) * self._context.gpu.limits.timestamp_ns * 1e-9
        return [
            DispatchTime(each.shader, each.constants, float(took), _weight_bytes(each))
            for each, took in zip(self._dispatches, seconds, strict=True)
        ]

    def close(self) -> None:
        self._context.vulkan.vkDestroyQueryPool(self._context.handle, self.queries, NULL)


def _weight_bytes(dispatch: Dispatch) -> int:
    if dispatch.shader not in ("product", "product_int"):
        return 0
    return sum(use.view.size for use in dispatch.uses if use.binding == 1)
