"""Files built byte by byte, lies included, and the bounds that every reader must keep to."""

from __future__ import annotations

import json
import signal
import struct
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np

from tandem.weights.gguf_writer import write_gguf
from tandem.weights.quantize import quantize
from tandem.weights.tensor import Tensor, TensorType

MIB = 1 << 20
Result = TypeVar("Result")


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    """A GGUF key-value pair; `kind` is the value type's number."""
    return string(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, items: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + items


def tensor_info(name: str | bytes, dimensions: Sequence[int], kind: int, offset: int, rank: int | None = None) -> bytes:
    """An entry of GGUF's tensor table: the contiguous dimension first, the ggml type's number."""
    return (
        string(name)
        + struct.pack("<I", len(dimensions) if rank is None else rank)
        + struct.pack(f"<{len(dimensions)}Q", *dimensions)
        + struct.pack("<IQ", kind, offset)
    )


def gguf(
    pairs: Sequence[bytes] = (),
    infos: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    pair_count: int | None = None,
    tensor_count: int | None = None,
    alignment: int = 32,
) -> bytes:
    counts = (
        len(infos) if tensor_count is None else tensor_count,
        len(pairs) if pair_count is None else pair_count,
    )
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(pairs) + b"".join(infos)
    return head + bytes(-len(head) % alignment) + data if infos else head


def safetensors(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    """header: an object to write as JSON, or its bytes as they are. length: what the file says of its length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: str, shape: Sequence[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def random_blocks(type: TensorType, blocks: int, seed: int) -> np.ndarray:
    """Random bytes of whole blocks; their float16 scales and float values are finite, of every magnitude."""
    data = np.random.default_rng(seed).integers(0, 256, (blocks, type.block_bytes), np.uint8)
    for offset in SCALES[type]:
        # A float16 with all exponent bits set is an infinity or NaN.
        high = data[:, offset + 1]
        high[(high & 0x7C) == 0x7C] ^= 0x40
    if type is TensorType.F32 or type is TensorType.BF16:
        data[:, -1] &= 0xBF
    return data.reshape(-1)


# Byte offsets of float16 numbers in a block.
SCALES = {
    TensorType.F32: (),
    TensorType.F16: (0,),
    TensorType.BF16: (),
    TensorType.Q4_0: (0,),
    TensorType.Q4_1: (0, 2),
    TensorType.Q5_0: (0,),
    TensorType.Q5_1: (0, 2),
    TensorType.Q8_0: (0,),
    TensorType.Q4_K: (0, 2),
    TensorType.Q5_K: (0, 2),
    TensorType.Q6_K: (208,),
}


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Fails whatever runs longer, even a loop that would never end."""

    def expire(signum: int, frame: object) -> None:
        raise AssertionError(f"still running after {seconds} s")

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@contextmanager
def bounded_memory(file_size: int) -> Iterator[None]:
    """Fails when Python allocates more than 64 MiB and 16 times the file inside."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 64 * MIB + 16 * file_size, f"{peak:,} bytes allocated for a file of {file_size:,}"


def read_bounded(read: Callable[[], Result], file_size: int, seconds: float = 10) -> Result:
    with time_limit(seconds), bounded_memory(file_size):
        return read()


def f32(name: str, *shape: int) -> Tensor:
    return quantize(name, np.random.default_rng(len(name)).standard_normal(shape, np.float32), TensorType.F32)


def split_model(folder: Path, *, count: int = 3, announced: int | None = 4) -> list[Path]:
    """A model of four tensors in parts, as llama-gguf-split writes them; metadata is in the first."""
    tensors = [f32("a", 4), f32("b", 2, 3), f32("c", 8), f32("d", 1, 2)]
    paths = []
    for number in range(count):
        path = folder / f"model-{number + 1:05}-of-{count:05}.gguf"
        metadata = {"split.no": np.uint16(number), "split.count": np.uint16(count)}
        if announced is not None:
            metadata["split.tensors.count"] = np.int32(announced)
        if number == 0:
            metadata["general.name"] = "in parts"
        write_gguf(path, metadata, tensors[number:] if number == count - 1 else tensors[number : number + 1])
        paths.append(path)
    return paths


def weights_file(names: list[str], metadata: dict[str, str] | None = None, dtype: str = "F32") -> bytes:
    """A safetensors file in which tensor number n holds the one value n."""
    size = {"F32": 4, "I64": 8}[dtype]
    header = {name: entry(dtype, [1], size * n, size * (n + 1)) for n, name in enumerate(names)}
    data = np.arange(len(names), dtype={"F32": np.float32, "I64": np.int64}[dtype]).tobytes()
    return safetensors({**({"__metadata__": metadata} if metadata else {}), **header}, data)


def model_folder(path: Path, files: dict[str, object]) -> Path:
    """Writes files, as bytes or JSON, beside a small config.json; None leaves one out."""
    for name, content in {"config.json": {"model_type": "llama"}, **files}.items():
        if content is None:
            continue
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (path / name).write_bytes(data)
    return path


def index_file(weight_map: object) -> dict[str, object]:
    return {"metadata": {"total_size": 8}, "weight_map": weight_map}


SHARD_A, SHARD_B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = {SHARD_A: weights_file(["a"]), SHARD_B: weights_file(["b"]), INDEX: index_file({"a": SHARD_A, "b": SHARD_B})}
