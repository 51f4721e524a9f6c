"""Every type's values are, bit for bit, those of ggml's own Python package."""

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize as reference

from tandem.weights.dequantize import dequantize, dequantize_bytes
from tandem.weights.tensor import Tensor, TensorType
from weights.builders import random_blocks

TYPES = list(TensorType)


def reference_values(type: TensorType, data: np.ndarray) -> np.ndarray:
    values = reference(data.reshape(-1, type.block_bytes), gguf.GGMLQuantizationType(type.ggml_id))
    return np.asarray(values).reshape(-1)


@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
def test_random_blocks_equal_the_reference(type: TensorType) -> None:
    # More than one chunk for every type, and a last chunk that is not full.
    data = random_blocks(type, 70_000 // type.block + 3, seed=type.ggml_id)
    values = dequantize_bytes(type, data)
    assert values.dtype == np.float32
    assert np.isfinite(values).all()
    assert np.array_equal(values.view(np.uint32), reference_values(type, data).view(np.uint32))


@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
@pytest.mark.parametrize("byte", [0x00, 0x80, 0xFF, 0x7B], ids=hex)
def test_extreme_blocks_equal_the_reference(type: TensorType, byte: int) -> None:
    """Zeros, negative zeros, NaN and the largest scales, where a different order of operations would show."""
    data = np.full(type.block_bytes * 3, byte, np.uint8)
    expected = reference_values(type, data)
    values = dequantize_bytes(type, data)
    finite = np.isfinite(expected)
    assert np.array_equal(np.isfinite(values), finite)
    assert np.array_equal(values[finite].view(np.uint32), expected[finite].view(np.uint32))


@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
def test_values_take_the_tensors_shape_and_are_writable(type: TensorType) -> None:
    shape = (2, 3, 2 * type.block)
    data = random_blocks(type, 12, seed=1)
    data.flags.writeable = False
    values = dequantize(Tensor("w", type, shape, data))
    assert values.shape == shape
    assert values.flags.writeable
    row = data[type.row_bytes(shape[-1]) :][: type.row_bytes(shape[-1])]
    assert np.array_equal(values[0, 1], reference_values(type, row))


def test_data_of_any_alignment_is_read() -> None:
    data = np.arange(41, dtype=np.uint8)[1:]
    assert np.array_equal(dequantize_bytes(TensorType.F32, data), np.frombuffer(data.tobytes(), np.float32))


def test_part_of_a_block_is_refused() -> None:
    with pytest.raises(ValueError, match="33 bytes are not a whole number of Q8_0 blocks of 34"):
        dequantize_bytes(TensorType.Q8_0, np.zeros(33, np.uint8))
