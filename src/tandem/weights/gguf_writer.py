"""Writes GGUF version 3, as the `gguf` package and llama.cpp read it."""

from __future__ import annotations

import os
import secrets
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from tandem.errors import ModelFileError
from tandem.weights.gguf import DEFAULT_ALIGNMENT, MAGIC
from tandem.weights.tensor import Tensor

Scalar = int | float | bool | str | np.generic
Value = Scalar | Sequence[str] | Sequence[int] | Sequence[float] | Sequence[bool] | npt.NDArray[np.generic]

_STRING, _ARRAY = 8, 9
_KINDS = {
    np.dtype("u1"): 0,
    np.dtype("i1"): 1,
    np.dtype("u2"): 2,
    np.dtype("i2"): 3,
    np.dtype("u4"): 4,
    np.dtype("i4"): 5,
    np.dtype("f4"): 6,
    np.dtype("?"): 7,
    np.dtype("u8"): 10,
    np.dtype("i8"): 11,
    np.dtype("f8"): 12,
}
_MAX_NAME = 63  # llama.cpp keeps 64 bytes, the last one zero


def write_gguf(path: Path, metadata: Mapping[str, Value], tensors: Sequence[Tensor]) -> None:
    """Writes a file under a temporary name beside `path` and renames it when it is whole.

    metadata: an int becomes uint32, a float float32, bool and str what they are; a numpy scalar or array
    keeps its dtype, which is how other widths are written. A list of str, bool, int (int32) or float
    (float32) becomes an array. `general.alignment` is honoured. tensors: in this order, bytes as they are.

    ModelFileError: the file cannot be written. ValueError: what the format cannot hold.
    """
    alignment = int(metadata.get("general.alignment", DEFAULT_ALIGNMENT))  # type: ignore[arg-type]
    if alignment <= 0 or alignment & (alignment - 1):
        raise ValueError(f"general.alignment is {alignment}; expected a power of two")
    header = _header(metadata, tensors, alignment)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        try:
            with temporary.open("xb") as file:
                file.write(header)
                for tensor in tensors:
                    _pad(file, alignment)
                    file.write(tensor.data.data)
                _pad(file, alignment)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be written: {error.strerror}") from error


def _header(metadata: Mapping[str, Value], tensors: Sequence[Tensor], alignment: int) -> bytes:
    out = bytearray(MAGIC + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        out += _string(key)
        kind, content = _value(key, value)
        out += struct.pack("<I", kind) + content
    offset = 0
    names: set[str] = set()
    for tensor in tensors:
        name = _string(tensor.name)
        if len(name) - 8 > _MAX_NAME or tensor.name in names:
            raise ValueError(f"the tensor name '{tensor.name}' is too long (over {_MAX_NAME} bytes) or is used twice")
        names.add(tensor.name)
        rank, columns = len(tensor.shape), tensor.shape[-1] if tensor.shape else 0
        expected = tensor.elements // tensor.type.block * tensor.type.block_bytes
        if not 1 <= rank <= 4 or not columns or columns % tensor.type.block or tensor.nbytes != expected:
            raise ValueError(
                f"tensor '{tensor.name}' has {tensor.nbytes} bytes of {tensor.type.name} for {tensor.shape}"
            )
        dimensions = struct.pack(f"<I{rank}Q", rank, *reversed(tensor.shape))
        out += name + dimensions + struct.pack("<IQ", tensor.type.ggml_id, offset)
        offset += -(-tensor.nbytes // alignment) * alignment
    return bytes(out)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(key: str, value: Value) -> tuple[int, bytes]:
    """The type's number and the bytes after it."""
    if isinstance(value, str):
        return _STRING, _string(value)
    if isinstance(value, np.ndarray | np.generic):
        array = value
    elif isinstance(value, Sequence):
        first = type(value[0]) if value else None
        if first is None or any(type(item) is not first for item in value):
            raise ValueError(f"{key} needs items of one type; an empty array is written from a numpy array")
        if first is str:
            strings = b"".join(_string(item) for item in value)  # type: ignore[arg-type]
            return _ARRAY, struct.pack("<IQ", _STRING, len(value)) + strings
        array = np.array(value, {bool: np.bool_, int: np.int32, float: np.float32}[first])
    elif isinstance(value, bool):
        array = np.bool_(value)
    elif isinstance(value, int):
        array = np.uint32(value)
    else:
        array = np.float32(value)
    kind = _KINDS.get(array.dtype)
    if kind is None or array.ndim > 1:
        raise ValueError(f"{key} is {array.dtype} with {array.ndim} dimensions; GGUF has no such value")
    if array.ndim == 0:
        return kind, array.tobytes()
    return _ARRAY, struct.pack("<IQ", kind, array.size) + array.tobytes()


def _pad(file: BinaryIO, alignment: int) -> None:
    file.write(bytes(-file.tell() % alignment))
