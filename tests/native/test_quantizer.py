"""Every instruction set writes the bytes of the scalar build, with any number of threads."""

from __future__ import annotations

import numpy as np
import pytest

from tandem._native import Quantizer, choose_isa
from tandem.weights.quantize import quantize
from tandem.weights.tensor import Tensor, TensorType

ISAS = ("avx2", "avxvnni", "vnni256", "avx512")


def available(isa: str) -> bool:
    try:
        return choose_isa(isa) == isa
    except ValueError:
        return False


def rows(columns: int = 768) -> np.ndarray:
    """An odd number of super-blocks, sizes from 2^-40 on, blocks of zeros, of one value, and of ties between signs."""
    rng = np.random.default_rng(11)
    values = (
        rng.standard_normal((40, columns), np.float32) * np.float32(2.0) ** np.arange(-40, 0, dtype=np.float32)[:, None]
    )
    values[3] = 0
    values[4] = -0.0
    values[5] = 1.5
    values[6] = -1.5
    values[7, ::2], values[7, 1::2] = 2.0, -2.0
    values[8] = np.abs(values[8])
    values[9, 100] = 1e4
    return values


def run(quantizer: Quantizer, source: Tensor, type: TensorType, importance: np.ndarray | None) -> np.ndarray:
    count, columns = source.shape
    out = np.zeros(count * type.row_bytes(columns), np.uint8)
    assert quantizer.run(source.type.ggml_id, source.data, type.ggml_id, count, columns, out, importance) == 0
    return out


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("type", TensorType, ids=lambda type: type.name)
@pytest.mark.parametrize("isa", ISAS)
def test_instruction_sets_agree(isa: str, type: TensorType, weighted: bool) -> None:
    if not available(isa):
        pytest.skip(f"this CPU lacks {isa}")
    source = quantize("w", rows(), TensorType.F32)
    importance = np.random.default_rng(2).random(source.shape[1]).astype(np.float32) if weighted else None
    expected = run(Quantizer(1, "scalar"), source, type, importance)
    assert np.array_equal(run(Quantizer(3, isa), source, type, importance), expected)


@pytest.mark.parametrize("stored", [TensorType.F16, TensorType.BF16, TensorType.Q8_0, TensorType.Q6_K])
def test_a_stored_type_gives_what_its_float_values_give(stored: TensorType) -> None:
    from tandem.weights.dequantize import dequantize

    source = quantize("w", rows(), stored)
    floats = quantize("w", dequantize(source), TensorType.F32)
    for type in (TensorType.Q4_0, TensorType.Q4_K):
        assert np.array_equal(run(Quantizer(2), source, type, None), run(Quantizer(2), floats, type, None))


@pytest.mark.parametrize("type", [TensorType.Q4_0, TensorType.Q4_1, TensorType.Q5_0, TensorType.Q5_1, TensorType.Q4_K])
def test_importance_moves_error_to_columns_that_matter_less(type: TensorType) -> None:
    from tandem.weights.dequantize import dequantize_bytes

    values = np.random.default_rng(4).standard_normal((32, 512), np.float32)
    importance = np.where(np.arange(512) % 32 < 8, 100, 1).astype(np.float32)
    source = quantize("w", values, TensorType.F32)

    def weighted_error(weights: np.ndarray | None) -> float:
        approximate = dequantize_bytes(type, run(Quantizer(1), source, type, weights)).reshape(values.shape)
        return float((importance * (approximate - values) ** 2).sum())

    assert weighted_error(importance) < 0.8 * weighted_error(None)


def test_sizes_that_do_not_fit_are_refused() -> None:
    source = quantize("w", np.ones((2, 256), np.float32), TensorType.F32)
    quantizer = Quantizer(1)
    with pytest.raises(ValueError):
        quantizer.run(0, source.data, 12, 2, 256, np.zeros(287, np.uint8))
    with pytest.raises(ValueError, match="importance"):
        quantizer.run(0, source.data, 12, 2, 256, np.zeros(288, np.uint8), np.ones(255, np.float32))
    with pytest.raises(ValueError):
        Quantizer(0)
