"""Packed weights as runtimes other than ours take them: integers around zero, and a scale and an offset per block.

w = q * scale + offset, with q of 4 or 8 bits. Scales are those of `dequantize`, bit for bit. An offset, which types
with minima have, is the minimum moved to the middle of the integers' range, rounded once to float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tandem.weights.dequantize import Bytes, Floats, fifth_bits, half, nibbles, scales_and_minima
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
            quants[part], scales[part], offset = _SPLIT[tensor.type](blocks[part])
            if offsets is not None:
                offsets[part] = offset
    shape = (rows, columns // form.block)
    return Integers(
        form,
        quants.reshape(rows, columns),
        scales.reshape(shape),
        None if offsets is None else offsets.reshape(shape),
    )


# Integers, scales and offsets (0: none) of some blocks.
Parts = tuple[npt.NDArray[np.int8], Floats, Floats | float]


def _centred(quants: Bytes, middle: int) -> npt.NDArray[np.int8]:
    return quants.view(np.int8) - np.int8(middle)


def _q4_0(blocks: Bytes) -> Parts:
    return _centred(nibbles(blocks[:, 2:], 16), 8), half(blocks, 0), 0


def _q4_1(blocks: Bytes) -> Parts:
    scale = half(blocks, 0)
    return _centred(nibbles(blocks[:, 4:], 16), 8), scale, half(blocks, 2) + 8 * scale


def _q5_0(blocks: Bytes) -> Parts:
    return _centred(nibbles(blocks[:, 6:], 16) | fifth_bits(blocks[:, 2:6]), 16), half(blocks, 0), 0


def _q5_1(blocks: Bytes) -> Parts:
    scale = half(blocks, 0)
    quants = nibbles(blocks[:, 8:], 16) | fifth_bits(blocks[:, 4:8])
    return _centred(quants, 16), scale, half(blocks, 2) + 16 * scale


def _q8_0(blocks: Bytes) -> Parts:
    return blocks[:, 2:].view(np.int8), half(blocks, 0), 0


def _q4_k(blocks: Bytes) -> Parts:
    scales, minima = (each[:, :, 0] for each in scales_and_minima(blocks))
    return _centred(nibbles(blocks[:, 16:], 32), 8), scales, 8 * scales - minima


def _q5_k(blocks: Bytes) -> Parts:
    scales, minima = (each[:, :, 0] for each in scales_and_minima(blocks))
    fifth = blocks[:, 16:48].reshape(-1, 1, 32) >> np.arange(8, dtype=np.uint8)[:, None] & 1
    quants = nibbles(blocks[:, 48:], 32).reshape(-1, 8, 32) | fifth << 4
    return _centred(quants.reshape(-1, 256).astype(np.uint8), 16), scales, 16 * scales - minima


def _q6_k(blocks: Bytes) -> Parts:
    low = nibbles(blocks[:, :128], 64)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([[0], [2], [4], [6]], np.uint8) & 3
    scales = half(blocks, 208) * blocks[:, 192:208].view(np.int8)
    return _centred((low | high.reshape(-1, 256) << 4).astype(np.uint8), 32), scales, 0


_SPLIT: dict[TensorType, Callable[[Bytes], Parts]] = {
    TensorType.Q4_0: _q4_0,
    TensorType.Q4_1: _q4_1,
    TensorType.Q5_0: _q5_0,
    TensorType.Q5_1: _q5_1,
    TensorType.Q8_0: _q8_0,
    TensorType.Q4_K: _q4_k,
    TensorType.Q5_K: _q5_k,
    TensorType.Q6_K: _q6_k,
}
