"""Numbers of vulkan_core.h that we use, under its names without the prefix."""

from __future__ import annotations

from enum import IntEnum


def api_version(major: int, minor: int) -> int:
    return (major << 22) | (minor << 12)


class SType(IntEnum):
    """VK_STRUCTURE_TYPE_…, by the struct it goes with."""

    VkApplicationInfo = 0
    VkInstanceCreateInfo = 1
    VkDeviceQueueCreateInfo = 2
    VkDeviceCreateInfo = 3
    VkSubmitInfo = 4
    VkMemoryAllocateInfo = 5
    VkSemaphoreCreateInfo = 9
    VkQueryPoolCreateInfo = 11
    VkBufferCreateInfo = 12
    VkShaderModuleCreateInfo = 16
    VkPipelineCacheCreateInfo = 17
    VkPipelineShaderStageCreateInfo = 18
    VkComputePipelineCreateInfo = 29
    VkPipelineLayoutCreateInfo = 30
    VkDescriptorSetLayoutCreateInfo = 32
    VkDescriptorPoolCreateInfo = 33
    VkDescriptorSetAllocateInfo = 34
    VkWriteDescriptorSet = 35
    VkCommandPoolCreateInfo = 39
    VkCommandBufferAllocateInfo = 40
    VkCommandBufferBeginInfo = 42
    VkMemoryBarrier = 46
    VkPhysicalDeviceFeatures2 = 1000059000
    VkPhysicalDeviceProperties2 = 1000059001
    VkPhysicalDeviceMemoryProperties2 = 1000059006
    VkExternalMemoryBufferCreateInfo = 1000072000
    VkPhysicalDeviceShaderFloat16Int8Features = 1000082000
    VkPhysicalDevice16BitStorageFeatures = 1000083000
    VkPhysicalDeviceSubgroupProperties = 1000094000
    VkDebugUtilsMessengerCreateInfoEXT = 1000128004
    VkPhysicalDeviceMaintenance3Properties = 1000168000
    VkImportMemoryHostPointerInfoEXT = 1000178000
    VkMemoryHostPointerPropertiesEXT = 1000178001
    VkPhysicalDeviceExternalMemoryHostPropertiesEXT = 1000178002
    VkPhysicalDeviceDriverProperties = 1000196000
    VkPhysicalDeviceTimelineSemaphoreFeatures = 1000207000
    VkSemaphoreTypeCreateInfo = 1000207002
    VkTimelineSemaphoreSubmitInfo = 1000207003
    VkSemaphoreWaitInfo = 1000207004
    VkSemaphoreSignalInfo = 1000207005
    VkPhysicalDeviceVulkanMemoryModelFeatures = 1000211000
    VkPhysicalDevicePCIBusInfoPropertiesEXT = 1000212000
    VkPhysicalDeviceSubgroupSizeControlFeatures = 1000225002
    VkPhysicalDeviceMemoryBudgetPropertiesEXT = 1000237000
    VkPhysicalDeviceShaderIntegerDotProductFeatures = 1000280000
    VkPhysicalDeviceCooperativeMatrixFeaturesKHR = 1000506000
    VkCooperativeMatrixPropertiesKHR = 1000506001


# VkResult, by number; VK_INCOMPLETE and the other positive ones are successes of a kind.
RESULTS = {
    0: "VK_SUCCESS",
    1: "VK_NOT_READY",
    2: "VK_TIMEOUT",
    5: "VK_INCOMPLETE",
    -1: "VK_ERROR_OUT_OF_HOST_MEMORY",
    -2: "VK_ERROR_OUT_OF_DEVICE_MEMORY",
    -3: "VK_ERROR_INITIALIZATION_FAILED",
    -4: "VK_ERROR_DEVICE_LOST",
    -5: "VK_ERROR_MEMORY_MAP_FAILED",
    -6: "VK_ERROR_LAYER_NOT_PRESENT",
    -7: "VK_ERROR_EXTENSION_NOT_PRESENT",
    -8: "VK_ERROR_FEATURE_NOT_PRESENT",
    -9: "VK_ERROR_INCOMPATIBLE_DRIVER",
    -10: "VK_ERROR_TOO_MANY_OBJECTS",
    -12: "VK_ERROR_FRAGMENTED_POOL",
    -13: "VK_ERROR_UNKNOWN",
    -1000069000: "VK_ERROR_OUT_OF_POOL_MEMORY",
    -1000072003: "VK_ERROR_INVALID_EXTERNAL_HANDLE",
}
SUCCESS, INCOMPLETE = 0, 5
TIMEOUT = 2
OUT_OF_HOST_MEMORY, OUT_OF_DEVICE_MEMORY, DEVICE_LOST = -1, -2, -4

# VkPhysicalDeviceType
DEVICE_TYPES = {0: "other", 1: "integrated", 2: "discrete", 3: "virtual", 4: "cpu"}

QUEUE_COMPUTE = 2
HEAP_DEVICE_LOCAL = 1
MEMORY_DEVICE_LOCAL, MEMORY_HOST_VISIBLE, MEMORY_HOST_COHERENT, MEMORY_HOST_CACHED = 1, 2, 4, 8
BUFFER_TRANSFER_SRC, BUFFER_TRANSFER_DST, BUFFER_STORAGE, BUFFER_INDIRECT = 1, 2, 0x20, 0x100
EXTERNAL_HOST_ALLOCATION = 0x80
DESCRIPTOR_STORAGE_BUFFER = 7
SHADER_STAGE_COMPUTE = 0x20
STAGE_REQUIRE_FULL_SUBGROUPS = 2
BIND_POINT_COMPUTE = 1
QUERY_TIMESTAMP = 2
QUERY_RESULT_64_BIT, QUERY_RESULT_WAIT = 1, 2
STAGE_BOTTOM = 0x2000
COMMAND_POOL_RESET = 2
STAGE_COMPUTE, STAGE_TRANSFER, STAGE_HOST, STAGE_ALL = 0x800, 0x1000, 0x4000, 0x10000
SEMAPHORE_TIMELINE = 1
ACCESS_SHADER_READ, ACCESS_SHADER_WRITE = 0x20, 0x40
ACCESS_TRANSFER_READ, ACCESS_TRANSFER_WRITE = 0x800, 0x1000
ACCESS_HOST_READ = 0x2000
WHOLE_SIZE = 0xFFFFFFFFFFFFFFFF
SEVERITY_WARNING, SEVERITY_ERROR = 0x100, 0x1000
MESSAGE_VALIDATION = 2
COMPONENT_TYPES = {0: "f16", 1: "f32", 2: "f64", 3: "i8", 4: "i16", 5: "i32", 6: "i64", 7: "u8", 8: "u16", 9: "u32"}
SCOPE_SUBGROUP = 3
