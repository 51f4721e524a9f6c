"""A logical device: its queue, its command and descriptor layouts, and the checks on what we need of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from tandem.devices.vulkan.binding import constants as vk
from tandem.devices.vulkan.binding.loader import NULL, call, create, ffi, library, struct
from tandem.devices.vulkan.instance import Instance
from tandem.devices.vulkan.probe import CooperativeMatrix, Gpu, chained
from tandem.devices.vulkan.queue import Queue
from tandem.errors import DeviceError

# Every shader of ours has one set of storage buffers and one block of push constants.
BINDINGS = 8
PUSH_BYTES = 128
SHARED_BYTES = 16 << 10
INVOCATIONS = 256
# M, N and K of a cooperative matrix.
Size = tuple[int, int, int]
# What products with cooperative matrices need beyond that, where a device has it.
MATRIX_SHARED_BYTES = 32 << 10


class Context:
    """Opens a GPU. Raises DeviceError where it lacks what every shader needs, naming it."""

    def __init__(self, instance: Instance, gpu: Gpu, name: str) -> None:
        self.instance = instance
        self.gpu = gpu
        self.name = name
        _check(gpu, name)
        self.vulkan = library()
        self.can_import = gpu.limits.import_alignment > 0
        wanted = ["VK_EXT_external_memory_host", "VK_EXT_memory_budget"]
        wanted += ["VK_KHR_shader_integer_dot_product"] if gpu.features.integer_dot else []
        wanted += ["VK_KHR_cooperative_matrix", "VK_EXT_subgroup_size_control"] if has_matrices(gpu) else []
        self._extensions = [each for each in wanted if each in gpu.extensions]
        self.handle = self._create_device()
        assert gpu.queue_family is not None
        self.queue = Queue(self.handle, gpu.queue_family, name)
        # Vulkan wants one thread at a time on a command pool. Re-entrant: what the garbage collector frees, it may
        # free while we record.
        self._lock = threading.RLock()
        self._closers: list[Callable[[], None]] = []
        self._descriptor_pools: set[Any] = set()
        pool = struct("VkCommandPoolCreateInfo", flags=vk.COMMAND_POOL_RESET, queueFamilyIndex=gpu.queue_family)
        self._commands = create("vkCreateCommandPool", "VkCommandPool", self.handle, pool, NULL)
        self.set_layout, self.pipeline_layout = self._layouts()
        self._once = self.command_buffer()

    def command_buffer(self) -> Any:
        """A new command buffer, in the initial state."""
        info = struct("VkCommandBufferAllocateInfo", commandPool=self._commands, commandBufferCount=1)
        with self._lock:
            return create("vkAllocateCommandBuffers", "VkCommandBuffer", self.handle, info)

    def descriptor_pool(self, sets: int) -> Any:
        """A pool for `sets` descriptor sets."""
        size = ffi.new("VkDescriptorPoolSize*", [vk.DESCRIPTOR_STORAGE_BUFFER, sets * BINDINGS])
        info = struct("VkDescriptorPoolCreateInfo", maxSets=sets, poolSizeCount=1, pPoolSizes=size)
        pool = create("vkCreateDescriptorPool", "VkDescriptorPool", self.handle, info, NULL)
        self._descriptor_pools.add(pool)
        return pool

    def release(self, commands: Any, pool: Any) -> None:
        """Frees a command buffer and the pool of its descriptor sets; nothing once the context is closed."""
        with self._lock:
            if pool in self._descriptor_pools:
                self.vulkan.vkFreeCommandBuffers(
                    self.handle, self._commands, 1, ffi.new("VkCommandBuffer[1]", [commands])
                )
                self._descriptor_pools.remove(pool)
                self.vulkan.vkDestroyDescriptorPool(self.handle, pool, NULL)

    def record(self, commands: Any, write: Callable[[Any], None]) -> None:
        """Records a command buffer anew: `write(commands)` adds its commands."""
        with self._lock:
            call("vkBeginCommandBuffer", commands, struct("VkCommandBufferBeginInfo"))
            write(commands)
            call("vkEndCommandBuffer", commands)

    def run(self, commands: Any) -> None:
        """Submits a recorded command buffer and waits for its end. Raises DeviceError as the queue does."""
        self.finish(self.queue.submit(commands))

    def finish(self, number: int) -> None:
        """Waits for a submission. Raises DeviceError as the queue does, and with what validation layers complain of."""
        self.queue.wait(number)
        self.raise_complaints()

    def run_once(self, write: Callable[[Any], None]) -> None:
        """Records commands, runs them and waits: for copies at load, not for steps."""
        with self._lock:
            self.record(self._once, write)
            self.run(self._once)

    def raise_complaints(self) -> None:
        """Under validation: raises DeviceError with what the layers had to say since the last time."""
        if self.instance.messages:
            said = " | ".join(self.instance.messages)
            self.instance.messages.clear()
            raise DeviceError(f"{self.name}: the validation layers complain: {said}")

    def at_close(self, closer: Callable[[], None]) -> None:
        """`closer` runs when the context closes, the last one first."""
        self._closers.append(closer)

    def close(self) -> None:
        if self.handle == NULL:
            return
        self.vulkan.vkDeviceWaitIdle(self.handle)
        for closer in reversed(self._closers):
            closer()
        for pool in self._descriptor_pools:
            self.vulkan.vkDestroyDescriptorPool(self.handle, pool, NULL)
        self._descriptor_pools.clear()
        self.vulkan.vkDestroyPipelineLayout(self.handle, self.pipeline_layout, NULL)
        self.vulkan.vkDestroyDescriptorSetLayout(self.handle, self.set_layout, NULL)
        self.queue.close()
        self.vulkan.vkDestroyCommandPool(self.handle, self._commands, NULL)
        self.vulkan.vkDestroyDevice(self.handle, NULL)
        self.handle = NULL

    def _create_device(self) -> Any:
        priority = ffi.new("float[1]", [1.0])
        queue = struct(
            "VkDeviceQueueCreateInfo",
            queueFamilyIndex=self.gpu.queue_family,
            queueCount=1,
            pQueuePriorities=priority,
        )
        names = [ffi.new("char[]", name.encode()) for name in self._extensions]
        array = ffi.new("char*[]", names)
        optional: list[Any] = [struct("VkPhysicalDeviceTimelineSemaphoreFeatures", timelineSemaphore=1)]
        if self.gpu.features.integer_dot:
            optional.append(struct("VkPhysicalDeviceShaderIntegerDotProductFeatures", shaderIntegerDotProduct=1))
        if has_matrices(self.gpu):
            optional.append(struct("VkPhysicalDeviceCooperativeMatrixFeaturesKHR", cooperativeMatrix=1))
            has = self.gpu.features
            half = {"shaderFloat16": int(has.float16), "shaderInt8": int(has.int8)}
            optional.append(struct("VkPhysicalDeviceShaderFloat16Int8Features", **half))
            # With the memory model on, atomics of any shader need its device scope.
            model = {"vulkanMemoryModel": 1, "vulkanMemoryModelDeviceScope": 1}
            optional.append(struct("VkPhysicalDeviceVulkanMemoryModelFeatures", **model))
            optional.append(struct("VkPhysicalDeviceSubgroupSizeControlFeatures", computeFullSubgroups=1))
        features = chained("VkPhysicalDeviceFeatures2", optional)
        info = struct(
            "VkDeviceCreateInfo",
            pNext=features,
            queueCreateInfoCount=1,
            pQueueCreateInfos=queue,
            enabledExtensionCount=len(names),
            ppEnabledExtensionNames=array,
        )
        return create("vkCreateDevice", "VkDevice", self.gpu.handle, info, NULL)

    def _layouts(self) -> tuple[Any, Any]:
        bindings = ffi.new(
            "VkDescriptorSetLayoutBinding[]",
            [
                {
                    "binding": index,
                    "descriptorType": vk.DESCRIPTOR_STORAGE_BUFFER,
                    "descriptorCount": 1,
                    "stageFlags": vk.SHADER_STAGE_COMPUTE,
                }
                for index in range(BINDINGS)
            ],
        )
        info = struct("VkDescriptorSetLayoutCreateInfo", bindingCount=BINDINGS, pBindings=bindings)
        sets = create("vkCreateDescriptorSetLayout", "VkDescriptorSetLayout", self.handle, info, NULL)
        ranges = ffi.new("VkPushConstantRange[]", [{"stageFlags": vk.SHADER_STAGE_COMPUTE, "size": PUSH_BYTES}])
        array = ffi.new("VkDescriptorSetLayout[]", [sets])
        info = struct(
            "VkPipelineLayoutCreateInfo",
            setLayoutCount=1,
            pSetLayouts=array,
            pushConstantRangeCount=1,
            pPushConstantRanges=ranges,
        )
        return sets, create("vkCreatePipelineLayout", "VkPipelineLayout", self.handle, info, NULL)


def has_matrices(gpu: Gpu) -> bool:
    """Whether any product takes cooperative matrices on this GPU."""
    return bool(matrix_shape(gpu) or byte_matrix_shape(gpu))


def matrix_shape(gpu: Gpu) -> CooperativeMatrix | None:
    """The shape that product_matrix.comp takes on this GPU: float16 to float32, 16 x 16 x 16 if there is a choice."""
    shapes = _matrix_shapes(gpu, gpu.features.float16, ("f16", "f16", "f32", "f32"))
    fitting = [shape for shape in shapes if 64 % shape.m == 32 % shape.n == 32 % shape.k == 0]
    return max(
        fitting, key=lambda shape: ((shape.m, shape.n, shape.k) == (16, 16, 16), shape.m * shape.n), default=None
    )


def byte_matrix_shape(gpu: Gpu, rows: int = 16) -> CooperativeMatrix | None:
    """The shape that product_matrix_int8.comp takes on this GPU for so many rows and more: signed bytes to int32, the
    largest.
    """
    shapes = _matrix_shapes(gpu, gpu.features.int8, ("i8", "i8", "i32", "i32"))
    fitting = [shape for shape in shapes if 16 % shape.m == rows % shape.n == 32 % shape.k == 0]
    return max(fitting, key=lambda shape: (shape.m * shape.n, shape.k), default=None)


def matrix_shapes(gpu: Gpu) -> tuple[Size, ...]:
    """All shapes that product_matrix.comp may take on this GPU, the usual one first; empty where it takes none."""
    usual = matrix_shape(gpu)
    shapes = _matrix_shapes(gpu, gpu.features.float16, ("f16", "f16", "f32", "f32"))
    return tuple(dict.fromkeys(shape.size for shape in (usual, *shapes))) if usual else ()


def byte_matrix_shapes(gpu: Gpu) -> tuple[Size, ...]:
    """The same for product_matrix_int8.comp."""
    usual = byte_matrix_shape(gpu)
    shapes = _matrix_shapes(gpu, gpu.features.int8, ("i8", "i8", "i32", "i32"))
    return tuple(dict.fromkeys(shape.size for shape in (usual, *shapes))) if usual else ()


def _matrix_shapes(gpu: Gpu, elements: bool, types: tuple[str, str, str, str]) -> list[CooperativeMatrix]:
    """elements: whether shaders may compute with the type that is multiplied."""
    features = gpu.features
    usable = elements and features.memory_model and features.full_subgroups
    if not usable or gpu.limits.shared_memory < MATRIX_SHARED_BYTES:
        return []
    return [
        shape
        for shape in features.cooperative_matrix
        if shape.subgroup and (shape.a, shape.b, shape.c, shape.result) == types
    ]


def missing(gpu: Gpu) -> list[str]:
    """What the GPU lacks of what every shader needs; empty for one that can be used."""
    limits = gpu.limits
    needs = [
        (gpu.api_supported, f"Vulkan 1.2 (its driver has {gpu.api}): upgrade the driver"),
        (gpu.queue_family is not None, "a compute queue"),
        (gpu.features.timeline_semaphore, "timeline semaphores, a part of Vulkan 1.2: upgrade the driver"),
        (
            limits.storage_buffers >= BINDINGS,
            f"{BINDINGS} storage buffers per shader (not {limits.storage_buffers})",
        ),
        (limits.push_constants >= PUSH_BYTES, f"{PUSH_BYTES} bytes of push constants"),
        (limits.shared_memory >= SHARED_BYTES, f"{SHARED_BYTES} bytes of shared memory"),
        (limits.invocations >= INVOCATIONS, f"workgroups of {INVOCATIONS} invocations"),
    ]
    return [what for present, what in needs if not present]


def _check(gpu: Gpu, name: str) -> None:
    lacks = missing(gpu)
    if lacks:
        raise DeviceError(f"{name}: {gpu.name} cannot be used: it lacks {'; '.join(lacks)}")
