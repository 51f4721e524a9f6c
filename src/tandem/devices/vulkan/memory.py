"""Device memory: buffers, mapped where the host can reach them, and the way data gets into them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from tandem.devices.vulkan.binding import constants as vk
from tandem.devices.vulkan.binding.loader import NULL, VulkanError, call, create, ffi, struct
from tandem.devices.vulkan.context import Context
from tandem.devices.vulkan.staging import SLOT_BYTES, SLOTS, STAGING_BYTES, Bytes, Staging, record_copies
from tandem.errors import DeviceError

_USAGE = vk.BUFFER_STORAGE | vk.BUFFER_TRANSFER_SRC | vk.BUFFER_TRANSFER_DST | vk.BUFFER_INDIRECT
_ROUND = 256
# What host arrays are aligned to, to be imported.
_PAGE = 4096
# Parts that may wait to be filled in.
_WAITING = 256

# So many bytes, and what writes them.
Part = tuple[int, Callable[[Bytes], object]]


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
    """Since the device was opened. allocated: bytes; host_allocated: those of them that are the host's, where a GPU has
    memory of its own. copied: bytes that the host or a copy command moved; not what shaders write. whole_rows: of
    logits, that came whole though candidates could have been asked for.
    """

    allocations: int = 0
    allocated: int = 0
    host_allocated: int = 0
    copied: int = 0
    whole_rows: int = 0


def rounded(size: int) -> int:
    """Bytes of an allocation for `size` bytes."""
    return max(_ROUND, -(-size // _ROUND) * _ROUND)


class Memory:
    """Allocates from the context's heaps. Device memory is host-visible too where the GPU shares the host's; where it
    does not, a ring of staging buffers is made at once.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._vulkan = context.vulkan
        self._live: dict[int, Buffer] = {}
        self._workers: ThreadPoolExecutor | None = None
        self._filling: deque[Future[None]] = deque()
        self.counters = Counters()
        context.at_close(self._close)
        self._staging = None if context.gpu.unified else Staging(context, self.host(STAGING_BYTES))
        self._imports = self._can_import()

    def planned_host(self, arrays: Iterable[int]) -> int:
        """Bytes that are taken for the device's life and to work on host arrays of so many bytes each: mirrors of those
        that cannot be imported.
        """
        mirrors = sum(rounded(size) for size in arrays if not self.importable(size))
        return mirrors + (0 if self._staging is None else STAGING_BYTES)

    def importable(self, size: int) -> bool:
        """Whether page-aligned host arrays of so many bytes can be worked on in place."""
        limits = self._context.gpu.limits
        return (
            self._imports and 0 < -(-size // limits.import_alignment) * limits.import_alignment <= limits.storage_range
        )

    def device(self, size: int, *, clear: bool = True) -> Buffer:
        """For what shaders read and write: in the GPU's own memory; mapped where that is the host's. Zero-filled,
        unless `clear` is off as all of it will be written.
        """
        local = vk.MEMORY_DEVICE_LOCAL
        mappable = local | vk.MEMORY_HOST_VISIBLE | vk.MEMORY_HOST_COHERENT
        # An APU's driver may show part of its memory as the host's: that is as good.
        shared = vk.MEMORY_HOST_VISIBLE | vk.MEMORY_HOST_COHERENT
        buffer = self._allocate(size, [mappable, shared, local] if self._context.gpu.unified else [local])
        if clear:
            self._clear(buffer)
        return buffer

    def host(self, size: int, *, near: bool = False) -> Buffer:
        """For what the host writes or reads at each step: mapped, cached where there is such memory. Zero-filled.

        near: the host only writes, and every shader reads: in the GPU's own memory where a window to it is open, since
        each of a step's hundreds of dispatches would wait for the bus.
        """
        visible = vk.MEMORY_HOST_VISIBLE | vk.MEMORY_HOST_COHERENT
        first = visible | (vk.MEMORY_DEVICE_LOCAL if near else vk.MEMORY_HOST_CACHED)
        buffer = self._allocate(size, [first, visible])
        if not self._context.gpu.unified:
            self.counters.host_allocated += buffer.size
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

    def fill(self, view: View, parts: Sequence[Part]) -> None:
        """Has parts written one after another into a view, each straight to where it belongs or into a staging buffer;
        several at a time, on threads, also of other views: `settle` waits for them. A part has at most SLOT_BYTES.
        """
        for target, fill in self._placed(view, parts):
            # What waits keeps what it reads in memory.
            while len(self._filling) >= _WAITING:
                self._filling.popleft().result()
            self._filling.append(self._pool().submit(self._put, target, fill))

    def settle(self) -> None:
        """Waits until all that was filled is in place or on its way before whatever is submitted later. Raises
        DeviceError where that failed.
        """
        while self._filling:
            self._filling.popleft().result()

    def write(self, view: View, chunks: Iterable[npt.NDArray[Any]]) -> None:
        """Puts arrays one after another into a view; they are there, or on their way, when this returns."""
        pieces = [np.ascontiguousarray(chunk).reshape(-1).view(np.uint8) for chunk in chunks]
        cut = [piece[at : at + SLOT_BYTES] for piece in pieces for at in range(0, piece.nbytes, SLOT_BYTES)]
        placed = self._placed(view, [(piece.nbytes, partial(_assign, piece)) for piece in cut])
        if len(placed) > 1:
            list(self._pool().map(self._put, *zip(*placed, strict=True)))
        for target, fill in placed if len(placed) == 1 else []:
            self._put(target, fill)

    def read(self, view: View) -> Bytes:
        """A copy of a view's bytes; the device must be idle."""
        self.settle()
        if view.mapped is not None:
            return view.mapped.copy()
        out = np.empty(view.size, np.uint8)
        assert self._staging is not None
        self._staging.fetch(view, out)
        return out

    def copy(self, pairs: Iterable[tuple[View, View]]) -> None:
        """Copies views to views of at least their size, on the device; waits."""
        self.settle()
        ready = list(pairs)
        self._context.run_once(lambda commands: record_copies(self._context, commands, ready))

    def free(self, buffer: Buffer) -> None:
        """The device must be idle, or have no work left that names the buffer."""
        if self._live.pop(id(buffer), None) is not None:
            # What is still filled in may be this.
            wait(list(self._filling))
            if buffer.mapped is None and self._staging is not None:
                with suppress(DeviceError):  # a lost GPU copies nothing any more
                    self._staging.drain()
            self._vulkan.vkDestroyBuffer(self._context.handle, buffer.handle, NULL)
            self._vulkan.vkFreeMemory(self._context.handle, buffer.memory, NULL)
            buffer.mapped = buffer.keeps = None

    def free_all(self, buffers: Iterable[Buffer]) -> None:
        for buffer in buffers:
            self.free(buffer)

    def _placed(self, view: View, parts: Sequence[Part]) -> list[tuple[View, Callable[[Bytes], object]]]:
        starts = np.cumsum([0, *(size for size, _ in parts)]).tolist()
        if starts[-1] > view.size:
            raise ValueError(f"{starts[-1]} bytes do not fit a view of {view.size}")
        self.counters.copied += starts[-1]
        return [(view.part(at, size), fill) for at, (size, fill) in zip(starts, parts, strict=False)]

    def _put(self, target: View, fill: Callable[[Bytes], object]) -> None:
        if target.mapped is not None:
            fill(target.mapped)
        else:
            assert self._staging is not None and target.size <= SLOT_BYTES
            self._staging.send(target, fill)

    def _pool(self) -> ThreadPoolExecutor:
        if self._workers is None:
            count = min(SLOTS, len(os.sched_getaffinity(0)))
            self._workers = ThreadPoolExecutor(count, thread_name_prefix=f"tandem-{self._context.name}-load")
        return self._workers

    def _can_import(self) -> bool:
        """Whether the driver takes host memory as ours is: tried on a page."""
        raw = np.zeros(2 * _PAGE, np.uint8)
        start = -raw.ctypes.data % _PAGE
        view = self.import_host(raw[start : start + _PAGE])
        if view is not None:
            self.free(view.buffer)
        return view is not None

    def _close(self) -> None:
        if self._workers is not None:
            self._workers.shutdown()
        self.free_all(list(self._live.values()))

    def _clear(self, buffer: Buffer) -> None:
        if buffer.mapped is not None:
            buffer.mapped[:] = 0
            return
        self._context.run_once(
            lambda commands: self._vulkan.vkCmdFillBuffer(commands, buffer.handle, 0, vk.WHOLE_SIZE, 0)
        )

    def _allocate(self, size: int, wanted: list[int]) -> Buffer:
        size = rounded(size)
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


def _assign(source: Bytes, target: Bytes) -> None:
    target[:] = source
