"""Quantization of activations: a numpy model of it, and the same bits on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from native.raw_weights import ISAS, random_rows, require_isa
from tandem import _native

by_isa = pytest.mark.parametrize("isa", ISAS)


def model(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    blocks = x.reshape(len(x), -1, 32)
    amax = np.abs(blocks).max(axis=-1)
    zero = amax <= np.float32(2.0**-120)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.where(zero, np.float32(0), np.float32(127) / amax).astype(np.float32)
    q = np.rint(blocks * inverse[..., None]).astype(np.int8)
    scale = np.where(zero, np.float32(0), amax / np.float32(127)).astype(np.float32)
    return q.reshape(x.shape), scale, q.sum(axis=-1, dtype=np.int32)


def check(isa: str, x: np.ndarray) -> None:
    require_isa(isa)
    for got, expected in zip(_native.quantize_activations(isa, x), model(x), strict=True):
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)


@by_isa
@pytest.mark.parametrize("blocks", [1, 2, 3, 4, 5, 7, 8, 9, 17, 40])
def test_random_rows(isa: str, blocks: int) -> None:
    check(isa, random_rows(5, 32 * blocks, np.random.default_rng(blocks)))


@by_isa
@settings(max_examples=100, deadline=None)
@given(x=arrays(np.float32, (1, 64), elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_any_values(isa: str, x: np.ndarray) -> None:
    check(isa, x)


@by_isa
def test_ties_round_to_even(isa: str) -> None:
    """With a largest value of 127 the scale is 1, so halves are exact ties."""
    x = (np.arange(64, dtype=np.float32) - 31.5).reshape(1, 64)
    x[:, ::32] = 127.0
    check(isa, x)
    q, scale, _ = _native.quantize_activations(isa, x)
    assert scale.tolist() == [[1.0, 1.0]]
    assert (q[0, 1:32] % 2 == 0).all()


@by_isa
def test_zeros_and_values_too_small_to_scale(isa: str) -> None:
    x = np.zeros((3, 32), np.float32)
    x[1] = 2.0**-120
    x[2, 5] = -(2.0**-119)
    check(isa, x)
    q, scale, total = _native.quantize_activations(isa, x)
    assert not q[:2].any() and not scale[:2].any() and not total[:2].any()
    assert q[2, 5] == -127


def test_columns_must_be_whole_blocks() -> None:
    with pytest.raises(ValueError, match="multiple of 32"):
        _native.quantize_activations("scalar", np.zeros((1, 40), np.float32))
