"""Integers, scales and offsets say what dequantizing does, for every packed type and any bits."""

from __future__ import annotations

import numpy as np
import pytest

from tandem.weights.dequantize import dequantize
from tandem.weights.integers import INTEGER_FORMS, integers
from tandem.weights.tensor import Tensor, TensorType
from weights.builders import SCALES


def packed(kind: TensorType, rows: int, columns: int) -> Tensor:
    random = np.random.default_rng(7)
    data = random.integers(0, 256, (rows, kind.row_bytes(columns)), dtype=np.uint8)
    blocks = data.reshape(-1, kind.block_bytes)
    for at in SCALES[kind]:
        scales = random.uniform(-0.02, 0.02, (len(blocks), 1)).astype(np.float16)
        scales[::5] = 0
        blocks[:, at : at + 2] = scales.view(np.uint8)
    return Tensor("w", kind, (rows, columns), data.reshape(-1))


@pytest.mark.parametrize("kind", list(INTEGER_FORMS), ids=lambda kind: kind.name)
def test_values(kind: TensorType) -> None:
    # More blocks than are taken at a time.
    tensor = packed(kind, 300, 1024)
    found = integers(tensor)
    form = found.form
    assert form == INTEGER_FORMS[kind] and (found.offsets is not None) == form.offsets
    assert form.bits == 8 or (found.quants.min() == -8 and found.quants.max() == 7)
    blocks = found.quants.reshape(300, -1, form.block)
    values = blocks * found.scales[:, :, None]
    expected = dequantize(tensor).reshape(blocks.shape)
    if found.offsets is None:
        np.testing.assert_array_equal(values, expected)
        return
    got = values + found.offsets[:, :, None]
    # Two roundings: of the offset, and of the sum.
    largest = np.abs(values) + np.abs(found.offsets)[:, :, None]
    assert np.all(np.abs(got - expected) <= 2**-22 * largest)


def test_every_packed_type_has_integers() -> None:
    floats = {TensorType.F32, TensorType.F16, TensorType.BF16}
    assert set(INTEGER_FORMS) | floats == set(TensorType)
