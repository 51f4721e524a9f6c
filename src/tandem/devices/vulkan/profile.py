"""Where a step's time goes on the GPU: a timestamp after every dispatch, and what each must read and multiply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tandem.devices.batch import Batch
from tandem.devices.spec import AttentionSpec, BlockSpec
from tandem.devices.vulkan.binding import constants as vk
from tandem.devices.vulkan.binding.loader import NULL, call, create, ffi, struct
from tandem.devices.vulkan.blocks import VulkanBlock
from tandem.devices.vulkan.context import Context
from tandem.devices.vulkan.dispatch import Dispatch
from tandem.devices.vulkan.kv import VulkanKVPool
from tandem.devices.vulkan.matrices import Matrix
from tandem.devices.vulkan.memory import View
from tandem.errors import DeviceError
from tandem.weights.tensor import TensorType


class Timestamps:
    """Queries for the begin of a recording and the end of each of its `count` dispatches."""

    def __init__(self, context: Context, count: int) -> None:
        self._context = context
        self._count = count
        if not context.gpu.limits.timestamp_ns:
            raise DeviceError(
                f"{context.name}: {context.gpu.name} keeps no time on its queues; there is no profile of it"
            )
        info = struct("VkQueryPoolCreateInfo", queryType=vk.QUERY_TIMESTAMP, queryCount=count + 1)
        self.queries: Any = create("vkCreateQueryPool", "VkQueryPool", context.handle, info, NULL)

    def read(self) -> list[float]:
        """Seconds that each dispatch of the last run took."""
        ticks = np.zeros(self._count + 1, np.uint64)
        target = ffi.cast("void*", ticks.ctypes.data)
        flags = vk.QUERY_RESULT_64_BIT | vk.QUERY_RESULT_WAIT
        handle = self._context.handle
        call("vkGetQueryPoolResults", handle, self.queries, 0, ticks.size, ticks.nbytes, target, 8, flags)
        seconds: list[float] = (np.diff(ticks) * (self._context.gpu.limits.timestamp_ns * 1e-9)).tolist()
        return seconds

    def close(self) -> None:
        self._context.vulkan.vkDestroyQueryPool(self._context.handle, self.queries, NULL)


class Costs:
    """What dispatches read and multiply at least, told by what they bind: each packed weight once, and of the KV pages
    those that the batch attends to. Norms, activations and the stream between them are left out.
    """

    def __init__(self, blocks: Sequence[VulkanBlock], pools: Mapping[int, VulkanKVPool], batch: Batch) -> None:
        self._batch = batch
        self._matrices: dict[View, tuple[Matrix, int]] = {
            chunk.view: (matrix, chunk.rows)
            for block in blocks
            for each in block.matrices.values()
            for matrix in each
            for chunk in matrix.chunks
        }
        self._pages = {
            view: (spec, pool)
            for spec in (block.work for block in blocks)
            if isinstance(spec, AttentionSpec)
            for pool in [pools[spec.layer]]
            for view in pool.chunks(spec.layer)
        }

    def of(self, dispatch: Dispatch) -> tuple[int, int]:
        """(bytes, multiply-adds)."""
        rows = self._batch.n_samples if dispatch.grid.sampled else self._batch.n_rows
        read, macs = 0, 0
        for use in dispatch.uses:
            if use.view in self._matrices and use.access == "read":
                matrix, outputs = self._matrices[use.view]
                if dispatch.block == "embed":  # a row of it for each of the batch's
                    read += rows * matrix.row_words * 4
                else:
                    read += outputs * matrix.row_words * 4
                    macs += rows * outputs * matrix.columns
        attended = next((self._pages[use.view] for use in dispatch.uses if use.view in self._pages), None)
        if attended is not None and dispatch.shader.startswith("attention"):
            keys_read, keys_scored = self._attended(attended[0].window)
            spec, pool = attended
            read += keys_read * pool.page_bytes // pool.group.page_size
            macs += 2 * keys_scored * spec.heads * spec.head_dim
        return read, macs

    def _attended(self, window: int | None) -> tuple[int, int]:
        """Positions that are read, each once a sequence; and how often one meets a row."""
        _, count, length, _ = self._batch.sequences[: self._batch.n_sequences, :4].T
        reach = self._batch.rows[: self._batch.n_rows, 1] + 1
        if window is not None:
            length, reach = np.minimum(length, window - 1 + count), np.minimum(reach, window)
        return int(length.sum()), int(reach.sum())


def block_label(spec: BlockSpec) -> str:
    """`attention 3`, `ffn 0`, `head`: a block's kind and layer."""
    kind = type(spec).__name__.removesuffix("Spec").lower()
    layer = getattr(spec, "layer", None)
    return kind if layer is None else f"{kind} {layer}"


def variant(dispatch: Dispatch) -> str:
    """A shader's specialization for a reader: of products the weights' type, then the rows and outputs that they take
    at once and the lanes that share an output, or the shape of cooperative matrices.
    """
    values = list(dispatch.constants[1:])
    if values and dispatch.shader.startswith(("product", "embed")):
        names = {kind.ggml_id: kind.name for kind in TensorType}
        return " x".join(str(value) for value in (names.get(values[0], values[0]), *values[1:]))
    return " ".join(map(str, values))
