"""The forms in which a provider takes weights, and packing a block's tensors into them.

A packed type of GGUF is integers of 4 or 8 bits with a scale for each 16 or 32 columns (`tandem.weights.integers`). A
provider that multiplies such blocks gets the file's own integers and scales; a type's offsets become a small product of
their own, with the sums of the row's blocks. A provider that has only wider integers gets the same values in those.
Others get float32. So the values are the file's in every form, but for offsets that are rounded once to float32.
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
from tandem.weights.integers import INTEGER_FORMS, integers
from tandem.weights.tensor import Tensor, TensorType

Float32Array = npt.NDArray[np.float32]
Operator = Literal["MatMulNBits", "DequantizeLinear", "GatherBlockQuantized", "MatMul", "Gather"]


@dataclass(frozen=True, slots=True)
class Blocks:
    """Integers of `bits` bits, `block` columns of which share a scale."""

    bits: int
    block: int


@dataclass(frozen=True, slots=True)
class Forms:
    """What a provider computes with by itself: found by `probe_forms`, never by its name.

    nbits: what MatMulNBits takes. dequantize: what DequantizeLinear before MatMul takes, 8 bits. gather: what
    GatherBlockQuantized takes. All else becomes float32.
    accuracy_level: of MatMulNBits; 1 keeps activations in float32, 4 lets them become int8 by blocks. ONNX Runtime's
    CPU provider has no 8-bit kernel for 1: it unpacks the matrix in every run, ten times slower than float32 weights.
    """

    nbits: frozenset[Blocks] = frozenset()
    dequantize: frozenset[Blocks] = frozenset()
    gather: frozenset[Blocks] = frozenset()
    accuracy_level: int = 1

    def of(self, type: TensorType, *, gathered: bool = False) -> Form:
        """The form of a matrix of `type`; `gathered`: of an embedding."""
        form = INTEGER_FORMS.get(type)
        if form is not None:
            own, wide = Blocks(form.bits, form.block), Blocks(8, form.block)
            operators: list[tuple[Operator, frozenset[Blocks]]]
            operators = [("MatMulNBits", self.nbits), ("DequantizeLinear", self.dequantize)]
            if gathered:
                operators = [("GatherBlockQuantized", self.gather)]
            for operator, takes in operators:
                for blocks in (own, wide):
                    if blocks in takes:
                        return Form(operator, blocks, form.offsets)
        return Form("Gather" if gathered else "MatMul", None)


@dataclass(frozen=True, slots=True)
class Form:
    """How a matrix is held, and what computes with it. blocks: None for float32. offsets: whether blocks have them."""

    operator: Operator
    blocks: Blocks | None
    offsets: bool = False

    def __str__(self) -> str:
        """As the log says it: `4-bit blocks of 32 (MatMulNBits)`."""
        held = f"{self.blocks.bits}-bit blocks of {self.blocks.block}" if self.blocks else "float32"
        return f"{held} ({self.operator})"

    def nbytes(self, elements: int) -> int:
        if self.blocks is None:
            return 4 * elements
        floats = 2 if self.offsets else 1
        return elements * self.blocks.bits // 8 + 4 * floats * (elements // self.blocks.block)


FLOAT32 = Forms()


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """W [outputs, columns] in a form. arrays: by the suffix of the initializer's name; see `pack_matrix`."""

    type: TensorType
    outputs: int
    columns: int
    form: Form
    arrays: Mapping[str, Array]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())


@dataclass(frozen=True, slots=True)
class PackedBlock:
    """A block's weights in a provider's forms, packed once for all graphs that are made of it.

    work: what is computed: `spec`, or the part of it that `slice` is. vectors: norms (offset added) and biases.
    """

    spec: BlockSpec
    slice: Slice | None
    work: BlockSpec
    accuracy_level: int
    matrices: Mapping[str, PackedMatrix]
    vectors: Mapping[str, Float32Array]

    @property
    def nbytes(self) -> int:
        """One copy; what a session keeps beside depends on its provider."""
        matrices = sum(matrix.nbytes for matrix in self.matrices.values())
        return matrices + sum(vector.nbytes for vector in self.vectors.values())

    @property
    def said(self) -> dict[str, str]:
        """For the log: `gate` to `Q4_K as 4-bit blocks of 32 (MatMulNBits)`."""
        return {role: f"{matrix.type.name} as {matrix.form}" for role, matrix in self.matrices.items()}


