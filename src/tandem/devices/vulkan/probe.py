"""What a physical device is and can do, read before anything is created on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tandem.devices.vulkan.binding import constants as vk
from tandem.devices.vulkan.binding.loader import ffi, library, listed, struct, text
from tandem.devices.vulkan.instance import Instance


@dataclass(frozen=True, slots=True)
class Heap:
    """bytes_free: what the driver's budget leaves this process; None where it does not tell."""

    bytes_total: int
    bytes_free: int | None
    device_local: bool
    host_visible: bool


@dataclass(frozen=True, slots=True)
class MemoryType:
    index: int
    heap: int
    flags: int


@dataclass(frozen=True, slots=True)
class CooperativeMatrix:
    """One shape that the device multiplies: [m, k] by [k, n], element types by name. subgroup: by one subgroup."""

    m: int
    n: int
    k: int
    a: str
    b: str
    c: str
    result: str
    subgroup: bool

    @property
    def size(self) -> tuple[int, int, int]:
        return self.m, self.n, self.k


@dataclass(frozen=True, slots=True)
class Features:
    """Optional abilities; the device works without each of them."""

    integer_dot: bool
    storage_16bit: bool
    float16: bool
    int8: bool
    memory_model: bool
    full_subgroups: bool
    timeline_semaphore: bool
    memory_budget: bool
    external_host_memory: bool
    cooperative_matrix: tuple[CooperativeMatrix, ...]


@dataclass(frozen=True, slots=True)
class GpuLimits:
    """Bytes, except for counts. import_alignment: of host pointers; 0 where they cannot be imported.

    timestamp_ns: of one tick; 0 where the queues keep no time.
    """

    storage_range: int
    allocation: int
    allocations: int
    offset_alignment: int
    storage_buffers: int
    shared_memory: int
    push_constants: int
    invocations: int
    groups: tuple[int, int, int]
    import_alignment: int
    subgroup: int
    timestamp_ns: float


@dataclass(frozen=True, slots=True)
class Gpu:
    """unified: the device's memory is the host's, so the host reads and writes all of it by pointer. pci: its address
    as sysfs writes it, where the driver tells. identity: vendor, device and what the driver tells its pipeline caches
    apart by.
    """

    index: int
    handle: Any
    name: str
    type: str
    driver: str
    api: str
    api_supported: bool
    extensions: frozenset[str]
    features: Features
    limits: GpuLimits
    heaps: tuple[Heap, ...]
    memory_types: tuple[MemoryType, ...]
    queue_family: int | None
    pci: str | None
    identity: tuple[int, int, bytes]

    @property
    def unified(self) -> bool:
        return self.type in ("integrated", "cpu")


def probe_all(instance: Instance) -> list[Gpu]:
    """Every device, numbered as `vulkan:N` numbers them: real GPUs before software, otherwise the loader's order."""
    found = [_probe(instance, handle) for handle in instance.physical_devices()]
    found.sort(key=lambda gpu: gpu.type == "cpu")
    return [replace(gpu, index=index) for index, gpu in enumerate(found)]


def _probe(instance: Instance, handle: Any) -> Gpu:
    vulkan = library()
    extensions = frozenset(
        listed(
            vulkan.vkEnumerateDeviceExtensionProperties,
            "VkExtensionProperties",
            handle,
            ffi.NULL,
            convert=lambda each: text(each.extensionName),
        )
    )
    importable = "VK_EXT_external_memory_host" in extensions
    on_bus = "VK_EXT_pci_bus_info" in extensions
    driver, maintenance, subgroup, host, bus = (
        struct(name)
        for name in (
            "VkPhysicalDeviceDriverProperties",
            "VkPhysicalDeviceMaintenance3Properties",
            "VkPhysicalDeviceSubgroupProperties",
            "VkPhysicalDeviceExternalMemoryHostPropertiesEXT",
            "VkPhysicalDevicePCIBusInfoPropertiesEXT",
        )
    )
    chain = [driver, maintenance, subgroup, *([host] if importable else []), *([bus] if on_bus else [])]
    properties = chained("VkPhysicalDeviceProperties2", chain)
    vulkan.vkGetPhysicalDeviceProperties2(handle, properties)
    basic = properties.properties
    limits = basic.limits
    heaps, types = memory_of(handle, extensions)
    return Gpu(
        index=-1,
        handle=handle,
        name=text(basic.deviceName),
        type=vk.DEVICE_TYPES.get(basic.deviceType, "other"),
        driver=f"{text(driver.driverName)} {text(driver.driverInfo)}".strip(),
        api=f"{basic.apiVersion >> 22}.{basic.apiVersion >> 12 & 0x3FF}",
        api_supported=basic.apiVersion >= vk.api_version(1, 2),
        extensions=extensions,
        features=_features(instance, handle, extensions),
        limits=GpuLimits(
            storage_range=limits.maxStorageBufferRange,
            allocation=maintenance.maxMemoryAllocationSize,
            allocations=limits.maxMemoryAllocationCount,
            offset_alignment=limits.minStorageBufferOffsetAlignment,
            storage_buffers=min(limits.maxPerStageDescriptorStorageBuffers, limits.maxDescriptorSetStorageBuffers),
            shared_memory=limits.maxComputeSharedMemorySize,
            push_constants=limits.maxPushConstantsSize,
            invocations=min(limits.maxComputeWorkGroupInvocations, limits.maxComputeWorkGroupSize[0]),
            groups=tuple(limits.maxComputeWorkGroupCount),
            import_alignment=host.minImportedHostPointerAlignment if importable else 0,
            subgroup=subgroup.subgroupSize,
            timestamp_ns=limits.timestampPeriod if limits.timestampComputeAndGraphics else 0.0,
        ),
        heaps=heaps,
        memory_types=types,
        queue_family=_compute_family(handle),
        pci=f"{bus.pciDomain:04x}:{bus.pciBus:02x}:{bus.pciDevice:02x}.{bus.pciFunction:x}" if on_bus else None,
        identity=(basic.vendorID, basic.deviceID, bytes(basic.pipelineCacheUUID)),
    )


