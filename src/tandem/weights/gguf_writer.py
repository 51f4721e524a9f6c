"""Writes GGUF version 3, as the `gguf` package and llama.cpp read it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from tandem.errors import ModelFileError
from tandem.weights.gguf import DEFAULT_ALIGNMENT, MAGIC
from tandem.weights.gguf_fields import StoredValue
from tandem.weights.tensor import Tensor, TensorType

Scalar = int | float | bool | str | np.generic
Value = (
    Scalar | StoredValue | Sequence[str] | Sequence[int] | Sequence[float] | Sequence[bool] | npt.NDArray[np.generic]
)

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
# Written at a time, so that progress is seen to move.
_PIECE = 4 << 20
_MAX_NAME = 63  # llama.cpp keeps 64 bytes, the last one zero


@dataclass(frozen=True, slots=True)
class TensorStream:
    """A tensor whose bytes are made while they are written: `strips` gives them in order."""

    name: str
    type: TensorType
    shape: tuple[int, ...]
    strips: Callable[[], Iterable[npt.NDArray[np.uint8]]]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) // self.type.block * self.type.block_bytes


def write_gguf(
    path: Path,
    metadata: Mapping[str, Value],
    tensors: Sequence[Tensor | TensorStream],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """Writes a file as `.NAME.part` beside `path`, syncs it to the disk and renames it when it is whole; returns its
    SHA-256 in hexadecimal.

    metadata: an int becomes uint32, a float float32, bool and str what they are; a numpy scalar or array
    keeps its dtype, which is how other widths are written. A list of str, bool, int (int32) or float
    (float32) becomes an array. `general.alignment` is honoured. tensors: in this order, bytes as they are; what a
    stream gives is hashed and written while it makes the next strip. progress: called with (bytes written, bytes in
    all).
    What a killed process leaves under the temporary name is overwritten by the next that writes the same file.

    ModelFileError: the file cannot be written, there is less room than it takes, or another process is writing it.
    ValueError: what the format cannot hold.
    """
    stored = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    alignment = int.from_bytes(stored.content, "little") if isinstance(stored, StoredValue) else int(stored)  # type: ignore[arg-type]
    if alignment <= 0 or alignment & (alignment - 1):
        raise ValueError(f"general.alignment is {alignment}; expected a power of two")
    header = _header(metadata, tensors, alignment)
    total = _padded(len(header), alignment) + sum(_padded(tensor.nbytes, alignment) for tensor in tensors)
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("ab") as file:
            _own(file, path)
            try:
                file.truncate(0)
                _check_room(path, total)
                sink = _Sink(file, total, progress)
                sink.write(header)
                for tensor in tensors:
                    sink.pad(alignment)
                    sink.write_all([tensor.data] if isinstance(tensor, Tensor) else tensor.strips())
                sink.pad(alignment)
                file.flush()
                os.fsync(file.fileno())
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        _sync_folder(path.parent)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be written: {error.strerror}") from error
    return sink.digest.hexdigest()


class _Sink:
    """The file, its checksum and the progress, all three in step."""

    def __init__(self, file: BinaryIO, total: int, progress: Callable[[int, int], None] | None) -> None:
        self.digest = hashlib.sha256()
        self._file = file
        self._total = total
        self._progress = progress
        self._written = 0

    def write(self, data: bytes | memoryview) -> None:
        self.digest.update(data)
        self._file.write(data)
        self._written += len(data)
        if self._progress is not None:
            self._progress(self._written, self._total)

    def write_all(self, strips: Iterable[npt.NDArray[np.uint8]]) -> None:
        """Writes each strip on a thread of its own while the next is made: two strips are in memory at a time."""
        with ThreadPoolExecutor(1) as writer:
            pending: Future[None] | None = None
            for strip in strips:
                if pending is not None:
                    pending.result()
                pending = writer.submit(self._write_pieces, strip.data)
            if pending is not None:
                pending.result()

    def _write_pieces(self, data: memoryview) -> None:
        for start in range(0, len(data), _PIECE):
            self.write(data[start : start + _PIECE])

    def pad(self, alignment: int) -> None:
        self.write(bytes(-self._written % alignment))


def _own(file: BinaryIO, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ModelFileError(f"{path} is being written by another process") from None


def _check_room(path: Path, total: int) -> None:
    """Before hours of work; the disk may fill up later all the same."""
    status = os.statvfs(path.parent)
    free = status.f_bavail * status.f_frsize
    if free < total:
        raise ModelFileError(
            f"{path} cannot be written: it takes {total:,} bytes and {path.parent} has {free:,} left; free some, or "
            "write it elsewhere"
        )


def _sync_folder(path: Path) -> None:
    """So that the new name outlasts a power cut, too."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _header(metadata: Mapping[str, Value], tensors: Sequence[Tensor | TensorStream], alignment: int) -> bytes:
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
        expected = prod(tensor.shape) // tensor.type.block * tensor.type.block_bytes
        if not 1 <= rank <= 4 or not columns or columns % tensor.type.block or tensor.nbytes != expected:
            raise ValueError(
                f"tensor '{tensor.name}' has {tensor.nbytes} bytes of {tensor.type.name} for {tensor.shape}"
            )
        dimensions = struct.pack(f"<I{rank}Q", rank, *reversed(tensor.shape))
        out += name + dimensions + struct.pack("<IQ", tensor.type.ggml_id, offset)
        offset += _padded(tensor.nbytes, alignment)
    return bytes(out)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(key: str, value: Value) -> tuple[int, bytes]:
    """The type's number and the bytes after it."""
    if isinstance(value, StoredValue):
        return value.kind, value.content
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
