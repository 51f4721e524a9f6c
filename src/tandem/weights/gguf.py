"""GGUF files, versions 2 and 3, as mapped memory: metadata parsed, tensors as views, nothing believed
unchecked.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tandem.errors import ModelFileError, UnsupportedModelError
from tandem.weights.checkpoint import Checkpoint
from tandem.weights.files import map_file, show
from tandem.weights.gguf_fields import Fields, StoredValue
from tandem.weights.tensor import Tensor, TensorType

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
# The name of one part of a split model, as llama-gguf-split writes it: prefix, number from 1, count.
PART_NAME = re.compile(r"(?P<prefix>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)

_SUPPORTED = {type.ggml_id: type for type in TensorType}
# What ggml calls the types that Tandem does not read, so that a message can name them.
_OTHER_TYPES = {
    4: "Q4_2",
    5: "Q4_3",
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    34: "TQ1_0",
    35: "TQ2_0",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
    39: "MXFP4",
    40: "NVFP4",
    41: "Q1_0",
    42: "Q2_0",
}
_MAX_DIMENSIONS = 4
# The largest models have a few thousand tensors and some hundred keys; this bounds time and memory.
_MAX_ENTRIES = 1 << 16


@dataclass(frozen=True, slots=True)
class _File:
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class _TensorInfo:
    """One entry of the tensor table; `start` and `end` are bytes relative to the data section."""

    name: str
    type: TensorType
    shape: tuple[int, ...]
    start: int
    end: int


def read_gguf(path: Path) -> Checkpoint:
    """Opens a GGUF file, or all parts of a split one when `path` is any of them.

    Metadata is the first part's; its numeric arrays are numpy arrays, its arrays of strings lists. GGUF's
    dimensions are reversed into `Tensor.shape`. Tensors are views of the mapped file.

    ModelFileError: not GGUF, damaged, truncated, a part missing. UnsupportedModelError: version 1,
    big-endian, or a tensor type that Tandem does not read.
    """
    file = _read_file(path)
    count = _split_number(path, file.metadata, "split.count", 1)
    if count <= 1:
        return Checkpoint(path, "gguf", file.metadata, file.tensors)
    parts = _part_paths(path, count)
    files = [file if part == path else _read_file(part) for part in parts]
    tensors: dict[str, Tensor] = {}
    for index, (part, opened) in enumerate(zip(parts, files, strict=True)):
        number = _split_number(part, opened.metadata, "split.no", -1)
        its_count = _split_number(part, opened.metadata, "split.count", 1)
        if (number, its_count) != (index, count):
            raise ModelFileError(
                f"{part} says that it is part {number + 1} of {its_count}, its name and {path.name} say part "
                f"{index + 1} of {count}; parts of different models are mixed up, download them again"
            )
        for name, tensor in opened.tensors.items():
            if name in tensors:
                raise ModelFileError(f"{part}: tensor {show(name)} is also in an earlier part; download again")
            tensors[name] = tensor
    announced = _split_number(path, files[0].metadata, "split.tensors.count", len(tensors))
    if announced != len(tensors):
        raise ModelFileError(
            f"{parts[0]} announces {announced:,} tensors in {count} parts, they hold {len(tensors):,}; "
            "download them again"
        )
    return Checkpoint(parts[0], "gguf", files[0].metadata, tensors)


def read_stored_metadata(path: Path) -> dict[str, StoredValue]:
    """The key-value pairs of one file as it stores them, for writing them again. Raises as `read_gguf` does."""
    fields = Fields(path, map_file(path))
    _, pairs = _header(fields)
    return fields.stored_metadata(pairs)


def _split_number(path: Path, metadata: Mapping[str, Any], key: str, default: int) -> int:
    value = metadata.get(key, default)
    if type(value) is not int:
        raise ModelFileError(f"{path}: {key} is {reprlib.repr(value)}; expected a whole number")
    return value


def _part_paths(path: Path, count: int) -> list[Path]:
    name = PART_NAME.fullmatch(path.name)
    if name is None or int(name["count"]) != count:
        raise ModelFileError(
            f"{path} is one of {count} parts of a split model, but its name does not end in "
            f"-00001-of-{count:05}.gguf or the like; give the parts the names that they were published with"
        )
    parts = [path.with_name(f"{name['prefix']}-{n:05}-of-{count:05}{path.suffix}") for n in range(1, count + 1)]
    missing = [part.name for part in parts if not part.exists()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ModelFileError(
            f"{path} is one of {count} parts and {', '.join(missing[:3])}{more} is missing beside it; "
            "download the missing part into the same folder"
        )
    return parts


def _read_file(path: Path) -> _File:
    fields = Fields(path, map_file(path))
    tensor_count, pairs = _header(fields)
    metadata = fields.metadata(pairs)
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        raise fields.damaged(f"general.alignment is {reprlib.repr(alignment)}, not a power of two")
    infos: dict[str, _TensorInfo] = {}
    for number in range(tensor_count):
        info = _tensor_info(fields, number, alignment)
        if info.name in infos:
            raise fields.damaged(f"tensor {show(info.name)} appears twice")
        infos[info.name] = info
    base = -(-fields.position // alignment) * alignment
    _check_places(fields, base, infos)
    # One array over the data section that all tensors are views of.
    data = np.frombuffer(fields.data, np.uint8)[base:]
    tensors = {name: Tensor(name, info.type, info.shape, data[info.start : info.end]) for name, info in infos.items()}
    return _File(metadata, tensors)


def _header(fields: Fields) -> tuple[int, int]:
    """The numbers of tensors and of key-value pairs."""
    path = fields.path
    if fields.data[:4] != MAGIC:
        raise ModelFileError(f"{path} is not a GGUF file: it starts with {fields.data[:4]!r}, expected {MAGIC!r}")
    fields.u32("the magic")
    version = fields.u32("the version")
    if version and version & 0xFFFF == 0:
        raise UnsupportedModelError(
            f"{path} is a big-endian GGUF file; Tandem reads little-endian ones, convert the model again"
        )
    if version == 1:
        raise UnsupportedModelError(
            f"{path} is a GGUF file of version 1; Tandem reads 2 and 3, convert the model again"
        )
    if version not in (2, 3):
        raise UnsupportedModelError(f"{path} is a GGUF file of version {version}; Tandem reads versions 2 and 3")
    return fields.count("tensors", _MAX_ENTRIES), fields.count("key-value pairs", _MAX_ENTRIES)


def _tensor_info(fields: Fields, number: int, alignment: int) -> _TensorInfo:
    name = fields.string(f"the name of tensor {number}")
    tensor = f"tensor {show(name)}"
    rank = fields.u32(f"the number of dimensions of {tensor}")
    if rank > _MAX_DIMENSIONS:
        raise fields.damaged(f"{tensor} has {rank:,} dimensions, GGUF allows {_MAX_DIMENSIONS}")
    dimensions = [fields.u64(f"a dimension of {tensor}") for _ in range(rank)]
    shape = tuple(reversed(dimensions)) or (1,)
    type = _tensor_type(fields, tensor, fields.u32(f"the type of {tensor}"))
    start = fields.u64(f"the offset of {tensor}")
    if start % alignment:
        raise fields.damaged(f"{tensor} starts at {start:,}, not a multiple of the alignment {alignment:,}")
    if 0 in shape:
        raise fields.damaged(f"{tensor} has an empty dimension: {shape}")
    if shape[-1] % type.block:
        raise fields.damaged(f"{tensor} has rows of {shape[-1]:,}, {type.name} needs a multiple of {type.block}")
    size = type.row_bytes(shape[-1])
    for rows in shape[:-1]:
        size *= rows
    return _TensorInfo(name, type, shape, start, start + size)


def _tensor_type(fields: Fields, tensor: str, number: int) -> TensorType:
    supported = _SUPPORTED.get(number)
    if supported is None:
        name = _OTHER_TYPES.get(number, f"number {number}")
        raise UnsupportedModelError(
            f"{fields.path}: {tensor} has the type {name}; Tandem reads "
            f"{', '.join(type.name for type in TensorType)}: take another quantization of this model"
        )
    return supported


def _check_places(fields: Fields, base: int, infos: Mapping[str, _TensorInfo]) -> None:
    """Each tensor lies inside the file and no two share a byte."""
    previous_end, previous = 0, ""
    for info in sorted(infos.values(), key=lambda info: info.start):
        if base + info.end > fields.size:
            raise fields.damaged(
                f"tensor {show(info.name)} ({info.type.name}, shape {info.shape}) ends at byte "
                f"{base + info.end:,}, the file has {fields.size:,}"
            )
        if info.start < previous_end:
            raise fields.damaged(f"tensors {show(previous)} and {show(info.name)} overlap")
        previous_end, previous = info.end, info.name
