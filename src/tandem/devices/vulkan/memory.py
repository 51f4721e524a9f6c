"""Device memory: buffers, mapped where the host can reach them, and the way data gets into the others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tandem.devices.vulkan.binding import constants as vk
from tandem.devices.vulkan.binding.loader import NULL, VulkanError, call, create, ffi, struct
from tandem.devices.vulkan.context import Context
from tandem.errors import DeviceError

_USAGE = vk.BUFFER_STORAGE | vk.BUFFER_TRANSFER_SRC | vk.BUFFER_TRANSFER_DST | vk.BUFFER_INDIRECT
_STAGING_BYTES = 16 << 20
_ROUND = 256

Bytes = npt.NDArray[np.uint8]


@dataclass(slots=True, eq=False)
class Buffer:
    """`mapped`: its bytes as the host sees them; None where it cannot. `keeps`: what must outlive an import."""

    handle: Any
    memory: Any
    size: int
    mapped: Bytes | None
    keeps: Any = None

    def all(self) -> View:
        return View(self, 0, self.size)


@dataclass(frozen=True, slots=True)
class View:
    """Bytes [offset, offset + size) of a buffer: what a shader's binding names."""

    buffer: Buffer
    offset: int
    size: int

    def part(self, offset: int, size: int) -> View:
        return View(self.buffer, self.offset + offset, size)

    @property
    def mapped(self) -> Bytes | None:
        mapped = self.buffer.mapped
        return None if mapped is None else mapped[self.offset : self.offset + self.size]


@dataclass(slots=True)
class Counters:
    """Since the device was opened. copied: bytes that the host or a copy command moved; not what shaders write."""

    allocations: int = 0
    allocated: int = 0
    copied: int = 0


