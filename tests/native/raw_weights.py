"""Random GGUF bytes of every weight type, and what the gguf package says they mean."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGMLQuantizationType as Type
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES

from tandem import _native

FLOAT_TYPES = [Type.F32, Type.F16, Type.BF16]
QUANTIZED_TYPES = [Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0, Type.Q4_K, Type.Q5_K, Type.Q6_K]
TYPES = FLOAT_TYPES + QUANTIZED_TYPES
VECTOR_ISAS = ["avx2", "vnni256", "avxvnni", "avx512"]
ISAS = ["scalar", *VECTOR_ISAS]

# Where a block keeps its float16 scales.
_SCALE_OFFSETS = {
    Type.Q4_0: [0],
    Type.Q4_1: [0, 2],
    Type.Q5_0: [0],
    Type.Q5_1: [0, 2],
    Type.Q8_0: [0],
    Type.Q4_K: [0, 2],
    Type.Q5_K: [0, 2],
    Type.Q6_K: [208],
}


def require_isa(isa: str) -> None:
    try:
        _native.choose_isa(isa)
    except ValueError as error:
        pytest.skip(str(error))


def block_columns(weight_type: Type) -> int:
    """Columns that a row's length must be a multiple of."""
    return GGML_QUANT_SIZES[weight_type][0]


def random_weights(
    weight_type: Type, rows: int, columns: int, rng: np.random.Generator, exponents: tuple[int, int] = (-8, 1)
) -> npt.NDArray[np.uint8]:
    """GGUF bytes with every bit pattern of the integers and scales of either sign, some zero, of 2^exponents."""
    block, size = GGML_QUANT_SIZES[weight_type]
    if weight_type in FLOAT_TYPES:
        values = _scales(rows * columns, rng, exponents).reshape(rows, columns)
        if weight_type == Type.F16:
            return values.astype(np.float16).view(np.uint8).reshape(-1)
        if weight_type == Type.BF16:
            return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8).reshape(-1)
        return values.view(np.uint8).reshape(-1)
    blocks = rng.integers(0, 256, (rows * columns // block, size), dtype=np.uint8)
    for offset in _SCALE_OFFSETS[weight_type]:
        scales = _scales(len(blocks), rng, exponents).astype(np.float16)
        blocks[:, offset : offset + 2] = scales.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(-1)


def _scales(count: int, rng: np.random.Generator, exponents: tuple[int, int]) -> npt.NDArray[np.float32]:
    values = rng.choice([-1.0, 1.0], count) * np.exp2(rng.uniform(*exponents, count))
    return np.where(rng.random(count) < 0.05, 0.0, values).astype(np.float32)


def random_rows(rows: int, columns: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Float32 activations with outliers, blocks of very different size and blocks of zeros."""
    x = rng.standard_normal((rows, columns)) * np.where(rng.random((rows, columns)) < 0.02, 30.0, 1.0)
    for start in range(0, columns, 32):
        x[:, start : start + 32] *= np.exp2(rng.integers(-20, 12, (rows, 1)))
    for start in range(0, columns, 32):
        x[rng.random(rows) < 0.05, start : start + 32] = 0.0
    return x.astype(np.float32)


def float_weights(weight_type: Type, rows: int, columns: int, data: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """The gguf package's dequantization, float32 [rows, columns]."""
    return np.asarray(quants.dequantize(data.reshape(rows, -1), weight_type), np.float32).reshape(rows, columns)
