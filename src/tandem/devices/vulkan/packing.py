"""How matrices lie in device memory: ggml's blocks, taken apart into 32-bit words that shaders load without waste.

A row is a multiple of four words: the quants of all its blocks of 32 elements, then what the type has of high bits,
then its scales. 16 rows are a panel, the last one filled up with zeros: in it lie the first quad (or word) of each row,
then the second ones, and so on, so that whoever works for 16 rows reads one stream. `shaders/weights.glsl` reads this.

- F32, F16, BF16: the elements, padded with zeros to a multiple of 32.
- Q8_0: 8 words a block. All others: 4 words a block; byte j holds element j below and element 16 + j above.
- Q5_0, Q5_1, Q5_K: 1 word a block: byte b holds the fifth bits of elements 4w + b (bit w) and 16 + 4w + b (bit 4 + w).
- Q6_K: 2 words a block, one for each half: byte b holds the upper bits of element 4w + b of the half (bits 2w, 2w + 1).
- Scales: a float16 a block (Q4_0, Q5_0, Q8_0), two (Q4_1, Q5_1), the 16 bytes that head a Q4_K or Q5_K block, or the
  sixteen 8-bit scales of all Q6_K blocks and then their float16s.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from tandem.weights.tensor import TensorType

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint32]

BLOCK = 32
PANEL = 16
# Bytes of rows that are packed at a time.
_PIECE = 512 << 10
_NIBBLES = np.uint64(0x0F0F0F0F0F0F0F0F)
_QUAD = np.dtype((np.void, 16))

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


def padded_rows(rows: int) -> int:
    """Rows of whole panels."""
    return -(-rows // PANEL) * PANEL


def pack_rows(type: TensorType, data: Bytes, out: Bytes) -> None:
    """Packs rows of a tensor's bytes, [rows, row bytes], into `out`, the bytes of their panels."""
    panels = max(1, _PIECE // (PANEL * data.shape[1])) * PANEL
    if len(data) > panels:
        # What is made on the way stays in caches, and the system need not give new pages for it each time.
        row_bytes = out.size // padded_rows(len(data))
        for first in range(0, len(data), panels):
            piece = data[first : first + panels]
            pack_rows(type, piece, out[first * row_bytes : (first + padded_rows(len(piece))) * row_bytes])
        return
    rows = padded_rows(len(data))
    if rows > len(data):
        data = np.concatenate([data, np.zeros((rows - len(data), data.shape[1]), np.uint8)])
    target = out.reshape(rows // PANEL, -1)
    if type.block == 1:
        at = _put(target, 0, data, 16)
    else:
        blocks = data.reshape(rows, -1, type.block_bytes)
        at = _put(target, 0, _quants(type, blocks), 16)
        if type in _FIFTH or type is TensorType.Q6_K:
            at = _put(target, at, _high(type, blocks), 8 if type is TensorType.Q6_K else 4)
        if type is TensorType.Q6_K:
            at = _put(target, at, blocks[..., 192:208], 4)
        at = _put(target, at, blocks[..., _HEAD[type]], 16 if type in (TensorType.Q4_K, TensorType.Q5_K) else 4)
    target[:, at:] = 0


def _put(target: Bytes, at: int, part: Bytes, unit: int) -> int:
    """Copies what rows have of one kind to where it begins in their panels, `unit` bytes of each row in turn; returns
    where the next kind begins.
    """
    if part.strides[-1] != 1 or part.shape[-1] % unit:
        part = _together(part, unit)
    piece = part.shape[-1]
    whole = part.size // len(part)
    stop = at + whole * PANEL
    # NumPy copies a unit at a time where it is one element, several times as fast as byte by byte.
    element = np.dtype((np.void, unit))
    units = (whole // piece, piece // unit)
    place = target[:, at:stop].reshape(len(target), *units, PANEL, unit).view(element)
    source = part.reshape(len(target), PANEL, *units, unit).view(element)
    place.transpose(0, 3, 1, 2, 4)[...] = source
    return stop


def _together(part: Bytes, unit: int) -> Bytes:
    """What rows have of one kind, [rows, bytes], without gaps; filled up with zeros to whole units."""
    rows, size, piece = len(part), part.size // len(part), part.shape[-1]
    joined = np.zeros((rows, -(-size // unit) * unit), np.uint8)
    place = joined[:, :size].reshape(part.shape)
    if part.strides[-1] == 1:
        place.view(np.dtype((np.void, piece)))[...] = part.view(np.dtype((np.void, piece)))
    else:
        place[...] = part
    return joined


def _quants(type: TensorType, blocks: Bytes) -> Bytes:
    """Blocks of 32 elements: bytes, or nibbles of which byte j holds elements j and 16 + j."""
    if type is TensorType.Q8_0:
        return blocks[..., 2:]
    if type.block == BLOCK:
        return blocks[..., -16:]
    # K-quants keep one block of 32 in the low halves of 32 (Q6_K: of 64) bytes and a later one in the high halves.
    start, runs = (0, 2) if type is TensorType.Q6_K else (type.block_bytes - 128, 1)
    rows, count = blocks.shape[:2]
    words = _together(blocks[..., start : start + 128], 128).view(np.uint64).reshape(-1)
    out = np.empty((rows, count, 4 // runs, 2, runs), _QUAD)
    for half, nibbles in enumerate((words & _NIBBLES, words >> np.uint64(4) & _NIBBLES)):
        # Of each pair of quads the first takes the second in; what the second gets is not looked at.
        nibbles[:-2] |= nibbles[2:] << np.uint64(4)
        out[..., half, :] = nibbles.view(_QUAD)[::2].reshape(rows, count, 4 // runs, runs)
    return out.view(np.uint8)


def _high(type: TensorType, blocks: Bytes) -> Bytes:
    """The bits that a block's nibbles lack, as the layout has them."""
    rows, count = blocks.shape[:2]
    if type is TensorType.Q6_K:
        # Bits 2s of byte 16 g + 4 w + b belong to element w, b of half g of sub-block s: four bytes over w are a 4 x 4
        # matrix of pairs of bits that has to be transposed.
        columns = blocks[..., 128:192].reshape(rows, count, 2, 2, 4, 4).swapaxes(-1, -2)
        words = _swapped(_swapped(_words(columns, np.uint32), 12, 0x0000F0F0), 6, 0x00CC00CC)
        return words.view(np.uint8).reshape(rows, count, 2, 2, 4, 4).transpose(0, 1, 2, 5, 3, 4)
    packed = blocks[..., _FIFTH[type]]
    if type is TensorType.Q5_K:
        # Bit s of byte 4 w + b belongs to element w, b of sub-block s: an 8 x 8 matrix of bits over w.
        columns = packed.reshape(rows, count, 8, 4).swapaxes(-1, -2)
        words = _words(columns, np.uint64)
        for shift, mask in ((28, 0x00000000F0F0F0F0), (14, 0x0000CCCC0000CCCC), (7, 0x00AA00AA00AA00AA)):
            words = _swapped(words, shift, mask)
        return words.view(np.uint8).reshape(rows, count, 4, 8).swapaxes(-1, -2)
    # Bit 4 w + b goes to bit w of byte b: for the two halves of the 32 bits by a table.
    halves = np.ascontiguousarray(packed).view(np.uint16).reshape(rows, count, 2)
    table = _spread_table()
    return (table[halves[..., :1]] | table[halves[..., 1:]] << np.uint32(4)).view(np.uint8)


def _words(bytes: Bytes, dtype: type[np.unsignedinteger[Any]]) -> npt.NDArray[Any]:
    return np.ascontiguousarray(bytes).view(dtype)


def _swapped(words: npt.NDArray[Any], shift: int, mask: int) -> npt.NDArray[Any]:
    """Exchanges the bits of `mask` with those `shift` above them."""
    kind = words.dtype.type
    moved = (words ^ words >> kind(shift)) & kind(mask)
    swapped: npt.NDArray[Any] = words ^ moved ^ moved << kind(shift)
    return swapped


@cache
def _spread_table() -> Words:
    """For 16 bits, the word with bit 4 w + b at bit w of byte b."""
    values = np.arange(1 << 16, dtype=np.uint32)
    out = np.zeros_like(values)
    for bit in range(16):
        out |= (values >> np.uint32(bit) & np.uint32(1)) << np.uint32(8 * (bit % 4) + bit // 4)
    return out
