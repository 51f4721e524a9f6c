"""The device's one queue: its submissions are numbered on a timeline semaphore, which the host waits for.

A submission may be *held*: it is queued at once and begins when the host lets it, so that what it takes to submit is
over when another device hands on its result.
"""

from __future__ import annotations

import threading
from typing import Any

from tandem.devices.vulkan.binding import constants as vk
from tandem.devices.vulkan.binding.loader import NULL, VulkanError, call, create, ffi, library, struct
from tandem.errors import DeviceError

# A step is milliseconds to seconds; a queue that does not answer within this many ns hangs.
_TIMEOUT = 600 * 10**9
_REASONS = {
    vk.DEVICE_LOST: "the GPU was lost (VK_ERROR_DEVICE_LOST): its driver reset it; see dmesg",
    vk.OUT_OF_DEVICE_MEMORY: "out of memory: the driver has none left to run a step; close what else uses the GPU, or "
    "choose a smaller context, fewer sequences or a smaller model",
    vk.OUT_OF_HOST_MEMORY: "out of memory: the driver has no host memory left to run a step",
    vk.TIMEOUT: f"the GPU did not finish within {_TIMEOUT // 10**9} seconds",
}


class Queue:
    """Raises DeviceError with one sentence for whatever a submission ends with; a GPU that was lost once stays lost."""

    def __init__(self, device: Any, family: int, name: str) -> None:
        self._device = device
        self._name = name
        handle = ffi.new("VkQueue*")
        library().vkGetDeviceQueue(device, family, 0, handle)
        self._queue = handle[0]
        # Vulkan wants one thread at a time on a queue.
        self._lock = threading.Lock()
        self._lost: str | None = None
        self._submitted = 0
        self._held = 0
        self._done, self._gate = (self._semaphore() for _ in range(2))
        # Made once: a step fills in numbers.
        self._commands = ffi.new("VkCommandBuffer[1]")
        self._stages = ffi.new("VkPipelineStageFlags[1]", [vk.STAGE_ALL])
        self._semaphores = ffi.new("VkSemaphore[2]", [self._done, self._gate])
        self._values = ffi.new("uint64_t[2]")
        self._timeline = struct(
            "VkTimelineSemaphoreSubmitInfo",
            signalSemaphoreValueCount=1,
            pSignalSemaphoreValues=self._values,
            pWaitSemaphoreValues=self._values + 1,
        )
        self._info = struct(
            "VkSubmitInfo",
            pNext=self._timeline,
            commandBufferCount=1,
            pCommandBuffers=self._commands,
            signalSemaphoreCount=1,
            pSignalSemaphores=self._semaphores,
            pWaitSemaphores=self._semaphores + 1,
            pWaitDstStageMask=self._stages,
        )

    @property
    def lost(self) -> bool:
        return self._lost is not None

    def submit(self, commands: Any, *, held: bool = False) -> int:
        """Queues a recorded command buffer behind what is queued; returns its number.

        held: it begins once `release` is called, which must follow, whatever happens.
        """
        with self._lock:
            if self._lost is not None:
                raise DeviceError(self._lost)
            self._commands[0] = commands
            self._values[0] = self._submitted + 1
            self._values[1] = self._held + held
            self._info.waitSemaphoreCount = self._timeline.waitSemaphoreValueCount = int(held)
            try:
                call("vkQueueSubmit", self._queue, 1, self._info, NULL)
            except VulkanError as error:
                raise self._explained(error) from None
            self._submitted += 1
            self._held += held
            return self._submitted

    def release(self) -> None:
        """Lets the last submission that was held begin."""
        call("vkSignalSemaphore", self._device, struct("VkSemaphoreSignalInfo", semaphore=self._gate, value=self._held))

    def wait(self, number: int) -> None:
        """Blocks, without the GIL, until a submission and all before it have ended."""
        semaphores, values = ffi.new("VkSemaphore[1]", [self._done]), ffi.new("uint64_t[1]", [number])
        info = struct("VkSemaphoreWaitInfo", semaphoreCount=1, pSemaphores=semaphores, pValues=values)
        try:
            call("vkWaitSemaphores", self._device, info, _TIMEOUT)
        except VulkanError as error:
            raise self._explained(error) from None

    def close(self) -> None:
        """The device must be idle."""
        for semaphore in (self._done, self._gate):
            library().vkDestroySemaphore(self._device, semaphore, NULL)

    def _explained(self, error: VulkanError) -> DeviceError:
        if error.code not in _REASONS:
            return error
        message = f"{self._name}: {_REASONS[error.code]}"
        if error.code == vk.DEVICE_LOST:
            self._lost = message
        return DeviceError(message)

    def _semaphore(self) -> Any:
        kind = struct("VkSemaphoreTypeCreateInfo", semaphoreType=vk.SEMAPHORE_TIMELINE)
        info = struct("VkSemaphoreCreateInfo", pNext=kind)
        return create("vkCreateSemaphore", "VkSemaphore", self._device, info, NULL)
