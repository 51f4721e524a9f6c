"""Packed weights to float32, bit for bit as ggml defines each type.

The layouts and the order of operations are those of ggml's reference code (ggml-quants.c) and its Python
package `gguf`.
"""

from __future__ import annotations

from collections.abc import Callable

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
    unpack = _UNPACK[type]
    step = _CHUNK // type.block
    # A scale may be infinite or not a number in a damaged file; the result then says so itself.
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, len(blocks), step):
            values[start : start + step] = unpack(blocks[start : start + step])
    return values.reshape(-1)


def half(blocks: Bytes, offset: int) -> Floats:
    """The float16 at a byte offset of each block: (blocks, 1)."""
    return blocks[:, offset : offset + 2].view(np.float16).astype(np.float32)


def nibbles(packed: Bytes, run: int) -> Bytes:
    """4-bit values, (blocks, n) to (blocks, 2 n): of each `run` bytes first the low halves, then the high."""
    halves = packed.reshape(len(packed), -1, 1, run) >> np.array([[0], [4]], np.uint8)
    return (halves & np.uint8(15)).reshape(len(packed), -1)


def _f32(blocks: Bytes) -> Floats:
    return blocks.view(np.float32)


def _f16(blocks: Bytes) -> Floats:
    return half(blocks, 0)


def _bf16(blocks: Bytes) -> Floats:
    return (blocks.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _q4_0(blocks: Bytes) -> Floats:
    quants = nibbles(blocks[:, 2:], 16).view(np.int8) - 8
    return half(blocks, 0) * quants


def _q4_1(blocks: Bytes) -> Floats:
    return half(blocks, 0) * nibbles(blocks[:, 4:], 16) + half(blocks, 2)


def fifth_bits(packed: Bytes) -> Bytes:
    """32 bits of each block, each moved to the place of 16: (blocks, 4) to (blocks, 32)."""
    return np.unpackbits(packed, axis=1, bitorder="little") << np.uint8(4)


def _q5_0(blocks: Bytes) -> Floats:
    quants = (nibbles(blocks[:, 6:], 16) | fifth_bits(blocks[:, 2:6])).view(np.int8) - 16
    return half(blocks, 0) * quants


def _q5_1(blocks: Bytes) -> Floats:
    quants = nibbles(blocks[:, 8:], 16) | fifth_bits(blocks[:, 4:8])
    return half(blocks, 0) * quants + half(blocks, 2)


def _q8_0(blocks: Bytes) -> Floats:
    return blocks[:, 2:].view(np.int8) * half(blocks, 0)


def scales_and_minima(blocks: Bytes) -> tuple[Floats, Floats]:
    """The eight scales and minima of a Q4_K or Q5_K block, each times the block's half: (n, 8, 1).

    They are 6-bit numbers in 12 bytes: the first four hold scales 0-3, the next four minima 0-3, the last four
    the low halves of scales and minima 4-7, whose upper two bits lie above those of the first eight.
    """
    low, middle, high = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([low & 63, (high & 15) | (low >> 2 & 48)], axis=1)
    minima = np.concatenate([middle & 63, (high >> 4) | (middle >> 2 & 48)], axis=1)
    return (half(blocks, 0) * scales)[:, :, None], (half(blocks, 2) * minima)[:, :, None]


def _q4_k(blocks: Bytes) -> Floats:
    scales, minima = scales_and_minima(blocks)
    quants = nibbles(blocks[:, 16:], 32).reshape(-1, 8, 32)
    return (scales * quants - minima).reshape(-1, 256)


def _q5_k(blocks: Bytes) -> Floats:
    scales, minima = scales_and_minima(blocks)
    fifth = blocks[:, 16:48].reshape(-1, 1, 32) >> np.arange(8, dtype=np.uint8)[:, None] & 1
    quants = nibbles(blocks[:, 48:], 32).reshape(-1, 8, 32) | fifth << 4
    return (scales * quants - minima).reshape(-1, 256)


def _q6_k(blocks: Bytes) -> Floats:
    low = nibbles(blocks[:, :128], 64)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([[0], [2], [4], [6]], np.uint8) & 3
    quants = (low | high.reshape(-1, 256) << 4).view(np.int8) - 32
    scales = half(blocks, 208) * blocks[:, 192:208].view(np.int8)
    return (scales[:, :, None] * quants.reshape(-1, 16, 16)).reshape(-1, 256)


_UNPACK: dict[TensorType, Callable[[Bytes], Floats]] = {
    TensorType.F32: _f32,
    TensorType.F16: _f16,
    TensorType.BF16: _bf16,
    TensorType.Q4_0: _q4_0,
    TensorType.Q4_1: _q4_1,
    TensorType.Q5_0: _q5_0,
    TensorType.Q5_1: _q5_1,
    TensorType.Q8_0: _q8_0,
    TensorType.Q4_K: _q4_k,
    TensorType.Q5_K: _q5_k,
    TensorType.Q6_K: _q6_k,
}
