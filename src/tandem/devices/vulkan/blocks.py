"""Loading a block: its matrices packed, its vectors as the shaders use them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tandem.devices.spec import AttentionSpec, BlockSpec, NormSpec, Slice
from tandem.devices.vulkan.matrices import Matrix, Vectors
from tandem.weights.dequantize import dequantize
from tandem.weights.tensor import Tensor

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class VulkanBlock:
    """`work` is the block that is computed: `spec`, or the part of it that `slice` cuts."""

    spec: BlockSpec
    slice: Slice | None
    work: BlockSpec
    matrices: Mapping[str, Matrix]
    vectors: Vectors | None

    @property
    def bytes(self) -> int:
        return sum(matrix.bytes for matrix in self.matrices.values()) + (self.vectors.bytes if self.vectors else 0)


def vector_sizes(spec: BlockSpec, weights: Mapping[str, Tensor]) -> int:
    """Bytes of the vectors that `prepare_vectors` makes."""
    elements = sum(tensor.elements for tensor in weights.values() if len(tensor.shape) == 1)
    if isinstance(spec, AttentionSpec) and spec.rope:
        elements += spec.rope.dims // 2
    return 4 * elements


def prepare_vectors(spec: BlockSpec, weights: Mapping[str, Tensor]) -> dict[str, Float32Array]:
    """By role: norm weights with their offset added, and rope's `frequencies`; Q, K and V biases follow each other."""
    norms: dict[str, NormSpec | None] = {
        "norm": getattr(spec, "norm", None),
        "post_norm": getattr(spec, "post_norm", None),
        "q_norm": getattr(spec, "qk_norm", None),
        "k_norm": getattr(spec, "qk_norm", None),
    }
    vectors = {role: dequantize(tensor) for role, tensor in weights.items() if len(tensor.shape) == 1}
    ready: dict[str, Float32Array] = {
        role: vectors.pop(role) for role in ("q_bias", "k_bias", "v_bias") if role in vectors
    }
    for role, vector in vectors.items():
        norm = norms.get(role)
        ready[role] = vector if norm is None else vector + np.float32(norm.offset)
    if isinstance(spec, AttentionSpec) and spec.rope:
        ready["frequencies"] = spec.rope.inverse_frequencies()
    return ready


def load_block(
    spec: BlockSpec,
    slice: Slice | None,
    work: BlockSpec,
    weights: Mapping[str, Tensor],
    matrix: Callable[[Tensor], Matrix],
    vectors: Callable[[Mapping[str, Float32Array]], Vectors],
) -> VulkanBlock:
    """`matrix` and `vectors` put them on the device."""
    matrices = {role: matrix(tensor) for role, tensor in weights.items() if len(tensor.shape) == 2}
    ready = prepare_vectors(work, weights)
    return VulkanBlock(spec, slice, work, matrices, vectors(ready) if ready else None)