def pack_block(spec: BlockSpec, weights: Mapping[str, Tensor], forms: Forms, slice: Slice | None = None) -> PackedBlock:
    """Raises ModelFileError for weights that do not fit, DeviceError for a slice that cannot be cut."""
    check_weights(spec, weights)
    work = spec
    if slice is not None:
        work = slice_spec(spec, slice)
        weights = slice_weights(spec, weights, slice)
    gathered = isinstance(work, EmbedSpec)
    return PackedBlock(
        spec,
        slice,
        work,
        forms.accuracy_level,
        {role: pack_matrix(each, forms.of(each.type, gathered=gathered)) for role, each in _matrices(weights)},
        {role: _norm_offset(work, role) + dequantize(each) for role, each in weights.items() if len(each.shape) == 1},
    )


def packed_bytes(work: BlockSpec, weights: Mapping[str, Tensor], forms: Forms) -> int:
    """`PackedBlock.nbytes`, from types and shapes alone: of a block, or of a slice's own spec and weights
    (`tandem.devices.slicing.headers`).
    """
    vectors = sum(4 * shape[0] for shape in expected_shapes(work).values() if len(shape) == 1)
    gathered = isinstance(work, EmbedSpec)
    matrices = (forms.of(each.type, gathered=gathered).nbytes(math.prod(each.shape)) for _, each in _matrices(weights))
    return vectors + sum(matrices)


def pack_matrix(tensor: Tensor, form: Form) -> PackedMatrix:
    """The tensor's values as the form's operator takes them; scales and offsets are float32, n = columns / block.

    MatMulNBits: "" [outputs, n, block * bits / 8] uint8, "scales" [outputs, n], "offsets" [n, outputs].
    DequantizeLinear: "" [columns, outputs] int8, "scales" and "offsets" [n, outputs].
    GatherBlockQuantized: "" [outputs, columns * bits / 8] uint8, "scales" [outputs, n], "offsets" [outputs, n].
    MatMul: "" [columns, outputs] float32. Gather: "" [outputs, columns] float32.
    """
    outputs, columns = tensor.shape
    arrays: dict[str, Array] = {}
    if form.blocks is None:
        values = dequantize(tensor)
        arrays[""] = values if form.operator == "Gather" else np.ascontiguousarray(values.T)
        return PackedMatrix(tensor.type, outputs, columns, form, arrays)
    found = integers(tensor)
    match form.operator:
        case "DequantizeLinear":
            arrays = {"": found.quants.T, "scales": found.scales.T}
        case "GatherBlockQuantized":
            arrays = {"": _unsigned(found.quants, form.blocks.bits), "scales": found.scales}
        case _:
            unsigned = _unsigned(found.quants, form.blocks.bits)
            arrays = {"": unsigned.reshape(*found.scales.shape, -1), "scales": found.scales}
    if found.offsets is not None:
        arrays["offsets"] = found.offsets if form.operator == "GatherBlockQuantized" else found.offsets.T
    arrays = {suffix: np.ascontiguousarray(array) for suffix, array in arrays.items()}
    return PackedMatrix(tensor.type, outputs, columns, form, arrays)


def _unsigned(quants: npt.NDArray[np.int8], bits: int) -> npt.NDArray[np.uint8]:
    """Integers moved up by half their range; of 4 bits two in a byte, the first one below."""
    if bits == 8:
        return quants.view(np.uint8) ^ np.uint8(128)
    moved: npt.NDArray[np.uint8] = (quants + np.int8(8)).view(np.uint8)
    return moved[:, ::2] | moved[:, 1::2] << np.uint8(4)


def _matrices(weights: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    return [(role, tensor) for role, tensor in weights.items() if len(tensor.shape) == 2]


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
