"""The KV pages of one group, in device memory: for each layer, up to four bindings of whole pages."""

from __future__ import annotations

import weakref

from tandem.devices.base import KVGroupSpec
from tandem.devices.vulkan.context import Context
from tandem.devices.vulkan.memory import Memory, View
from tandem.errors import DeviceError

MAX_CHUNKS = 4


class VulkanKVPool:
    """Raises DeviceError for a layout that the shaders do not have, or more than four bindings can hold."""

    def __init__(self, context: Context, memory: Memory, group: KVGroupSpec, pages: int) -> None:
        multiple = 32 if group.dtype == "q8_0" else 4
        if group.head_dim % multiple:
            raise DeviceError(
                f"{context.name}: KV pages of {group.dtype} need heads of a multiple of {multiple} elements, "
                f"not {group.head_dim}"
            )
        self.group = group
        self.pages = pages
        self.page_bytes = group.page_bytes // len(group.layers)
        limits = context.gpu.limits
        most = min(limits.storage_range, limits.allocation) // 256 * 256 // self.page_bytes
        if pages > most * MAX_CHUNKS:
            raise DeviceError(
                f"{context.name}: {pages:,} KV pages of {self.page_bytes:,} bytes a layer are more than {MAX_CHUNKS} "
                f"bindings of {limits.storage_range:,} bytes hold; at most {most * MAX_CHUNKS:,} pages: "
                "take a smaller context or fewer sequences"
            )
        self.chunk_pages = max(1, min(pages, most))
        self._memory = memory
        self._layers: dict[int, list[View]] = {
            layer: [
                memory.device(min(self.chunk_pages, pages - first) * self.page_bytes).all()
                for first in range(0, pages, self.chunk_pages)
            ]
            for layer in group.layers
        }
        buffers = [view.buffer for views in self._layers.values() for view in views]
        weakref.finalize(self, memory.free_all, buffers).atexit = False

    @property
    def bytes(self) -> int:
        return sum(view.size for views in self._layers.values() for view in views)

    @property
    def constants(self) -> tuple[int, int, int]:
        """What kv.glsl is specialized for."""
        dtypes = {"f16": 0, "f32": 1, "q8_0": 2}
        return self.group.head_dim, dtypes[self.group.dtype], 1 if self.chunk_pages == self.pages else MAX_CHUNKS

    def chunks(self, layer: int) -> list[View]:
        """The layer's bindings, always four: those that are not needed repeat the first."""
        views = self._layers[layer]
        return views + views[:1] * (MAX_CHUNKS - len(views))

    def copy_page(self, source: int, target: int) -> None:
        for page in (source, target):
            if not 0 <= page < self.pages:
                raise ValueError(f"page {page} is not one of the pool's pages 0 to {self.pages - 1}")
        self._memory.copy([(self._page(layer, source), self._page(layer, target)) for layer in self.group.layers])

    def _page(self, layer: int, page: int) -> View:
        chunk = self._layers[layer][page // self.chunk_pages]
        return chunk.part(page % self.chunk_pages * self.page_bytes, self.page_bytes)
