"""The forms in which a provider takes weights, and packing a block's tensors into them.

Every packed type of GGUF is w = (q - 2^(bits-1)) * scale + offset over blocks of 16 or 32 columns, with q of 4 or 8 bits. A
provider that multiplies such blocks gets the file's own values: as they are, except that an offset (types with minima)
is rounded once to float32, and becomes a small product of its own with the sums of the row's blocks. Others get float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from tandem.devices.onnx.graph import Array
from tandem.devices.slicing import slice_spec, slice_weights
from tandem.devices.spec import AttentionSpec, BlockSpec, CombineSpec, EmbedSpec, FFNSpec, HeadSpec, NormSpec, Slice
from tandem.devices.weights_check import check_weights, expected_shapes
from tandem.weights.dequantize import dequantize
from tandem.weights.tensor import Tensor, TensorType

Float32Array = npt.NDArray[np.float32]
Kind = Literal["nbits", "dequantize", "float32"]


@dataclass(frozen=True, slots=True)
class Blocks:
    """Weights of `bits` bits in blocks of `block` columns that share a scale."""

    bits: int
    block: int


@dataclass(frozen=True, slots=True)
class Forms:
    """What a provider multiplies by itself; found by `probe_forms`, never by its name.

    nbits: by MatMulNBits. dequantize: by DequantizeLinear of blocks, then MatMul. What is in neither becomes float32.
    accuracy_level: of MatMulNBits; 1 keeps activations in float32, 4 lets them become int8 by blocks.
    """

    nbits: frozenset[Blocks] = frozenset()
    dequantize: frozenset[Blocks] = frozenset()
    accuracy_level: int = 1

    def of(self, type: TensorType) -> Kind:
        blocks = BLOCKS.get(type)
        if blocks is None:
            return "float32"
        if blocks in self.nbits:
            return "nbits"
        return "dequantize" if blocks in self.dequantize else "float32"


FLOAT32 = Forms()

# The blocks in which a provider would take a packed type; F32, F16 and BF16 have none.
BLOCKS: dict[TensorType, Blocks] = {
    TensorType.Q4_0: Blocks(4, 32),
    TensorType.Q4_1: Blocks(4, 32),
    TensorType.Q4_K: Blocks(4, 32),
    TensorType.Q5_0: Blocks(8, 32),
    TensorType.Q5_1: Blocks(8, 32),
    TensorType.Q5_K: Blocks(8, 32),
    TensorType.Q8_0: Blocks(8, 32),
    TensorType.Q6_K: Blocks(8, 16),
}


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """y = W x, W of [outputs, columns]. arrays: initializers by the suffix of their names; see `pack_matrix`."""

    outputs: int
    columns: int
    kind: Kind
    blocks: Blocks | None
    arrays: Mapping[str, Array]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())


@dataclass(frozen=True, slots=True)
class PackedBlock:
    """A block's weights in a provider's forms, packed once for all graphs that are made of it.

    work: what is computed: `spec`, or the part of it that `slice` is. vectors: norms (offset added) and biases, float32.
    said: role to "q4_0 as 4-bit blocks of 32, MatMulNBits" and the like, for the log.
    """

    spec: BlockSpec
    slice: Slice | None
    work: BlockSpec
    forms: Forms
    matrices: Mapping[str, PackedMatrix]
    vectors: Mapping[str, Float32Array]
    said: Mapping[str, str]

    @property
    def nbytes(self) -> int:
        """One copy; what a session keeps beside depends on its provider."""
        return sum(each.nbytes for each in (*self.matrices.values(), *self.vectors.values()))


def pack_block(
    spec: BlockSpec, weights: Mapping[str, Tensor], forms: Forms, slice: Slice | None = None
) -> PackedBlock:
    """Raises ModelFileError for weights that do not fit, DeviceError for a slice that cannot be cut."""
    check_weights(spec, weights)
    work = spec
    if slice is not None:
        work = slice_spec(spec, slice)
        weights = slice_weights(spec, weights, slice)
    matrices, vectors, said = {}, {}, {}
    for role, tensor in weights.items():
        if len(tensor.shape) == 1:
            vectors[role] = _norm_offset(work, role) + dequantize(tensor)
            continue
        form = FLOAT32 if isinstance(work, EmbedSpec) else forms
        matrices[role] = pack_matrix(tensor, form, transposed=not isinstance(work, EmbedSpec))
        said[role] = f"{tensor.type.name} as {describe(tensor.type, form)}"
    return PackedBlock(spec, slice, work, forms, matrices, vectors, said)


def packed_bytes(spec: BlockSpec, weights: Mapping[str, Tensor], forms: Forms) -> int:
    """`PackedBlock.nbytes` of a whole block, or of a slice's spec and weights, from types and shapes alone."""
    total = 0
    for role, shape in expected_shapes(spec).items():
        elements = math.prod(shape)
        form = FLOAT32 if isinstance(spec, EmbedSpec) else forms
        if len(shape) == 1 or form.of(weights[role].type) == "float32":
            total += 4 * elements
            continue
        blocks = BLOCKS[weights[role].type]
        floats = 2 if weights[role].type in _WITH_OFFSET else 1
        total += elements * blocks.bits // 8 + 4 * floats * (elements // blocks.block)
    return total


def describe(type: TensorType, forms: Forms) -> str:
    """The form that a type takes, in words."""
    kind = forms.of(type)
    if kind == "float32":
        return "float32"
    blocks = BLOCKS[type]
    operator = "MatMulNBits" if kind == "nbits" else "DequantizeLinear"
    return f"{blocks.bits}-bit blocks of {blocks.block}, {operator}"


def pack_matrix(tensor: Tensor, forms: Forms, *, transposed: bool = True) -> PackedMatrix:
    """The tensor in the form that `forms` gives its type.

    nbits: "" [outputs, columns / block, block * bits / 8] uint8, "scales" [outputs, columns / block] float32.
    dequantize: "" [outputs, columns] int8, or two 4-bit values a byte in [outputs, columns / 2]; "scales" as above.
    Types with minima add "offsets" [columns / block, outputs] float32.
    float32: "" [columns, outputs], or without `transposed` [outputs, columns].
    """
    outputs, columns = tensor.shape
    kind = forms.of(tensor.type)
    if kind == "float32":
        values = dequantize(tensor)
        return PackedMatrix(outputs, columns, kind, None, {"": np.ascontiguousarray(values.T) if transposed else values})
    raise NotImplementedError


_WITH_OFFSET = frozenset({TensorType.Q4_1, TensorType.Q5_1, TensorType.Q4_K, TensorType.Q5_K})


def _norm_offset(spec: BlockSpec, role: str) -> np.float32:
    """What a norm adds to its weight; 0 for biases."""
    norms: dict[str, NormSpec | None] = {}
    match spec:
        case AttentionSpec():
            norms = {"norm": spec.norm, "q_norm": spec.qk_norm, "k_norm": spec.qk_norm, "post_norm": spec.post_norm}
        case FFNSpec():
            norms = {"norm": spec.norm, "post_norm": spec.post_norm}
        case HeadSpec():
            norms = {"norm": spec.norm}
        case CombineSpec():
            norms = {"post_norm": spec.post_norm}
    norm = norms.get(role)
    return np.float32(0 if norm is None else norm.offset)
