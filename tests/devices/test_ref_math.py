"""The reference device's arithmetic against independent formulas in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tandem.devices.ref.math import activate, attend, rms_norm, rotate, soft_cap
from tandem.devices.spec import AttentionSpec, NormSpec, RopeSpec

RANDOM = np.random.default_rng(7)


def random(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("magnitude", [1e-3, 1.0, 1e6])
def test_rms_norm(offset: float, magnitude: float) -> None:
    x, weight = random(5, 33) * np.float32(magnitude), random(33)
    exact = x.astype(float)
    exact = exact / np.sqrt((exact**2).mean(axis=1, keepdims=True) + 1e-5) * (offset + weight.astype(float))
    assert rms_norm(x, weight, NormSpec(1e-5, offset)) == pytest.approx(exact, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("dims", [8, 12])
def test_rotate(layout: Any, dims: int) -> None:
    """Each pair is a complex number that turns by position / factor / base^(i/dims)."""
    rope = RopeSpec(100.0, dims, layout, linear_factor=2.0, frequency_factors=tuple(range(1, dims // 2 + 1)))
    x, positions = random(3, 2, 12), np.array([0, 1, 70], np.int32)
    turned = rotate(x, positions, rope)
    for i in range(dims // 2):
        first, second = (i, i + dims // 2) if layout == "half" else (2 * i, 2 * i + 1)
        angle = positions / 2.0 / (i + 1) * 100.0 ** (-2 * i / dims)
        exact = (x[..., first] + 1j * x[..., second]) * np.exp(1j * angle)[:, None]
        assert turned[..., first] + 1j * turned[..., second] == pytest.approx(exact, abs=1e-5)
    assert np.array_equal(turned[..., dims:], x[..., dims:])


def test_activations() -> None:
    x = np.array([-1e4, -100, -3, -0.5, 0, 0.5, 3, 100, 1e4], np.float32)
    with np.errstate(all="raise", under="ignore", over="ignore"):
        silu, gelu = activate(x, "silu"), activate(x, "gelu_tanh")
    exact_silu = [v / (1 + math.exp(-v)) if v > -700 else 0.0 for v in x.tolist()]
    exact_gelu = [0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) for v in x.tolist()]
    assert silu == pytest.approx(exact_silu, rel=1e-5) and silu.dtype == np.float32
    assert gelu == pytest.approx(exact_gelu, rel=1e-5, abs=1e-6) and gelu.dtype == np.float32


def test_soft_cap() -> None:
    x = np.array([-1e6, -1, 0, 2, 1e6], np.float32)
    assert soft_cap(x, 3.0) == pytest.approx(3 * np.tanh(x.astype(float) / 3), rel=1e-6)
    assert soft_cap(x, None) is x


@pytest.mark.parametrize("window", [None, 1, 4, 100])
@pytest.mark.parametrize("softcap", [None, 0.7])
def test_attend(window: int | None, softcap: float | None) -> None:
    """Queries at positions 6..10 over keys 2..10, grouped: heads 0-1 read KV head 0, heads 2-3 KV head 1."""
    spec = AttentionSpec(0, 8, 4, 2, 8, 0.4, NormSpec(1e-6), None, window=window, softcap=softcap)
    queries, keys, values = random(5, 4, 8), random(9, 2, 8), random(9, 2, 8)
    result = attend(spec, queries, keys, values, np.arange(6, 11, dtype=np.int32), np.arange(2, 11, dtype=np.int32))
    for row, position in enumerate(range(6, 11)):
        seen = [i for i, p in enumerate(range(2, 11)) if p <= position and (not window or p > position - window)]
        for head in range(4):
            scores = keys[seen, head // 2].astype(float) @ queries[row, head].astype(float) * 0.4
            scores = scores if softcap is None else softcap * np.tanh(scores / softcap)
            weights = np.exp(scores) / np.exp(scores).sum()
            exact = weights @ values[seen, head // 2].astype(float)
            assert result[row, head] == pytest.approx(exact, abs=1e-5)


def test_attend_survives_large_scores() -> None:
    spec = AttentionSpec(0, 4, 1, 1, 4, 1.0, NormSpec(1e-6), None)
    queries = np.full((1, 1, 4), 1e9, np.float32)
    keys, values = np.stack([-queries[0], queries[0]]), random(2, 1, 4)
    result = attend(spec, queries, keys, values, np.array([1], np.int32), np.array([0, 1], np.int32))
    assert np.array_equal(result[0, 0], values[1, 0])
