"""Compute pipelines, made on first use from the package's SPIR-V and kept by shader and specialization."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tandem.devices.vulkan.binding import constants as vk
from tandem.devices.vulkan.binding.loader import NULL, call, create, ffi, struct
from tandem.devices.vulkan.context import Context
from tandem.errors import DeviceError

_SHADERS = Path(__file__).parent / "shaders"


class Pipelines:
    """`get(shader, constants)`: constants are the values of specialization constants 0, 1, 2, …"""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._modules: dict[str, Any] = {}
        self._pipelines: dict[tuple[str, tuple[int, ...]], Any] = {}
        context.at_close(self._destroy)

    def get(self, shader: str, constants: tuple[int, ...]) -> Any:
        key = (shader, constants)
        if key not in self._pipelines:
            self._pipelines[key] = self._create(shader, constants)
        return self._pipelines[key]

    def _create(self, shader: str, constants: tuple[int, ...]) -> Any:
        handle = self._context.handle
        entries = ffi.new("VkSpecializationMapEntry[]", [(i, 4 * i, 4) for i in range(len(constants))])
        values = ffi.new("uint32_t[]", list(constants))
        specialization = ffi.new(
            "VkSpecializationInfo*", [len(constants), entries, 4 * len(constants), ffi.cast("void*", values)]
        )
        entry_point = ffi.new("char[]", b"main")
        stage = struct(
            "VkPipelineShaderStageCreateInfo",
            # Whoever uses cooperative matrices must ask for whole subgroups.
            flags=vk.STAGE_REQUIRE_FULL_SUBGROUPS if shader.startswith("product_matrix") else 0,
            stage=vk.SHADER_STAGE_COMPUTE,
            module=self._module(shader),
            pName=entry_point,
            pSpecializationInfo=specialization,
        )
        info = struct("VkComputePipelineCreateInfo", stage=stage[0], layout=self._context.pipeline_layout)
        pipeline = ffi.new("VkPipeline*")
        call("vkCreateComputePipelines", handle, NULL, 1, info, NULL, pipeline)
        return pipeline[0]

    def _module(self, shader: str) -> Any:
        if shader not in self._modules:
            try:
                code = (_SHADERS / f"{shader}.spv").read_bytes()
            except OSError as error:
                raise DeviceError(f"vulkan: the shader {shader}.spv is missing from the package ({error})") from None
            words = ffi.new("uint32_t[]", len(code) // 4)
            ffi.memmove(words, code, len(code))
            info = struct("VkShaderModuleCreateInfo", codeSize=len(code), pCode=words)
            self._modules[shader] = create("vkCreateShaderModule", "VkShaderModule", self._context.handle, info, NULL)
        return self._modules[shader]

    def _destroy(self) -> None:
        vulkan, handle = self._context.vulkan, self._context.handle
        for pipeline in self._pipelines.values():
            vulkan.vkDestroyPipeline(handle, pipeline, NULL)
        for module in self._modules.values():
            vulkan.vkDestroyShaderModule(handle, module, NULL)
