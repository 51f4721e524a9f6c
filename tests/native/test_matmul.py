"""Products: error bound, and the same bits on every instruction set and for every number of rows."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf.constants import GGML_QUANT_SIZES
from hypothesis import given, settings
from hypothesis import strategies as st

from native.raw_weights import (
    FLOAT_TYPES,
    ISAS,
    TYPES,
    VECTOR_ISAS,
    block_columns,
    float_weights,
    random_rows,
    random_weights,
    require_isa,
)
from tandem import _native

by_type = pytest.mark.parametrize("weight_type", TYPES, ids=lambda t: t.name)
by_isa = pytest.mark.parametrize("isa", ISAS)


def error_bound(weight_type: Type, weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    """sum over blocks of (dx / 2) * sum |w|, for the rounding of x to int8, plus 1e-5 * sum |w x|, in float64.

    Blocks of x below 2^-120 count as zero, so for them half of dx is the whole value.
    """
    bound = 1e-5 * (np.abs(x) @ np.abs(weights).T)
    if weight_type in FLOAT_TYPES:
        return bound
    blocks = x.shape[1] // 32
    dx = np.abs(x).reshape(len(x), blocks, 32).max(axis=-1) / 127
    half = np.where(dx <= 2.0**-120, 2.0**-120, dx / 2)
    return bound + half @ np.abs(weights).reshape(len(weights), blocks, 32).sum(axis=-1).T


def check_bound(isa: str, weight_type: Type, rows: int, columns: int, x: np.ndarray, data: np.ndarray) -> None:
    packed = _native.PackedMatrix(int(weight_type), rows, columns, data)
    got = _native.matmul(isa, packed, x)
    assert got.shape == (len(x), rows)
    weights, exact_x = float_weights(weight_type, rows, columns, data).astype(np.float64), x.astype(np.float64)
    excess = np.abs(got - exact_x @ weights.T) - error_bound(weight_type, weights, exact_x)
    assert excess.max(initial=-1.0) <= 0.0


@by_type
@by_isa
@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(1, 70),
    blocks=st.integers(1, 9),
    batch=st.integers(1, 40),
    exponents=st.sampled_from([(-8, 1), (-24, -14), (-20, 12), (10, 15)]),
    seed=st.integers(0, 2**32 - 1),
)
def test_error_is_within_the_rounding_of_the_activations(
    isa: str, weight_type: Type, rows: int, blocks: int, batch: int, exponents: tuple[int, int], seed: int
) -> None:
    require_isa(isa)
    rng = np.random.default_rng(seed)
    block = block_columns(weight_type)
    columns = blocks * (block if block > 1 else 37)
    check_bound(
        isa,
        weight_type,
        rows,
        columns,
        random_rows(batch, columns, rng),
        random_weights(weight_type, rows, columns, rng, exponents),
    )


@pytest.mark.parametrize("largest", [1e-45, 1e-38, 1e-36, 1e-30, 1e30])
@by_isa
def test_extreme_activations_stay_in_bound(isa: str, largest: float) -> None:
    require_isa(isa)
    rng = np.random.default_rng(1)
    x = (rng.uniform(-1, 1, (3, 256)) * largest).astype(np.float32)
    for weight_type in (Type.Q4_0, Type.Q4_K, Type.Q6_K):
        check_bound(isa, weight_type, 20, 256, x, random_weights(weight_type, 20, 256, rng))


@by_isa
def test_largest_integers_do_not_saturate(isa: str) -> None:
    """Every weight at an end of its range times activations of +-127: the dots reach their extremes."""
    require_isa(isa)
    for weight_type, low, high in ((Type.Q8_0, 0x80, 0x7F), (Type.Q4_0, 0x00, 0xFF), (Type.Q5_0, 0x00, 0xFF)):
        for fill in (low, high):
            data = np.full((16, GGML_QUANT_SIZES[weight_type][1]), fill, np.uint8)
            data[:, :2] = np.array([1.0], np.float16).view(np.uint8)
            for x in (np.full((1, 32), 1.0, np.float32), np.full((1, 32), -1.0, np.float32)):
                check_bound(isa, weight_type, 16, 32, x, data.reshape(-1))


@by_type
@pytest.mark.parametrize("isa", VECTOR_ISAS)
def test_instruction_sets_agree_bit_for_bit(isa: str, weight_type: Type) -> None:
    require_isa(isa)
    rng = np.random.default_rng(2)
    block = block_columns(weight_type)
    for rows, columns in ((1, block), (50, 5 * max(block, 32)), (33, 1536)):
        data = random_weights(weight_type, rows, columns, rng)
        packed = _native.PackedMatrix(int(weight_type), rows, columns, data)
        for batch in (1, 2, 3, 4, 5, 6, 7, 9, 16, 25):
            x = random_rows(batch, columns, rng)
            expected, got = _native.matmul("scalar", packed, x), _native.matmul(isa, packed, x)
            np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


@by_type
@by_isa
def test_a_row_does_not_depend_on_the_others(isa: str, weight_type: Type) -> None:
    require_isa(isa)
    rng = np.random.default_rng(3)
    rows, columns = 75, 1280
    packed = _native.PackedMatrix(int(weight_type), rows, columns, random_weights(weight_type, rows, columns, rng))
    batches = [*range(2, 28), 40, 97, 200] if isa != "scalar" else [2, 17, 40]
    x = random_rows(max(batches), columns, rng)
    alone = np.concatenate([_native.matmul(isa, packed, x[r : r + 1]) for r in range(max(batches))])
    for batch in batches:
        got = _native.matmul(isa, packed, x[:batch])
        np.testing.assert_array_equal(got.view(np.uint32), alone[:batch].view(np.uint32))


@by_type
@by_isa
@pytest.mark.parametrize("groups", [1, 3])
def test_ranges_of_groups_do_not_show(isa: str, weight_type: Type, groups: int) -> None:
    require_isa(isa)
    rng = np.random.default_rng(7)
    rows, columns = 7 * 16 - 5, 512
    packed = _native.PackedMatrix(int(weight_type), rows, columns, random_weights(weight_type, rows, columns, rng))
    for batch in (1, 4, 9):
        x = random_rows(batch, columns, rng)
        whole, parts = _native.matmul(isa, packed, x), _native.matmul(isa, packed, x, groups)
        np.testing.assert_array_equal(parts.view(np.uint32), whole.view(np.uint32))


@by_isa
def test_long_rows(isa: str) -> None:
    """More blocks than any run or scratch of the kernels holds at a time."""
    require_isa(isa)
    rng = np.random.default_rng(4)
    rows, columns = 17, 17 * 1024 + 32
    data = random_weights(Type.Q4_0, rows, columns, rng)
    packed = _native.PackedMatrix(int(Type.Q4_0), rows, columns, data)
    x = random_rows(8, columns, rng)
    check_bound(isa, Type.Q4_0, rows, columns, x[:1], data)
    one, many = _native.matmul(isa, packed, x[3:4]), _native.matmul(isa, packed, x)
    np.testing.assert_array_equal(one[0].view(np.uint32), many[3].view(np.uint32))


def test_wrong_shapes_are_refused() -> None:
    data = np.zeros(18 * 4, np.uint8)
    packed = _native.PackedMatrix(int(Type.Q4_0), 4, 32, data)
    with pytest.raises(ValueError, match="x has 64 columns where the weights have 32"):
        _native.matmul("scalar", packed, np.zeros((1, 64), np.float32))
    with pytest.raises(ValueError, match="unknown kernels 'mmx'"):
        _native.matmul("mmx", packed, np.zeros((1, 32), np.float32))
