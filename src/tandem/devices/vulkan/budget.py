"""How much memory a GPU may have: what its driver's budgets leave, and on an AMD APU what the kernel lets it take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tandem.devices.base import MemorySpace
from tandem.devices.vulkan.probe import Gpu, Heap, memory_of


@dataclass(frozen=True, slots=True)
class KernelMemory:
    """Bytes that amdgpu counts: GTT is system memory that the GPU uses as its own, the larger part on an APU; VRAM is
    its own, on an APU what the firmware set aside for it.
    """

    gtt_total: int
    gtt_used: int
    vram_total: int
    vram_used: int

    @property
    def total(self) -> int:
        return self.gtt_total + self.vram_total

    @property
    def free(self) -> int:
        return max(0, self.total - self.gtt_used - self.vram_used)


def kernel_memory(pci: str | None, root: Path = Path("/")) -> KernelMemory | None:
    """Of the GPU at an address of the PCI bus; None where the kernel does not tell, as for all but amdgpu's."""
    if pci is None:
        return None
    folder = root / "sys/bus/pci/devices" / pci
    try:
        gtt, vram = (
            [int((folder / f"mem_info_{kind}_{what}").read_text()) for what in ("total", "used")]
            for kind in ("gtt", "vram")
        )
    except (OSError, ValueError):
        return None
    return KernelMemory(*gtt, *vram)


def memory_spaces(gpu: Gpu, root: Path = Path("/")) -> tuple[MemorySpace, ...]:
    """The memory that the device's buffers come from, then the others. Where nobody tells what is free, all of it is.

    On a GPU that shares the host's memory all heaps are one space, of which the kernel may let it have a part.
    """
    heaps, _ = memory_of(gpu.handle, gpu.extensions)
    if not gpu.unified:
        ordered = sorted(heaps, key=lambda heap: (not heap.device_local, -heap.bytes_total))
        return tuple(
            MemorySpace("device" if heap.device_local else "bus", heap.bytes_total, _free(heap), host_mapped=False)
            for heap in ordered
        )
    visible = [heap for heap in heaps if heap.host_visible]
    total, free = sum(heap.bytes_total for heap in visible), sum(_free(heap) for heap in visible)
    kernel = kernel_memory(gpu.pci, root)
    if kernel is not None:
        total, free = min(total, kernel.total), min(free, kernel.free)
    return (MemorySpace("device", total, free, host_mapped=True),)


def _free(heap: Heap) -> int:
    return heap.bytes_total if heap.bytes_free is None else heap.bytes_free
