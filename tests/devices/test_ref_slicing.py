"""Cutting packed weights: a slice's values are the whole tensor's values, for every type, or a clear refusal."""

from __future__ import annotations

import numpy as np
import pytest

from tandem.devices.slicing import combine_spec, combine_weights, slice_spec, slice_weights
from tandem.devices.spec import AttentionSpec, CombineSpec, EmbedSpec, FFNSpec, NormSpec, Slice
from tandem.devices.weights_check import check_weights, expected_shapes
from tandem.errors import DeviceError, ModelFileError
from tandem.weights.dequantize import dequantize
from tandem.weights.tensor import Tensor, TensorType

NORM = NormSpec(1e-6)
FFN = FFNSpec(2, 256, 768, "silu", NORM, post_norm=NORM)
ATTENTION = AttentionSpec(
    1, 256, 12, 3, 64, 0.125, NORM, None, qk_norm=NORM, post_norm=NORM, qkv_bias=True, o_bias=True
)


def packed(spec: FFNSpec | AttentionSpec, matrix_type: TensorType) -> dict[str, Tensor]:
    """Random bytes in the shapes that the block takes; half-precision scales are kept finite."""
    random = np.random.default_rng(3)
    weights = {}
    for role, shape in expected_shapes(spec).items():
        kind = matrix_type if len(shape) == 2 else TensorType.F32
        rows = shape[0] if len(shape) == 2 else 1
        data = random.integers(0, 60, rows * kind.row_bytes(shape[-1]), dtype=np.uint8)
        weights[role] = Tensor(role, kind, shape, data)
    return weights


@pytest.mark.parametrize("kind", list(TensorType), ids=lambda kind: kind.name)
def test_ffn_columns(kind: TensorType) -> None:
    weights = packed(FFN, kind)
    part = Slice(0, 256, 512)
    cut = slice_weights(FFN, weights, part)
    check_weights(slice_spec(FFN, part), cut)
    for role in ("gate", "up"):
        assert np.array_equal(dequantize(cut[role]), dequantize(weights[role])[256:512], equal_nan=True)
    assert np.array_equal(dequantize(cut["down"]), dequantize(weights["down"])[:, 256:512], equal_nan=True)
    assert np.array_equal(cut["norm"].data, weights["norm"].data) and "post_norm" not in cut


@pytest.mark.parametrize("kind", list(TensorType), ids=lambda kind: kind.name)
def test_attention_heads(kind: TensorType) -> None:
    weights = packed(ATTENTION, kind)
    part = Slice(1, 1, 3)
    spec, cut = slice_spec(ATTENTION, part), slice_weights(ATTENTION, weights, part)
    assert isinstance(spec, AttentionSpec)
    assert (spec.heads, spec.kv_heads, spec.o_bias, spec.post_norm) == (8, 2, False, None)
    check_weights(spec, cut)
    for role, start in {"q": 256, "q_bias": 256, "k": 64, "k_bias": 64, "v": 64, "v_bias": 64}.items():
        assert np.array_equal(dequantize(cut[role]), dequantize(weights[role])[start:], equal_nan=True)
    assert np.array_equal(dequantize(cut["o"]), dequantize(weights["o"])[:, 256:], equal_nan=True)
    assert set(cut) == set(weights) - {"post_norm", "o_bias"}


def test_rows_are_not_copied() -> None:
    weights = packed(FFN, TensorType.Q4_0)
    cut = slice_weights(FFN, weights, Slice(0, 0, 256))
    assert np.shares_memory(cut["gate"].data, weights["gate"].data)


def test_the_owner_keeps_the_rest() -> None:
    weights = packed(ATTENTION, TensorType.F32)
    combine = combine_spec(ATTENTION, 2)
    assert combine == CombineSpec(1, 256, 2, NORM, bias=True)
    check_weights(combine, combine_weights(weights))
    assert combine_weights(weights)["bias"] is weights["o_bias"]
    assert combine_spec(FFN, 3) == CombineSpec(2, 256, 3, NORM)


@pytest.mark.parametrize(
    ("kind", "stop"), [(TensorType.Q8_0, 40), (TensorType.Q4_K, 128)], ids=lambda value: getattr(value, "name", None)
)
def test_a_quantization_block_is_not_cut(kind: TensorType, stop: int) -> None:
    with pytest.raises(DeviceError, match=rf"'down' cannot be cut at column {stop}: {kind.name} packs blocks"):
        slice_weights(FFN, packed(FFN, kind), Slice(0, 0, stop))


@pytest.mark.parametrize("bounds", [(-1, 2), (2, 2), (2, 1), (0, 4)])
def test_bounds_outside_the_block(bounds: tuple[int, int]) -> None:
    with pytest.raises(DeviceError, match="attention 1 has 3 KV heads"):
        slice_weights(ATTENTION, packed(ATTENTION, TensorType.F32), Slice(0, *bounds))


def test_only_attention_and_ffn_are_sliced() -> None:
    with pytest.raises(DeviceError, match="embed cannot be sliced"):
        slice_spec(EmbedSpec(8, 8), Slice(0, 0, 4))


def test_weights_are_checked() -> None:
    weights = packed(FFN, TensorType.Q8_0)

    def refused(changed: dict[str, Tensor], words: str) -> None:
        with pytest.raises(ModelFileError, match=words):
            check_weights(FFN, changed)

    refused({k: v for k, v in weights.items() if k != "up"}, r"ffn 2 needs a weight 'up' of shape \(768, 256\)")
    refused(weights | {"bias": weights["norm"]}, "ffn 2 takes no weight 'bias'")
    refused(weights | {"up": weights["down"]}, r"'up': tensor 'down' has shape \(256, 768\); expected \(768, 256\)")
    short = Tensor("up", TensorType.Q8_0, (768, 256), weights["up"].data[:-1])
    refused(weights | {"up": short}, "has 208895 bytes; expected 208896")
    odd = FFNSpec(0, 40, 64, "silu", NORM)
    uneven = packed(odd, TensorType.F32) | {"up": Tensor("up", TensorType.Q8_0, (64, 40), np.zeros(64 * 34, np.uint8))}
    with pytest.raises(ModelFileError, match="rows of 40 elements; Q8_0 needs a multiple of 32"):
        check_weights(odd, uneven)