class Memory:
    """Allocates from the context's heaps. Device memory is host-visible too where the GPU shares the host's."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._vulkan = context.vulkan
        self._staging: Buffer | None = None
        self._live: dict[int, Buffer] = {}
        self.counters = Counters()
        context.at_close(lambda: self.free_all(list(self._live.values())))

    def device(self, size: int) -> Buffer:
        """For what shaders read and write: in the GPU's own memory; mapped where that is the host's. Zero-filled."""
        local = vk.MEMORY_DEVICE_LOCAL
        mappable = local | vk.MEMORY_HOST_VISIBLE | vk.MEMORY_HOST_COHERENT
        # An APU's driver may show part of its memory as the host's: that is as good.
        shared = vk.MEMORY_HOST_VISIBLE | vk.MEMORY_HOST_COHERENT
        buffer = self._allocate(size, [mappable, shared, local] if self._context.gpu.unified else [local])
        self._clear(buffer)
        return buffer

    def host(self, size: int) -> Buffer:
        """For what the host writes or reads at each step: mapped, cached where there is such memory. Zero-filled."""
        visible = vk.MEMORY_HOST_VISIBLE | vk.MEMORY_HOST_COHERENT
        buffer = self._allocate(size, [visible | vk.MEMORY_HOST_CACHED, visible])
        self._clear(buffer)
        return buffer

    def import_host(self, array: npt.NDArray[Any]) -> View | None:
        """The array's own memory as a buffer, or None where this device cannot have it. The array is kept alive."""
        alignment = self._context.gpu.limits.import_alignment
        if not self._context.can_import or not array.flags.c_contiguous or not array.nbytes:
            return None
        # Whole pages that hold at least one byte of the array: they are mapped, whoever owns the rest.
        start = array.ctypes.data // alignment * alignment
        offset = array.ctypes.data - start
        size = -(-(offset + array.nbytes) // alignment) * alignment
        if offset % self._context.gpu.limits.offset_alignment or size > self._context.gpu.limits.storage_range:
            return None
        pointer = ffi.cast("void*", start)
        properties = struct("VkMemoryHostPointerPropertiesEXT")
        query = self._extension("vkGetMemoryHostPointerPropertiesEXT")
        if query(self._context.handle, vk.EXTERNAL_HOST_ALLOCATION, pointer, properties) != vk.SUCCESS:
            return None
        external = struct("VkExternalMemoryBufferCreateInfo", handleTypes=vk.EXTERNAL_HOST_ALLOCATION)
        handle = self._create_buffer(size, external)
        needs = self._requirements(handle)
        bits = needs.memoryTypeBits & properties.memoryTypeBits
        imported = struct(
            "VkImportMemoryHostPointerInfoEXT", handleType=vk.EXTERNAL_HOST_ALLOCATION, pHostPointer=pointer
        )
        usable = [t for t in self._context.gpu.memory_types if bits >> t.index & 1]
        if not usable or needs.size > size:
            self._vulkan.vkDestroyBuffer(self._context.handle, handle, NULL)
            return None
        info = struct("VkMemoryAllocateInfo", pNext=imported, allocationSize=size, memoryTypeIndex=usable[0].index)
        try:
            memory = create("vkAllocateMemory", "VkDeviceMemory", self._context.handle, info, NULL)
        except VulkanError:
            self._vulkan.vkDestroyBuffer(self._context.handle, handle, NULL)
            return None
        call("vkBindBufferMemory", self._context.handle, handle, memory, 0)
        buffer = self._kept(Buffer(handle, memory, size, None, keeps=array))
        return View(buffer, offset, array.nbytes)

    def write(self, view: View, chunks: Iterable[npt.NDArray[Any]]) -> None:
        """Puts arrays one after another into a view: by pointer, or through staging memory."""
        at = 0
        for chunk in chunks:
            data = np.ascontiguousarray(chunk).reshape(-1).view(np.uint8)
            if at + data.nbytes > view.size:
                raise ValueError(f"{at + data.nbytes} bytes do not fit a view of {view.size}")
            self._write(view.part(at, data.nbytes), data)
            at += data.nbytes
        self.counters.copied += at

    def read(self, view: View) -> Bytes:
        """A copy of a view's bytes; the device must be idle."""
        if view.mapped is not None:
            return view.mapped.copy()
        out = np.empty(view.size, np.uint8)
        staging = self._staged()
        for at in range(0, view.size, staging.size):
            part = view.part(at, min(staging.size, view.size - at))
            self._copy([(part, staging.all())])
            assert staging.mapped is not None
            out[at : at + part.size] = staging.mapped[: part.size]
        return out

    def copy(self, pairs: Iterable[tuple[View, View]]) -> None:
        """Copies views to views of at least their size, on the device; waits."""
        self._copy(list(pairs))

    def free(self, buffer: Buffer) -> None:
        """The device must be idle, or have no work left that names the buffer."""
        if self._live.pop(id(buffer), None) is not None:
            self._vulkan.vkDestroyBuffer(self._context.handle, buffer.handle, NULL)
            self._vulkan.vkFreeMemory(self._context.handle, buffer.memory, NULL)
            buffer.mapped = buffer.keeps = None

    def free_all(self, buffers: Iterable[Buffer]) -> None:
        for buffer in buffers:
            self.free(buffer)

    def _write(self, view: View, data: Bytes) -> None:
        if view.mapped is not None:
            view.mapped[:] = data
            return
        staging = self._staged()
        assert staging.mapped is not None
        for at in range(0, data.nbytes, staging.size):
            part = data[at : at + staging.size]
            staging.mapped[: part.nbytes] = part
            self._copy([(View(staging, 0, part.nbytes), view.part(at, part.nbytes))])

    def _copy(self, pairs: list[tuple[View, View]]) -> None:
        shaders = vk.ACCESS_SHADER_READ | vk.ACCESS_SHADER_WRITE
        transfers = vk.ACCESS_TRANSFER_READ | vk.ACCESS_TRANSFER_WRITE
        before = struct("VkMemoryBarrier", srcAccessMask=shaders | transfers, dstAccessMask=transfers)
        after = struct("VkMemoryBarrier", srcAccessMask=transfers, dstAccessMask=shaders | vk.ACCESS_HOST_READ)
        stages = vk.STAGE_COMPUTE | vk.STAGE_TRANSFER
        barrier = self._vulkan.vkCmdPipelineBarrier

        def record(commands: Any) -> None:
            barrier(commands, stages, vk.STAGE_TRANSFER, 0, 1, before, 0, NULL, 0, NULL)
            for source, target in pairs:
                region = ffi.new("VkBufferCopy*", [source.offset, target.offset, source.size])
                self._vulkan.vkCmdCopyBuffer(commands, source.buffer.handle, target.buffer.handle, 1, region)
            barrier(commands, vk.STAGE_TRANSFER, vk.STAGE_COMPUTE | vk.STAGE_HOST, 0, 1, after, 0, NULL, 0, NULL)

        self._context.run_once(record)

    def _staged(self) -> Buffer:
        if self._staging is None:
            self._staging = self.host(_STAGING_BYTES)
        return self._staging

    def _clear(self, buffer: Buffer) -> None:
        if buffer.mapped is not None:
            buffer.mapped[:] = 0
            return
        self._context.run_once(
            lambda commands: self._vulkan.vkCmdFillBuffer(commands, buffer.handle, 0, vk.WHOLE_SIZE, 0)
        )

    def _allocate(self, size: int, wanted: list[int]) -> Buffer:
        size = max(_ROUND, -(-size // _ROUND) * _ROUND)
        context = self._context
        if size > context.gpu.limits.allocation:
            raise DeviceError(
                f"{context.name}: one allocation of {size:,} bytes is more than the driver gives "
                f"({context.gpu.limits.allocation:,})"
            )
        handle = self._create_buffer(size, NULL)
        needs = self._requirements(handle)
        try:
            memory, flags = self._memory(needs, wanted)
        except DeviceError:
            self._vulkan.vkDestroyBuffer(context.handle, handle, NULL)
            raise
        call("vkBindBufferMemory", context.handle, handle, memory, 0)
        mapped = self._map(memory, size) if flags & vk.MEMORY_HOST_VISIBLE else None
        self.counters.allocations += 1
        self.counters.allocated += size
        return self._kept(Buffer(handle, memory, size, mapped))

    def _memory(self, needs: Any, wanted: list[int]) -> tuple[Any, int]:
        """Memory of the first type that has room, and its properties: of all types with the first of the `wanted` sets,
        then with the next.
        """
        kinds = [
            (kind, flags)
            for flags in wanted
            for kind in self._context.gpu.memory_types
            if needs.memoryTypeBits >> kind.index & 1 and kind.flags & flags == flags
        ]
        for kind, flags in kinds:
            info = struct("VkMemoryAllocateInfo", allocationSize=needs.size, memoryTypeIndex=kind.index)
            try:
                return create("vkAllocateMemory", "VkDeviceMemory", self._context.handle, info, NULL), flags
            except VulkanError as error:
                if error.code not in (vk.OUT_OF_DEVICE_MEMORY, vk.OUT_OF_HOST_MEMORY):
                    raise
        held = sum(buffer.size for buffer in self._live.values())
        raise DeviceError(
            f"{self._context.name}: out of memory: the driver refuses {needs.size:,} bytes beside the {held:,} taken; "
            "choose a smaller context, fewer sequences or a smaller model"
        )

    def _kept(self, buffer: Buffer) -> Buffer:
        self._live[id(buffer)] = buffer
        return buffer

    def _create_buffer(self, size: int, chain: Any) -> Any:
        info = struct("VkBufferCreateInfo", pNext=chain, size=size, usage=_USAGE)
        return create("vkCreateBuffer", "VkBuffer", self._context.handle, info, NULL)

    def _requirements(self, handle: Any) -> Any:
        needs = ffi.new("VkMemoryRequirements*")
        self._vulkan.vkGetBufferMemoryRequirements(self._context.handle, handle, needs)
        return needs

    def _map(self, memory: Any, size: int) -> Bytes:
        pointer = ffi.new("void**")
        call("vkMapMemory", self._context.handle, memory, 0, vk.WHOLE_SIZE, 0, pointer)
        return np.frombuffer(ffi.buffer(pointer[0], size), np.uint8)

    def _extension(self, name: str) -> Any:
        pointer = self._vulkan.vkGetDeviceProcAddr(self._context.handle, ffi.new("char[]", name.encode()))
        return ffi.cast(f"PFN_{name}", pointer)
