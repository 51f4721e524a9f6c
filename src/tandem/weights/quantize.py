"""Float32 values to stored types: float casts, Q8_0 and Q4_0, bit for bit as ggml's reference code rounds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from tandem.errors import ModelFileError
from tandem.weights.dequantize import Bytes, Floats
from tandem.weights.tensor import Tensor, TensorType

# Elements packed at a time, so that the intermediate arrays stay in cache.
_CHUNK = 1 << 16


def quantize(name: str, values: npt.NDArray[np.floating], type: TensorType) -> Tensor:
    """A tensor of `values`, which have a float type that float32 holds exactly; rows are last.

    type: F32, F16 or BF16 (rounded to nearest, ties to even), Q8_0 or Q4_0.
    ModelFileError: rows that are no multiple of the block, or values that the type cannot hold (not finite,
    or beyond float16 where it stores values or scales as that). ValueError: a type that Tandem only reads.
    """
    pack = _PACK.get(type)
    if pack is None:
        raise ValueError(f"{type.name} cannot be written; {', '.join(type.name for type in _PACK)} can")
    columns = values.shape[-1] if values.ndim else 1
    if columns % type.block:
        raise ModelFileError(
            f"tensor '{name}' has rows of {columns:,}; {type.name} needs a multiple of {type.block}, "
            "choose another type"
        )
    blocks = values.reshape(-1, type.block)
    data = np.empty((len(blocks), type.block_bytes), np.uint8)
    step = _CHUNK // type.block
    for start in range(0, len(blocks), step):
        part = np.ascontiguousarray(blocks[start : start + step], np.float32)
        if not np.isfinite(part).all():
            raise ModelFileError(
                f"tensor '{name}' holds infinities or NaN; its file is damaged, or its training diverged"
            )
        with np.errstate(over="ignore"):  # checked in what comes out
            packed = pack(part)
        if packed is None:
            raise ModelFileError(f"tensor '{name}' holds values too large for {type.name}; choose BF16 or F32")
        data[start : start + step] = packed
    return Tensor(name, type, values.shape, data.reshape(-1))


def _f32(blocks: Floats) -> Bytes:
    return blocks.view(np.uint8)


def _f16(blocks: Floats) -> Bytes | None:
    halves = blocks.astype(np.float16)
    return halves.view(np.uint8) if np.isfinite(halves).all() else None


def _bf16(blocks: Floats) -> Bytes | None:
    bits = blocks.view(np.uint32)
    # Adding 0x7FFF, and one more where the kept part is odd, carries into it exactly when it must round up.
    halves = ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype(np.uint16)
    return halves.view(np.uint8) if (halves & 0x7FFF).max(initial=0) < 0x7F80 else None


def _q8_0(blocks: Floats) -> Bytes | None:
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    scaled = blocks * _inverse(scale)
    # Halves round away from zero, as C's roundf does and numpy's rint does not.
    magnitude = np.abs(scaled)
    whole = np.floor(magnitude)
    quants = np.sign(scaled) * (whole + np.floor(2 * (magnitude - whole)))
    return _with_scale(scale, quants.astype(np.int8).view(np.uint8))


def _q4_0(blocks: Floats) -> Bytes | None:
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1, keepdims=True), axis=1)
    scale = largest / np.float32(-8)
    quants = np.minimum(np.trunc(blocks * _inverse(scale) + np.float32(8.5)), 15).astype(np.uint8)
    return _with_scale(scale, quants[:, :16] | quants[:, 16:] << 4)


def _inverse(scale: Floats) -> Floats:
    """1 / scale, and 0 for a block of zeros."""
    return np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)


def _with_scale(scale: Floats, quants: Bytes) -> Bytes | None:
    halves = scale.astype(np.float16)
    return np.concatenate([halves.view(np.uint8), quants], axis=1) if np.isfinite(halves).all() else None


_PACK: dict[TensorType, Callable[[Floats], Bytes | None]] = {
    TensorType.F32: _f32,
    TensorType.F16: _f16,
    TensorType.BF16: _bf16,
    TensorType.Q8_0: _q8_0,
    TensorType.Q4_0: _q4_0,
}
