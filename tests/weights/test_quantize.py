"""Quantized and cast values are, bit for bit, those of ggml's Python package; what does not fit is refused."""

import hashlib
import json

import gguf
import numpy as np
import pytest
from gguf.quants import quantize as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from golden.make_quantize_golden import error, random_rows
from paths import REPO, SHARED
from tandem.errors import ModelFileError
from tandem.weights.dequantize import dequantize
from tandem.weights.open import open_checkpoint
from tandem.weights.quantize import quantize
from tandem.weights.tensor import TensorType

TYPES = [type for type in TensorType if type.block <= 32]


# By llama.cpp: tests/golden/make_quantize_golden.py.
GOLDEN = json.loads((REPO / "tests" / "golden" / "quantize.json").read_text())
SOURCE = SHARED / "models" / "tandem-stories-22m"
# A K-quant's error over llama.cpp's.
MOST = 1.01


def assert_as_llama_cpp(values: np.ndarray, type: TensorType, expected: str | float) -> None:
    """The same bytes, or of a K-quant an error that is no larger by more than a hundredth."""
    tensor = quantize("w", values, type)
    if type.block == 32:
        assert hashlib.sha256(tensor.data).hexdigest()[:16] == expected
    else:
        assert error(values, dequantize(tensor)) <= MOST * expected


@pytest.mark.parametrize("type", [type for type in TensorType if type.block > 1], ids=lambda type: type.name)
def test_random_rows_are_quantized_as_by_llama_cpp(type: TensorType) -> None:
    assert_as_llama_cpp(random_rows(), type, GOLDEN["random"][type.name])


@pytest.mark.slow
@pytest.mark.skipif(not SOURCE.is_dir(), reason="the weights of the story model are not at ../shared/models")
def test_real_weights_are_quantized_as_by_llama_cpp() -> None:
    tensors = open_checkpoint(str(SOURCE)).tensors
    assert len(GOLDEN["weights"]) == 43
    for name, expected in GOLDEN["weights"].items():
        values = dequantize(tensors[name])
        for type, value in expected.items():
            assert_as_llama_cpp(values, TensorType[type], value)


def assert_same_bytes(values: np.ndarray, type: TensorType) -> None:
    tensor = quantize("w", values, type)
    expected = reference(values, gguf.GGMLQuantizationType(type.ggml_id))
    assert tensor.type is type
    assert tensor.shape == values.shape
    assert np.array_equal(tensor.data, np.ascontiguousarray(expected).view(np.uint8).reshape(-1))


@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
def test_random_weights_equal_the_reference(type: TensorType) -> None:
    rng = np.random.default_rng(7)
    values = rng.standard_normal((700, 128), np.float32) * 10 ** rng.uniform(-6, 3, (700, 1)).astype(np.float32)
    values[5] = 0
    values[6, ::2] = -0.0
    values[7] = 1e-7
    assert_same_bytes(values, type)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    values=hnp.arrays(np.float32, (2, 32), elements=st.floats(-60_000, 60_000, width=32)),
    type=st.sampled_from(TYPES),
)
def test_any_values_equal_the_reference(values: np.ndarray, type: TensorType) -> None:
    # A block of negative zeros only has the scale -0 by ggml and 0 by its Python package.
    assert_same_bytes(values + np.float32(0), type)


def test_halves_of_a_quant_step_round_as_the_reference_does() -> None:
    values = np.arange(-63.5, 64.5, 0.5, np.float32)[: 7 * 32].reshape(7, 32)
    values[:, 0] = 127
    assert_same_bytes(values, TensorType.Q8_0)
    assert_same_bytes(values, TensorType.Q4_0)


def test_bf16_rounds_ties_to_even() -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F80FFFF, 0xBF808000, 0x00008000], np.uint32)
    tensor = quantize("w", bits.view(np.float32), TensorType.BF16)
    assert tensor.data.view(np.uint16).tolist() == [0x3F80, 0x3F82, 0x3F81, 0x3F81, 0xBF80, 0x0000]


@pytest.mark.parametrize(("type", "steps"), [(TensorType.Q8_0, 127), (TensorType.Q4_0, 8)])
def test_error_stays_within_the_quant_step(type: TensorType, steps: int) -> None:
    values = np.random.default_rng(3).standard_normal((64, 96), np.float32)
    error = np.abs(dequantize(quantize("w", values, type)) - values).reshape(-1, 32)
    step = np.abs(values).reshape(-1, 32).max(axis=1, keepdims=True) / steps
    # Half a step and what rounding the scale adds; Q4_0 lacks +8, so it may miss by a whole step.
    assert (error <= step * (1.005 if type is TensorType.Q4_0 else 0.57)).all()


def test_float16_input_is_accepted_exactly() -> None:
    values = np.linspace(-2, 2, 64, dtype=np.float16)
    assert np.array_equal(dequantize(quantize("w", values, TensorType.F32)), values.astype(np.float32))


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
def test_values_that_are_not_finite_are_refused(type: TensorType, bad: float) -> None:
    values = np.ones((2, 32), np.float32)
    values[1, 3] = bad
    with pytest.raises(ModelFileError, match=r"tensor 'blk\.0' holds infinities or NaN"):
        quantize("blk.0", values, type)


@pytest.mark.parametrize(
    ("type", "value"),
    [(TensorType.F16, 65_520.0), (TensorType.Q8_0, 1e7), (TensorType.Q4_0, 1e6), (TensorType.BF16, 3.4e38)],
)
def test_values_too_large_for_the_type_are_refused(type: TensorType, value: float) -> None:
    values = np.full((1, 32), value, np.float32)
    with pytest.raises(ModelFileError, match=f"tensor 'w' holds values too large for {type.name}"):
        quantize("w", values, type)


def test_rows_that_are_no_multiple_of_the_block_are_refused() -> None:
    with pytest.raises(ModelFileError, match="tensor 'w' has rows of 33; Q8_0 needs a multiple of 32"):
        quantize("w", np.zeros((2, 33), np.float32), TensorType.Q8_0)
