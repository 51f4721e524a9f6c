"""The KV pages of one group, as graphs read them: KV head by KV head, so that nothing is transposed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tandem.devices.base import KVGroupSpec
from tandem.errors import DeviceError

_DTYPES = {"f32": np.float32, "f16": np.float16}


class OnnxKVPool:
    """keys, values: [layers, kv_heads, pages, page_size, head_dim] of the group's dtype, zero-filled."""

    def __init__(self, device: str, group: KVGroupSpec, pages: int) -> None:
        if group.dtype not in _DTYPES:
            known = " or ".join(_DTYPES)
            raise DeviceError(f"{device}: KV pages of {group.dtype} are nothing that a graph can read; choose {known}")
        shape = (len(group.layers), group.kv_heads, pages, group.page_size, group.head_dim)
        self.group = group
        self.pages = pages
        self.keys: npt.NDArray[Any] = np.zeros(shape, dtype=_DTYPES[group.dtype])
        self.values: npt.NDArray[Any] = np.zeros(shape, dtype=_DTYPES[group.dtype])

    @property
    def bytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def copy_page(self, source: int, target: int) -> None:
        for page in (source, target):
            if not 0 <= page < self.pages:
                raise ValueError(f"page {page} is not one of the pool's pages 0 to {self.pages - 1}")
        self.keys[:, :, target] = self.keys[:, :, source]
        self.values[:, :, target] = self.values[:, :, source]

    def layer(self, layer: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Keys and values of one layer, [kv_heads, pages, page_size, head_dim] each."""
        at = self.group.layers.index(layer)
        return self.keys[at], self.values[at]