def chained(name: str, structs: Sequence[Any]) -> Any:
    """A struct with `structs` hung on its pNext chain; keep them alive as long as it is used."""
    head = struct(name)
    last = head
    for each in structs:
        last.pNext = each
        last = each
    return head


def memory_of(handle: Any, extensions: frozenset[str]) -> tuple[tuple[Heap, ...], tuple[MemoryType, ...]]:
    """Heaps, with what is free of them now, and memory types."""
    budgeted = "VK_EXT_memory_budget" in extensions
    budget = struct("VkPhysicalDeviceMemoryBudgetPropertiesEXT")
    properties = chained("VkPhysicalDeviceMemoryProperties2", [budget] if budgeted else [])
    library().vkGetPhysicalDeviceMemoryProperties2(handle, properties)
    memory = properties.memoryProperties
    types = tuple(
        MemoryType(index, memory.memoryTypes[index].heapIndex, memory.memoryTypes[index].propertyFlags)
        for index in range(memory.memoryTypeCount)
    )
    heaps = tuple(
        Heap(
            bytes_total=memory.memoryHeaps[index].size,
            bytes_free=max(0, budget.heapBudget[index] - budget.heapUsage[index]) if budgeted else None,
            device_local=bool(memory.memoryHeaps[index].flags & vk.HEAP_DEVICE_LOCAL),
            host_visible=any(kind.heap == index and kind.flags & vk.MEMORY_HOST_VISIBLE for kind in types),
        )
        for index in range(memory.memoryHeapCount)
    )
    return heaps, types


def _features(instance: Instance, handle: Any, extensions: frozenset[str]) -> Features:
    half, storage, dot, timeline, memory, full, matrix = (
        struct(name)
        for name in (
            "VkPhysicalDeviceShaderFloat16Int8Features",
            "VkPhysicalDevice16BitStorageFeatures",
            "VkPhysicalDeviceShaderIntegerDotProductFeatures",
            "VkPhysicalDeviceTimelineSemaphoreFeatures",
            "VkPhysicalDeviceVulkanMemoryModelFeatures",
            "VkPhysicalDeviceSubgroupSizeControlFeatures",
            "VkPhysicalDeviceCooperativeMatrixFeaturesKHR",
        )
    )
    chain = [half, storage, timeline, memory]
    chain += [dot] if "VK_KHR_shader_integer_dot_product" in extensions else []
    chain += [full] if "VK_EXT_subgroup_size_control" in extensions else []
    chain += [matrix] if "VK_KHR_cooperative_matrix" in extensions else []
    features = chained("VkPhysicalDeviceFeatures2", chain)
    library().vkGetPhysicalDeviceFeatures2(handle, features)
    return Features(
        integer_dot=bool(dot.shaderIntegerDotProduct),
        storage_16bit=bool(storage.storageBuffer16BitAccess),
        float16=bool(half.shaderFloat16),
        int8=bool(half.shaderInt8),
        memory_model=bool(memory.vulkanMemoryModel and memory.vulkanMemoryModelDeviceScope),
        full_subgroups=bool(full.computeFullSubgroups),
        timeline_semaphore=bool(timeline.timelineSemaphore),
        memory_budget="VK_EXT_memory_budget" in extensions,
        external_host_memory="VK_EXT_external_memory_host" in extensions,
        cooperative_matrix=_matrix_shapes(instance, handle) if matrix.cooperativeMatrix else (),
    )


def _matrix_shapes(instance: Instance, handle: Any) -> tuple[CooperativeMatrix, ...]:
    def init(each: Any) -> None:
        each.sType = vk.SType.VkCooperativeMatrixPropertiesKHR

    def convert(each: Any) -> CooperativeMatrix:
        kinds = (each.AType, each.BType, each.CType, each.ResultType)
        a, b, c, result = (vk.COMPONENT_TYPES.get(kind, "other") for kind in kinds)
        subgroup = each.scope == vk.SCOPE_SUBGROUP
        return CooperativeMatrix(each.MSize, each.NSize, each.KSize, a, b, c, result, subgroup)

    shapes = listed(
        instance.function("vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR"),
        "VkCooperativeMatrixPropertiesKHR",
        handle,
        convert=convert,
        init=init,
    )
    return tuple(dict.fromkeys(shapes))


def _compute_family(handle: Any) -> int | None:
    """A queue family that computes: the first, which also draws where the device can."""
    flags = listed(
        library().vkGetPhysicalDeviceQueueFamilyProperties,
        "VkQueueFamilyProperties",
        handle,
        convert=lambda each: each.queueFlags,
    )
    return next((index for index, each in enumerate(flags) if each & vk.QUEUE_COMPUTE), None)
