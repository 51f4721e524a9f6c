"""The fields of a GGUF header, each one checked against the file's end before it is believed.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tandem.errors import ModelFileError, UnsupportedModelError
from tandem.weights.files import show

_STRING, _ARRAY, _BOOL = 8, 9, 7
# Value types by number: scalars that numpy knows; bool, string and array are read by themselves.
_NUMBERS: dict[int, np.dtype[Any]] = {
    0: np.dtype("u1"),
    1: np.dtype("i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class StoredValue:
    """A value as its file holds it: the number of its type, and the bytes after that number."""

    kind: int
    content: bytes


class Fields:
    """Reads the fields of one mapped GGUF file in order; `position` is the next byte."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.size = len(data)
        self.position = 0

    def damaged(self, what: str) -> ModelFileError:
        return ModelFileError(f"{self.path} is damaged or truncated: {what}; download or convert it again")

    def _take(self, size: int, what: str) -> int:
        """Moves past `size` bytes and returns where they start."""
        start = self.position
        if size > self.size - start:
            raise self.damaged(f"{what} needs {size:,} bytes at byte {start:,}, the file has {self.size:,}")
        self.position = start + size
        return start

    def u32(self, what: str) -> int:
        return int(_U32.unpack_from(self.data, self._take(4, what))[0])

    def u64(self, what: str) -> int:
        return int(_U64.unpack_from(self.data, self._take(8, what))[0])

    def count(self, what: str, limit: int) -> int:
        count = self.u64(f"the number of {what}")
        if count > limit:
            raise self.damaged(f"it announces {count:,} {what}, more than {limit:,}")
        return count

    def string(self, what: str) -> str:
        length = self.u64(f"the length of {what}")
        start = self._take(length, what)
        return self._decode(start, start + length, what)

    def _decode(self, start: int, end: int, what: str) -> str:
        try:
            return self.data[start:end].decode()
        except UnicodeDecodeError as error:
            raise self.damaged(f"{what} is not UTF-8 text (byte {start + error.start:,})") from error

    def metadata(self, pairs: int) -> dict[str, Any]:
        """Key-value pairs: int, float, bool, str, list of str, or a numpy array of numbers or bools."""
        return dict(self._pairs(pairs, self._value))

    def stored_metadata(self, pairs: int) -> dict[str, StoredValue]:
        """The same pairs, checked alike, as they are stored."""

        def stored(kind: int, what: str) -> StoredValue:
            start = self.position
            self._value(kind, what)
            return StoredValue(kind, self.data[start : self.position])

        return dict(self._pairs(pairs, stored))

    def _pairs(self, pairs: int, read: Callable[[int, str], _T]) -> Iterator[tuple[str, _T]]:
        keys: set[str] = set()
        for number in range(pairs):
            key = self.string(f"key {number}")
            if not key:
                raise self.damaged(f"key {number} is empty")
            if key in keys:
                raise self.damaged(f"key {show(key)} appears twice")
            keys.add(key)
            yield key, read(self.u32(f"the type of {show(key)}"), f"the value of {show(key)}")

    def _value(self, kind: int, what: str) -> Any:
        if kind == _STRING:
            return self.string(what)
        if kind == _ARRAY:
            return self._array(what)
        return self._numbers(kind, 1, what)[0].item()

    def _array(self, what: str) -> Any:
        kind = self.u32(f"the type of {what}")
        if kind == _ARRAY:
            raise UnsupportedModelError(
                f"{self.path}: {what} is an array of arrays; Tandem reads arrays of numbers, bools and strings"
            )
        if kind == _STRING:
            return self._strings(self.u64(f"the length of {what}"), what)
        return self._numbers(kind, self.u64(f"the length of {what}"), what)

    def _numbers(self, kind: int, count: int, what: str) -> np.ndarray[Any, np.dtype[Any]]:
        dtype = _NUMBERS.get(0 if kind == _BOOL else kind)
        if dtype is None:
            raise self.damaged(f"{what} has the type {kind}, GGUF defines 0 to 12")
        start = self._take(count * dtype.itemsize, what)
        # Copied, because the file does not align metadata and a view would keep the whole file mapped.
        values = np.frombuffer(self.data, dtype, count, start).copy()
        if kind != _BOOL:
            return values
        if count and values.max() > 1:
            raise self.damaged(f"{what} is a bool, but neither 0 nor 1")
        return values.view(np.bool_)

    def _strings(self, count: int, what: str) -> list[str]:
        # The one hot loop of opening a file: a vocabulary and its merges are up to a million strings.
        data, size, length_at = self.data, self.size, _U64.unpack_from
        strings: list[str] = []
        append = strings.append
        start = self.position
        try:
            for _ in range(count):
                start += 8
                end = start + length_at(data, start - 8)[0]
                if end > size:
                    raise self.damaged(f"string {len(strings):,} of {what} ends after the file")
                append(data[start:end].decode())
                start = end
        except struct.error as error:
            raise self.damaged(f"{what} ends after the file") from error
        except UnicodeDecodeError as error:
            raise self.damaged(f"string {len(strings):,} of {what} is not UTF-8 text") from error
        self.position = start
        return strings
