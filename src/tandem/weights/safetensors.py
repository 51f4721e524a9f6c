"""safetensors files as mapped memory; an own reader, because numpy has no bfloat16.

It refuses what the official library refuses (https://github.com/huggingface/safetensors).
"""

from __future__ import annotations

import json
import mmap
import reprlib
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from tandem.errors import ModelFileError, UnsupportedModelError
from tandem.weights.files import map_file, show
from tandem.weights.tensor import Tensor, TensorType

_SUPPORTED = {"F32": TensorType.F32, "F16": TensorType.F16, "BF16": TensorType.BF16}
# Bits per element of every type that the format knows.
_BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
# Room for some 35,000 tensors. The official limit is 100 MB; this one bounds what parsing hostile JSON can
# allocate, which is up to 25 bytes for each byte of it.
_MAX_HEADER = 4 << 20


@dataclass(frozen=True, slots=True)
class SafetensorsFile:
    """tensors: of types that Tandem reads. skipped: the others, with the reason. metadata: `__metadata__`."""

    tensors: dict[str, Tensor]
    skipped: dict[str, str]
    metadata: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_safetensors(path: Path) -> SafetensorsFile:
    """Opens one safetensors file; tensors are views of the mapped file.

    ModelFileError: damaged, truncated, overlapping or uncovered bytes. UnsupportedModelError: an element type
    that is not among the format's (`_BITS`).
    """
    data = map_file(path)
    header, base = _header(path, data)
    metadata = _metadata(path, header.pop("__metadata__", None))
    entries = [_entry(path, name, value) for name, value in header.items()]
    _check_places(path, entries, len(data) - base)
    content = np.frombuffer(data, np.uint8)[base:]
    tensors: dict[str, Tensor] = {}
    skipped: dict[str, str] = {}
    for entry in entries:
        type = _SUPPORTED.get(entry.dtype)
        if type is None:
            skipped[entry.name] = f"type {entry.dtype}; Tandem reads {', '.join(_SUPPORTED)} from safetensors"
        else:
            tensors[entry.name] = Tensor(entry.name, type, entry.shape, content[entry.start : entry.end])
    return SafetensorsFile(tensors, skipped, metadata)


def _damaged(path: Path, what: str) -> ModelFileError:
    return ModelFileError(f"{path} is not a safetensors file or is damaged: {what}; download it again")


def _header(path: Path, data: mmap.mmap) -> tuple[dict[str, Any], int]:
    """The parsed header and the byte at which the tensors' data begins."""
    if len(data) < 8:
        raise _damaged(path, f"it has {len(data)} bytes, less than a header's length")
    (length,) = struct.unpack_from("<Q", data)
    if length > len(data) - 8:
        raise _damaged(path, f"it announces a header of {length:,} bytes and has {len(data):,}")
    if length > _MAX_HEADER:
        raise ModelFileError(f"{path} has a header of {length:,} bytes; Tandem reads headers up to {_MAX_HEADER:,}")
    try:
        header = json.loads(
            data[8 : 8 + length].decode(), object_pairs_hook=_checked_object, parse_constant=_no_constant
        )
    except RecursionError as error:
        raise _damaged(path, "its header nests too deeply") from error
    except ValueError as error:  # JSON and UTF-8 errors, duplicates, integers of thousands of digits
        raise _damaged(path, f"its header is not valid JSON ({error})") from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not a JSON object")
    return header, 8 + length


def _checked_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("an object has the same key twice")
    for text in (*values, *values.values()):
        if isinstance(text, str):
            text.encode()  # half of a surrogate pair is valid JSON, but not Unicode: a ValueError
    return values


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _metadata(path: Path, value: object) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise _damaged(path, "__metadata__ is not an object of strings")
    return value


def _entry(path: Path, name: str, value: object) -> _Entry:
    tensor = f"tensor {show(name)}"
    if not isinstance(value, dict):
        raise _damaged(path, f"{tensor} is described by {reprlib.repr(value)}, not by an object")
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(dtype, str):
        raise _damaged(path, f"{tensor} has no dtype")
    if dtype not in _BITS:
        raise UnsupportedModelError(
            f"{path}: {tensor} has the type {show(dtype)}; Tandem knows {', '.join(_BITS)}, find a newer Tandem"
        )
    if not isinstance(shape, list) or not all(map(_is_size, shape)):
        raise _damaged(path, f"{tensor} has the shape {reprlib.repr(shape)}, not a list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise _damaged(path, f"{tensor} has the data_offsets {reprlib.repr(offsets)}, not [begin, end]")
    bits = _BITS[dtype]
    for size in shape:
        bits *= size
        if bits >= 1 << 64:  # stop before hostile sizes make a number of millions of digits
            raise _damaged(path, f"{tensor} of {dtype} and shape {reprlib.repr(shape)} is larger than any file")
    start, end = offsets
    if bits != 8 * (end - start):
        raise _damaged(
            path,
            f"{tensor} of {dtype} and shape {reprlib.repr(shape)} needs {bits / 8:,} bytes and has {end - start:,}",
        )
    return _Entry(name, dtype, tuple(shape), start, end)


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 64


def _check_places(path: Path, entries: list[_Entry], size: int) -> None:
    """The tensors cover the data section without overlaps or holes, as the format demands."""
    covered = 0
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.end)):
        if entry.start != covered:
            what = "overlaps the tensor before it" if entry.start < covered else "leaves a hole before it"
            raise _damaged(path, f"tensor {show(entry.name)} {what} (byte {entry.start:,}, expected {covered:,})")
        covered = entry.end
    if covered != size:
        raise _damaged(path, f"its tensors have {covered:,} bytes, the file holds {size:,} after the header")
