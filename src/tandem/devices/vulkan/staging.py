"""How data gets into memory that the host cannot map: a ring of host buffers, several of them on their way at once."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tandem.devices.vulkan.binding import constants as vk
from tandem.devices.vulkan.binding.loader import NULL, ffi, struct
from tandem.devices.vulkan.context import Context

if TYPE_CHECKING:
    from tandem.devices.vulkan.memory import Buffer, View

SLOTS = 8
SLOT_BYTES = 2 << 20
# What a GPU takes that does not share the host's memory.
STAGING_BYTES = SLOTS * SLOT_BYTES

Bytes = npt.NDArray[np.uint8]


class Slot:
    """One buffer of the ring, and the commands that copy it. number: of its last submission; 0 before the first."""

    def __init__(self, context: Context, view: View) -> None:
        self._context = context
        self._commands = context.command_buffer()
        self.view = view
        self.number = 0

    def send(self, target: View, fill: Callable[[Bytes], object]) -> None:
        """Fills the buffer once its last copy has ended, and begins to copy it into `target`."""
        self.wait()
        mapped = self.view.mapped
        assert mapped is not None
        fill(mapped[: target.size])
        self._copy(self.view.part(0, target.size), target)

    def fetch(self, source: View, target: Bytes) -> None:
        """Copies at most SLOT_BYTES out; waits for them."""
        self.wait()
        self._copy(source, self.view)
        self.wait()
        mapped = self.view.mapped
        assert mapped is not None
        target[:] = mapped[: source.size]

    def wait(self) -> None:
        if self.number:
            self._context.finish(self.number)

    def _copy(self, source: View, target: View) -> None:
        self._context.record(
            self._commands, lambda commands: record_copies(self._context, commands, [(source, target)])
        )
        self.number = self._context.queue.submit(self._commands)


class Staging:
    """Any number of threads may send; each fills a slot of its own. What is sent is on the device before anything that
    is submitted later runs; `drain` waits for it.
    """

    def __init__(self, context: Context, buffer: Buffer) -> None:
        self._slots = [Slot(context, buffer.all().part(index * SLOT_BYTES, SLOT_BYTES)) for index in range(SLOTS)]
        self._free: SimpleQueue[Slot] = SimpleQueue()
        for slot in self._slots:
            self._free.put(slot)

    def send(self, target: View, fill: Callable[[Bytes], object]) -> None:
        """`fill` writes the bytes of `target`, at most SLOT_BYTES."""
        slot = self._free.get()
        try:
            slot.send(target, fill)
        finally:
            self._free.put(slot)

    def fetch(self, source: View, target: Bytes) -> None:
        slot = self._free.get()
        try:
            for at in range(0, source.size, SLOT_BYTES):
                part = source.part(at, min(SLOT_BYTES, source.size - at))
                slot.fetch(part, target[at : at + part.size])
        finally:
            self._free.put(slot)

    def drain(self) -> None:
        """Waits for everything that was sent before."""
        for slot in self._slots:
            slot.wait()


def record_copies(context: Context, commands: Any, pairs: list[tuple[View, View]]) -> None:
    """Copies views to views of at least their size, ordered after and before whatever else the queue does."""
    shaders = vk.ACCESS_SHADER_READ | vk.ACCESS_SHADER_WRITE
    transfers = vk.ACCESS_TRANSFER_READ | vk.ACCESS_TRANSFER_WRITE
    before = struct("VkMemoryBarrier", srcAccessMask=shaders | transfers, dstAccessMask=transfers)
    after = struct("VkMemoryBarrier", srcAccessMask=transfers, dstAccessMask=shaders | transfers | vk.ACCESS_HOST_READ)
    stages = vk.STAGE_COMPUTE | vk.STAGE_TRANSFER
    barrier = context.vulkan.vkCmdPipelineBarrier
    barrier(commands, stages, vk.STAGE_TRANSFER, 0, 1, before, 0, NULL, 0, NULL)
    for source, target in pairs:
        region = ffi.new("VkBufferCopy*", [source.offset, target.offset, source.size])
        context.vulkan.vkCmdCopyBuffer(commands, source.buffer.handle, target.buffer.handle, 1, region)
    barrier(commands, vk.STAGE_TRANSFER, stages | vk.STAGE_HOST, 0, 1, after, 0, NULL, 0, NULL)
