"""Packed weights to float32, bit for bit as ggml defines each type.

The layouts and the order of operations are those of ggml's reference code (ggml-quants.c) and its Python
package `gguf`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from tandem.weights.tensor import Tensor, TensorType

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

# Elements unpacked at a time, so that the intermediate arrays stay in cache.
_CHUNK = 1 << 16


def dequantize(tensor: Tensor) -> Floats:
    """The tensor's values, float32, of `tensor.shape`; a new array."""
    return dequantize_bytes(tensor.type, tensor.data).reshape(tensor.shape)


def dequantize_bytes(type: TensorType, data: Bytes) -> Floats:
    """The float32 values, one-dimensional, of whole blocks: `data` is uint8, one-dimensional."""
    if data.size % type.block_bytes:
        raise ValueError(f"{data.size} bytes are not a whole number of {type.name} blocks of {type.block_bytes}")
    blocks = data.reshape(-1, type.block_bytes)
    values = np.empty((len(blocks), type.block), np.float32)
    unpack = _FLOATS.get(type) or partial(_joined, SPLIT[type])
    step = _CHUNK // type.block
    # A scale may be infinite or not a number in a damaged file; the result then says so itself.
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, len(blocks), step):
            values[start : start + step] = unpack(blocks[start : start + step])
    return values.reshape(-1)


def _half(blocks: Bytes, offset: int) -> Floats:
    """The float16 at a byte offset of each block: (blocks, 1)."""
    return blocks[:, offset : offset + 2].view(np.float16).astype(np.float32)


def _nibbles(packed: Bytes, run: int) -> Bytes:
    """4-bit values, (blocks, n) to (blocks, 2 n): of each `run` bytes first the low halves, then the high."""
    halves = packed.reshape(len(packed), -1, 1, run) >> np.array([[0], [4]], np.uint8)
    return (halves & np.uint8(15)).reshape(len(packed), -1)


def _f32(blocks: Bytes) -> Floats:
    return blocks.view(np.float32)


def _f16(blocks: Bytes) -> Floats:
    return _half(blocks, 0)


def _bf16(blocks: Bytes) -> Floats:
    return (blocks.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


@dataclass(frozen=True, slots=True)
class Split:
    """Some blocks of a packed type, taken apart: a value is scale * (quant - middle), or scale * quant + minimum where
    the type has minima.

    quants: (blocks, columns of one) uint8, of Q8_0 int8. scales, minima: (blocks, groups of columns that share one).
    middle: of the quants' range.
    """

    quants: npt.NDArray[np.uint8 | np.int8]
    scales: Floats
    minima: Floats | None
    middle: int

    def centred(self) -> npt.NDArray[np.int8]:
        """The quants around zero."""
        return self.quants.view(np.int8) - np.int8(self.middle)


def _joined(split: Callable[[Bytes], Split], blocks: Bytes) -> Floats:
    parts = split(blocks)
    quants = parts.centred() if parts.minima is None else parts.quants
    values: Floats = parts.scales[:, :, None] * quants.reshape(*parts.scales.shape, -1)
    if parts.minima is not None:
        values += parts.minima[:, :, None]
    return values.reshape(len(blocks), -1)


def _q4_0(blocks: Bytes) -> Split:
    return Split(_nibbles(blocks[:, 2:], 16), _half(blocks, 0), None, 8)


def _q4_1(blocks: Bytes) -> Split:
    return Split(_nibbles(blocks[:, 4:], 16), _half(blocks, 0), _half(blocks, 2), 8)


def _fifth_bits(packed: Bytes) -> Bytes:
    """32 bits of each block, each moved to the place of 16: (blocks, 4) to (blocks, 32)."""
    return np.unpackbits(packed, axis=1, bitorder="little") << np.uint8(4)


def _q5_0(blocks: Bytes) -> Split:
    return Split(_nibbles(blocks[:, 6:], 16) | _fifth_bits(blocks[:, 2:6]), _half(blocks, 0), None, 16)


def _q5_1(blocks: Bytes) -> Split:
    return Split(_nibbles(blocks[:, 8:], 16) | _fifth_bits(blocks[:, 4:8]), _half(blocks, 0), _half(blocks, 2), 16)


def _q8_0(blocks: Bytes) -> Split:
    return Split(blocks[:, 2:].view(np.int8), _half(blocks, 0), None, 0)


def _scales_and_minima(blocks: Bytes) -> tuple[Floats, Floats]:
    """The eight scales and minima of a Q4_K or Q5_K block, each times the block's half; minima are added: (n, 8).

    They are 6-bit numbers in 12 bytes: the first four hold scales 0-3, the next four minima 0-3, the last four
    the low halves of scales and minima 4-7, whose upper two bits lie above those of the first eight.
    """
    low, middle, high = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([low & 63, (high & 15) | (low >> 2 & 48)], axis=1)
    minima = np.concatenate([middle & 63, (high >> 4) | (middle >> 2 & 48)], axis=1)
    return _half(blocks, 0) * scales, -(_half(blocks, 2) * minima)


def _q4_k(blocks: Bytes) -> Split:
    return Split(_nibbles(blocks[:, 16:], 32), *_scales_and_minima(blocks), 8)


def _q5_k(blocks: Bytes) -> Split:
    fifth = blocks[:, 16:48].reshape(-1, 1, 32) >> np.arange(8, dtype=np.uint8)[:, None] & np.uint8(1)
    return Split(
        _nibbles(blocks[:, 48:], 32) | (fifth << np.uint8(4)).reshape(-1, 256), *_scales_and_minima(blocks), 16
    )


def _q6_k(blocks: Bytes) -> Split:
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([[0], [2], [4], [6]], np.uint8) & np.uint8(3)
    quants = _nibbles(blocks[:, :128], 64) | (high << np.uint8(4)).reshape(-1, 256)
    return Split(quants, _half(blocks, 208) * blocks[:, 192:208].view(np.int8), None, 32)


_FLOATS: dict[TensorType, Callable[[Bytes], Floats]] = {
    TensorType.F32: _f32,
    TensorType.F16: _f16,
    TensorType.BF16: _bf16,
}

SPLIT: dict[TensorType, Callable[[Bytes], Split]] = {
    TensorType.Q4_0: _q4_0,
    TensorType.Q4_1: _q4_1,
    TensorType.Q5_0: _q5_0,
    TensorType.Q5_1: _q5_1,
    TensorType.Q8_0: _q8_0,
    TensorType.Q4_K: _q4_k,
    TensorType.Q5_K: _q5_k,
    TensorType.Q6_K: _q6_k,
}
