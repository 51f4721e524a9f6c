"""Packed weights as runtimes other than ours take them: integers around zero, and a scale and an offset per block.

w = q * scale + offset, with q of 4 or 8 bits. Scales are those of `dequantize`, bit for bit. An offset, which types
with minima have, is the minimum moved to the middle of the integers' range, rounded once to float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tandem.weights.dequantize import SPLIT, Floats
from tandem.weights.tensor import Tensor, TensorType

# Elements unpacked at a time, so that the intermediate arrays stay in cache.
_CHUNK = 1 << 18


@dataclass(frozen=True, slots=True)
class IntegerForm:
    """A packed type's integers: their bits, the columns that share a scale, whether there are offsets."""

    bits: int
    block: int
    offsets: bool = False


INTEGER_FORMS: dict[TensorType, IntegerForm] = {
    TensorType.Q4_0: IntegerForm(4, 32),
    TensorType.Q4_1: IntegerForm(4, 32, offsets=True),
    TensorType.Q5_0: IntegerForm(8, 32),
    TensorType.Q5_1: IntegerForm(8, 32, offsets=True),
    TensorType.Q8_0: IntegerForm(8, 32),
    TensorType.Q4_K: IntegerForm(4, 32, offsets=True),
    TensorType.Q5_K: IntegerForm(8, 32, offsets=True),
    TensorType.Q6_K: IntegerForm(8, 16),
}


@dataclass(frozen=True, slots=True)
class Integers:
    """quants: [rows, columns] int8, of 4-bit types in [-8, 7]. scales, offsets: [rows, columns / block] float32."""

    form: IntegerForm
    quants: npt.NDArray[np.int8]
    scales: Floats
    offsets: Floats | None


def integers(tensor: Tensor) -> Integers:
    """A matrix of one of INTEGER_FORMS' types."""
    form = INTEGER_FORMS[tensor.type]
    rows, columns = tensor.shape
    blocks = tensor.data.reshape(-1, tensor.type.block_bytes)
    quants = np.empty((len(blocks), tensor.type.block), np.int8)
    scales = np.empty((len(blocks), tensor.type.block // form.block), np.float32)
    offsets = np.empty_like(scales) if form.offsets else None
    step = _CHUNK // tensor.type.block
    # A scale may be infinite or not a number in a damaged file; the result then says so itself.
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, len(blocks), step):
            part = slice(start, start + step)
            split = SPLIT[tensor.type](blocks[part])
            quants[part], scales[part] = split.centred(), split.scales
            if offsets is not None:
                assert split.minima is not None
                offsets[part] = split.minima + split.middle * split.scales
    shape = (rows, columns // form.block)
    return Integers(
        form,
        quants.reshape(rows, columns),
        scales.reshape(shape),
        None if offsets is None else offsets.reshape(shape),
    )
