"""Loading a block: its matrices packed, its vectors as the shaders use them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tandem.devices.spec import AttentionSpec, BlockSpec, NormSpec, Slice
from tandem.devices.vulkan.matrices import Matrix, Vectors
from tandem.weights.dequantize import dequantize
from tandem.weights.tensor import Tensor

Float32Array = npt.NDArray[np.float32]

# Roles whose products are one: they take the same rows.
_PRODUCTS = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "gate_up", "up": "gate_up"}


@dataclass(frozen=True, slots=True)
class VulkanBlock:
    """`work` is the block that is computed: `spec`, or the part of it that `slice` cuts.

    matrices: by product, those whose outputs follow each other in its result.
    """

    spec: BlockSpec
    slice: Slice | None
    work: BlockSpec
    matrices: Mapping[str, tuple[Matrix, ...]]
    vectors: Vectors | None

    @property
    def bytes(self) -> int:
        matrices = (matrix.bytes for each in self.matrices.values() for matrix in each)
        return sum(matrices) + (self.vectors.bytes if self.vectors else 0)


def grouped(weights: Mapping[str, Tensor]) -> dict[str, list[list[Tensor]]]:
    """The matrices of each product; each is the tensors of one type that follow each other."""
    products: dict[str, list[list[Tensor]]] = {}
    for role in ("embedding", "q", "k", "v", "o", "gate", "up", "down", "output"):
        if role in weights:
            tensor = weights[role]
            matrices = products.setdefault(_PRODUCTS.get(role, role), [])
            if matrices and matrices[-1][0].type is tensor.type:
                matrices[-1].append(tensor)
            else:
                matrices.append([tensor])
    return products


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
    matrix: Callable[[Sequence[Tensor]], Matrix],
    vectors: Callable[[Mapping[str, Float32Array]], Vectors],
) -> VulkanBlock:
    """`matrix` and `vectors` put them on the device."""
    matrices = {name: tuple(matrix(tensors) for tensors in each) for name, each in grouped(weights).items()}
    ready = prepare_vectors(work, weights)
    return VulkanBlock(spec, slice, work, matrices, vectors(ready) if ready else None)
