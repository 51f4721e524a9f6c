"""Compute pipelines from the package's SPIR-V, by shader and specialization: made once, and kept between processes."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from tandem.devices.vulkan.binding import constants as vk
from tandem.devices.vulkan.binding.loader import NULL, call, create, ffi, struct
from tandem.devices.vulkan.context import Context
from tandem.devices.vulkan.kept import HEADER, SHADERS, PipelineKey, read_pipelines, write_pipelines
from tandem.errors import DeviceError

_THREADS = 8
# Of those that were used, in the file.
_KEPT = 1024
# Seconds after the last new pipeline until all are written: not while a model's first steps still make some.
_QUIET = 10.0


class Pipelines:
    """`get(shader, constants)`: constants are the values of specialization constants 0, 1, 2, …

    kept: the file of what the driver compiled for processes before this one. What those used is made at once, in
    threads, while weights are loaded; `get` waits for one that is being made. None keeps nothing.
    beside: others whose driver's cache these share, which are only tried.
    """

    def __init__(self, context: Context, kept: Path | None = None, *, beside: Pipelines | None = None) -> None:
        self._context = context
        self._kept = kept
        self._beside = beside
        # Also of modules, whose making is quick.
        self._lock = threading.Lock()
        self._modules: dict[str, Any] = {}
        self._pipelines: dict[PipelineKey, Future[Any]] = {}
        self._used: dict[PipelineKey, None] = {}
        self._workers: ThreadPoolExecutor | None = None
        self._writing: threading.Timer | None = None
        found = read_pipelines(kept, context.gpu) if kept is not None else None
        self._before = found.used if found is not None else []
        self._cache: Any = beside._cache if beside is not None else self._create_cache(found.data if found else b"")
        context.at_close(self.close)
        self.prepare(self._before)

    def get(self, shader: str, constants: tuple[int, ...]) -> Any:
        key = (shader, constants)
        with self._lock:
            pipeline = self._pipelines.get(key)
            # One that no thread has begun is made by whoever needs it.
            mine = pipeline is None or pipeline.cancel()
            if pipeline is None or mine:
                pipeline = self._pipelines[key] = Future()
                pipeline.set_running_or_notify_cancel()
            self._used[key] = None
        if mine:
            try:
                pipeline.set_result(self._create(shader, constants))
            except BaseException as error:
                with self._lock:
                    del self._pipelines[key]
                pipeline.set_exception(error)
                raise
            self._write_later()
        return pipeline.result()

    def prepare(self, keys: Iterable[PipelineKey]) -> None:
        """Makes pipelines in threads; does not wait."""
        with self._lock:
            new = [key for key in dict.fromkeys(keys) if key not in self._pipelines]
            if new and self._workers is None:
                count = min(_THREADS, len(os.sched_getaffinity(0)))
                self._workers = ThreadPoolExecutor(count, thread_name_prefix=f"tandem-{self._context.name}-compile")
            for key in new:
                assert self._workers is not None
                self._pipelines[key] = self._workers.submit(self._create, *key)

    def ready(self, keys: Iterable[PipelineKey]) -> bool:
        """Whether all of those that are being prepared are made, or have failed."""
        with self._lock:
            return all(self._pipelines[key].done() for key in keys)

    def write(self) -> None:
        """Keeps what was compiled, and the list of what was used; nothing where all of it is kept."""
        with self._lock:
            new = set(self._used).difference(self._before)
            used = list(dict.fromkeys([*self._used, *self._before]))[:_KEPT]
        if self._kept is not None and new and write_pipelines(self._kept, used, self._data()):
            self._before = used

    def close(self) -> None:
        """Nothing may use them any more."""
        if self._writing is not None:
            self._writing.cancel()
            self._writing.join()
        if self._workers is not None:
            self._workers.shutdown(cancel_futures=True)
        if self._cache == NULL:
            return
        self._write_quietly()
        self._destroy()
        if self._beside is None:
            self._context.vulkan.vkDestroyPipelineCache(self._context.handle, self._cache, NULL)
        self._cache = NULL

    def _destroy(self) -> None:
        vulkan, handle = self._context.vulkan, self._context.handle
        for pipeline in self._pipelines.values():
            if not pipeline.cancelled() and pipeline.exception() is None:
                vulkan.vkDestroyPipeline(handle, pipeline.result(), NULL)
        for module in self._modules.values():
            vulkan.vkDestroyShaderModule(handle, module, NULL)
        self._pipelines.clear()
        self._modules.clear()

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
            flags=vk.STAGE_REQUIRE_FULL_SUBGROUPS if "_matrix" in shader else 0,
            stage=vk.SHADER_STAGE_COMPUTE,
            module=self._module(shader),
            pName=entry_point,
            pSpecializationInfo=specialization,
        )
        info = struct("VkComputePipelineCreateInfo", stage=stage[0], layout=self._context.pipeline_layout)
        pipeline = ffi.new("VkPipeline*")
        call("vkCreateComputePipelines", handle, self._cache, 1, info, NULL, pipeline)
        return pipeline[0]

    def _module(self, shader: str) -> Any:
        with self._lock:
            if shader not in self._modules:
                try:
                    code = (SHADERS / f"{shader}.spv").read_bytes()
                except OSError as error:
                    raise DeviceError(
                        f"vulkan: the shader {shader}.spv is missing from the package ({error})"
                    ) from None
                words = ffi.new("uint32_t[]", len(code) // 4)
                ffi.memmove(words, code, len(code))
                info = struct("VkShaderModuleCreateInfo", codeSize=len(code), pCode=words)
                handle = self._context.handle
                self._modules[shader] = create("vkCreateShaderModule", "VkShaderModule", handle, info, NULL)
            return self._modules[shader]

    def _create_cache(self, data: bytes) -> Any:
        buffer = ffi.from_buffer(data)
        info = struct("VkPipelineCacheCreateInfo", initialDataSize=len(data), pInitialData=ffi.cast("void*", buffer))
        return create("vkCreatePipelineCache", "VkPipelineCache", self._context.handle, info, NULL)

    def _data(self) -> bytes:
        """The driver's cache as it is now. Nothing of one that is shorter than its header, as the lavapipe of Mesa 26.2
        gives it: then pipelines are made from the list alone.
        """
        size = ffi.new("size_t*")
        call("vkGetPipelineCacheData", self._context.handle, self._cache, size, NULL)
        data = ffi.new("uint8_t[]", max(1, size[0]))
        # Another thread may make one meanwhile: what does not fit is left out, and so is the rest of the error.
        self._context.vulkan.vkGetPipelineCacheData(self._context.handle, self._cache, size, data)
        return bytes(ffi.buffer(data, size[0])) if size[0] >= HEADER.size else b""

    def _write_later(self) -> None:
        if self._kept is None:
            return
        with self._lock:
            if self._writing is not None:
                self._writing.cancel()
            self._writing = threading.Timer(_QUIET, self._write_quietly)
            self._writing.daemon = True
            self._writing.start()

    def _write_quietly(self) -> None:
        # Nobody waits for this; what the driver refuses now it may give at the end.
        with suppress(DeviceError):
            self.write()
