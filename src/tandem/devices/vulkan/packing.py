"""How matrices lie in device memory: ggml's blocks, taken apart into 32-bit words that shaders load without waste.

A row is a multiple of four words: the quants of all its blocks of 32 elements, then what the type has of high bits,
then its scales; `shaders/weights.glsl` reads this.

- F32, F16, BF16: the elements, padded with zeros to a multiple of 32.
- Q8_0: 8 words a block. All others: 4 words a block; byte j holds element j below and element 16 + j above.
- Q5_0, Q5_1, Q5_K: 1 word a block: byte b holds the fifth bits of elements 4w + b (bit w) and 16 + 4w + b (bit 4 + w).
- Q6_K: 2 words a block, one for each half: byte b holds the upper bits of element 4w + b of the half (bits 2w, 2w + 1).
- Scales: a float16 a block (Q4_0, Q5_0, Q8_0), two (Q4_1, Q5_1), the 16 bytes that head a Q4_K or Q5_K block, or the
  sixteen 8-bit scales of all Q6_K blocks and then their float16s.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tandem.weights.tensor import TensorType

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint32]

BLOCK = 32

# Where a ggml block keeps its parts: slices of bytes.
_HEAD = {
    TensorType.Q4_0: slice(0, 2),
    TensorType.Q4_1: slice(0, 4),
    TensorType.Q5_0: slice(0, 2),
    TensorType.Q5_1: slice(0, 4),
    TensorType.Q8_0: slice(0, 2),
    TensorType.Q4_K: slice(0, 16),
    TensorType.Q5_K: slice(0, 16),
    TensorType.Q6_K: slice(208, 210),
}
_FIFTH = {TensorType.Q5_0: slice(2, 6), TensorType.Q5_1: slice(4, 8), TensorType.Q5_K: slice(16, 48)}


def blocks_of(columns: int) -> int:
    """Blocks of 32 that a row of `columns` elements takes."""
    return -(-columns // BLOCK)


def row_words(type: TensorType, columns: int) -> int:
    """Words of one packed row."""
    blocks = blocks_of(columns)
    halves, supers = -(-blocks // 2), blocks // 8
    words = {
        TensorType.F32: 32 * blocks,
        TensorType.F16: 16 * blocks,
        TensorType.BF16: 16 * blocks,
        TensorType.Q8_0: 8 * blocks + halves,
        TensorType.Q4_0: 4 * blocks + halves,
        TensorType.Q4_1: 5 * blocks,
        TensorType.Q5_0: 5 * blocks + halves,
        TensorType.Q5_1: 6 * blocks,
        TensorType.Q4_K: 4 * blocks + 4 * supers,
        TensorType.Q5_K: 5 * blocks + 4 * supers,
        TensorType.Q6_K: 6 * blocks + 4 * supers + -(-supers // 2),
    }[type]
    return -(-words // 4) * 4


def pack_rows(type: TensorType, data: Bytes, columns: int) -> Words:
    """Rows of packed bytes [rows, row bytes] as rows of words [rows, row_words]."""
    rows = len(data)
    out = np.zeros((rows, row_words(type, columns) * 4), np.uint8)
    if type.block == 1:
        out[:, : data.shape[1]] = data
        return out.view(np.uint32)
    blocks = data.reshape(rows, -1, type.block_bytes)
    at = 0
    for part in (_quants(type, blocks), _high(type, blocks), *_scales(type, blocks)):
        flat = part.reshape(rows, -1)
        out[:, at : at + flat.shape[1]] = flat
        at += -(-flat.shape[1] // 4) * 4
    return out.view(np.uint32)


def _quants(type: TensorType, blocks: Bytes) -> Bytes:
    match type:
        case TensorType.Q8_0:
            return blocks[..., 2:]
        case TensorType.Q4_K | TensorType.Q5_K:
            return _paired(_nibbles(blocks[..., -128:], 32))
        case TensorType.Q6_K:
            return _paired(_nibbles(blocks[..., :128], 64))
        case _:
            return blocks[..., -16:]


def _high(type: TensorType, blocks: Bytes) -> Bytes:
    rows, count = blocks.shape[:2]
    if type is TensorType.Q6_K:
        # [half of the block, bits 2s of byte i]: element 32 s + i of the half.
        packed = blocks[..., 128:192].reshape(rows, count, 2, 1, 32)
        values = packed >> np.array([[0], [2], [4], [6]], np.uint8) & 3
        halves = values.reshape(rows, count * 8, 2, 4, 4)
        high: Bytes = np.bitwise_or.reduce(halves << np.array([[0], [2], [4], [6]], np.uint8), axis=-2)
        return high
    if type not in _FIFTH:
        return blocks[..., :0]
    packed = blocks[..., _FIFTH[type]]
    bits = np.unpackbits(packed, axis=-1, bitorder="little")
    if type is TensorType.Q5_K:
        # Bit s of byte i belongs to element i of sub-block s.
        bits = np.swapaxes(bits.reshape(rows, count, 32, 8), -1, -2)
    ordered = bits.reshape(rows, -1, 2, 4, 4).transpose(0, 1, 4, 2, 3)
    return np.packbits(ordered.reshape(rows, -1, 8), axis=-1, bitorder="little")


def _scales(type: TensorType, blocks: Bytes) -> list[Bytes]:
    head = np.ascontiguousarray(blocks[..., _HEAD[type]])
    return [np.ascontiguousarray(blocks[..., 192:208]), head] if type is TensorType.Q6_K else [head]


def _nibbles(packed: Bytes, run: int) -> Bytes:
    """4-bit values in order, in blocks of 32: of each `run` bytes first the low halves, then the high."""
    halves = packed.reshape(*packed.shape[:2], -1, 1, run) >> np.array([[0], [4]], np.uint8) & np.uint8(15)
    return halves.reshape(len(packed), -1, BLOCK)


def _paired(values: Bytes) -> Bytes:
    """Blocks of 32 4-bit values, two to a byte: elements j and 16 + j."""
    return values[..., :16] | values[..., 16:] << np.uint8(4)
