"""Mutated files: whatever the bytes, a reader returns a consistent checkpoint or raises one of Tandem's errors.

It never raises anything else, never hangs, and never allocates by what a field says.
"""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from paths import SHARED
from tandem.errors import TandemError
from tandem.weights.dequantize import dequantize
from tandem.weights.gguf import read_gguf
from tandem.weights.gguf_writer import write_gguf
from tandem.weights.open import open_checkpoint
from tandem.weights.tensor import Tensor, TensorType
from weights.builders import entry, random_blocks, read_bounded, safetensors

INTERESTING = [
    0,
    1,
    2,
    3,
    7,
    8,
    9,
    31,
    127,
    255,
    2**15,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
]

Mutation = Callable[[bytearray], None]


def place(data: bytearray, where: float) -> int:
    return min(int(where * len(data)), len(data) - 1)


def flip(where: float, bit: int) -> Mutation:
    def apply(data: bytearray) -> None:
        data[place(data, where)] ^= 1 << bit

    return apply


def lie(where: float, value: int, size: int) -> Mutation:
    """Overwrites a field-sized piece with a number that fields are wrong about."""

    def apply(data: bytearray) -> None:
        at = place(data, where)
        piece = struct.pack("<Q", value)[:size]
        data[at : at + size] = piece[: len(data) - at]

    return apply


def cut(where: float, size: int) -> Mutation:
    def apply(data: bytearray) -> None:
        at = place(data, where)
        del data[at : at + size]

    return apply


def insert(where: float, piece: bytes) -> Mutation:
    def apply(data: bytearray) -> None:
        at = place(data, where)
        data[at:at] = piece

    return apply


def repeat(where: float, size: int) -> Mutation:
    def apply(data: bytearray) -> None:
        at = place(data, where)
        data[at:at] = data[at : at + size]

    return apply


def mutations(json: bool) -> st.SearchStrategy[list[Mutation]]:
    # Squared, because most of what a reader believes is at the start.
    where = st.floats(0, 1).map(lambda x: x * x)
    pieces = st.binary(min_size=1, max_size=40)
    numbers = st.sampled_from(INTERESTING) | st.integers(0, 2**64 - 1)
    kinds = [
        st.builds(flip, where, st.integers(0, 7)),
        st.builds(lie, where, numbers, st.sampled_from([1, 2, 4, 8])),
        st.builds(cut, where, st.integers(1, 64) | st.just(1 << 30)),
        st.builds(insert, where, pieces),
        st.builds(repeat, where, st.integers(1, 128)),
    ]
    if json:
        tokens = [
            b"{",
            b"}",
            b"[",
            b"]",
            b",",
            b":",
            b'"',
            b"null",
            b"-1",
            b"1e999",
            b"99999999999999999999",
            b"true",
            b"\\u",
            b"NaN",
        ]
        kinds.append(
            st.builds(insert, where, st.sampled_from(tokens) | st.sampled_from([b"[" * 50_000, b'{"a":' * 20_000]))
        )
    return st.lists(st.one_of(kinds), min_size=1, max_size=4)


def mutated(data: bytes, changes: list[Mutation]) -> bytes:
    content = bytearray(data)
    for change in changes:
        if content:
            change(content)
    return bytes(content)


def sample_gguf(path: Path) -> bytes:
    """A small file with every type of metadata and of tensor."""
    metadata = {
        "general.architecture": "llama",
        "general.alignment": 32,
        "llama.block_count": 2,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.tokens": [f"token{n}" for n in range(12)] + ["▁", ""],
        "tokenizer.ggml.scores": np.linspace(0, 1, 12, dtype=np.float32),
        "a.bool": True,
        "bools": [True, False],
        "u8": np.uint8(3),
        "i64": np.int64(-3),
        "f64": np.float64(0.1),
        "u16s": np.arange(5, dtype=np.uint16),
    }
    tensors = [Tensor(f"blk.0.{t.name}", t, (2, t.block), random_blocks(t, 2, seed=1)) for t in TensorType]
    write_gguf(path, metadata, tensors)
    return path.read_bytes()


def sample_safetensors() -> bytes:
    header = {
        "__metadata__": {"format": "pt", "model.embed_tokens.weight": "lm_head.weight"},
        "lm_head.weight": entry("F32", [4, 8], 0, 128),
        "model.layers.0.mlp.up_proj.weight": entry("BF16", [3, 5], 128, 158),
        "model.norm.weight": entry("F16", [1], 158, 160),
        "model.position_ids": entry("I64", [2, 2], 160, 192),
        "empty": entry("F32", [0], 192, 192),
    }
    return safetensors(header, bytes(range(192)))


def check(path: Path, content: bytes) -> None:
    """Opens the file within bounds; what opens is whole, so that its values can be taken."""
    path.write_bytes(content)

    def read() -> None:
        try:
            checkpoint = open_checkpoint(path)
        except TandemError as error:
            assert str(error).isprintable()
            assert len(str(error)) < len(str(path)) + 500
            return
        for name, tensor in checkpoint.tensors.items():
            assert tensor.name == name
            assert tensor.nbytes == tensor.elements // tensor.type.block * tensor.type.block_bytes
            if len(tensor.shape) <= 4:
                assert dequantize(tensor).shape == tensor.shape

    read_bounded(read, len(content), seconds=20)


def fuzz(examples: int, thorough: bool) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=not thorough,
        phases=[Phase.generate, *([Phase.shrink] if thorough else [])],
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz")
    (path / "config.json").write_text("{}")
    return path


@pytest.fixture(scope="module")
def gguf_bytes(folder: Path) -> bytes:
    data = sample_gguf(folder / "sample")
    assert len(read_gguf(folder / "sample").tensors) == len(TensorType)
    return data


@fuzz(400, thorough=False)
@given(changes=mutations(json=False))
def test_mutated_gguf(folder: Path, gguf_bytes: bytes, changes: list[Mutation]) -> None:
    check(folder / "model.gguf", mutated(gguf_bytes, changes))


@fuzz(400, thorough=False)
@given(changes=mutations(json=True))
def test_mutated_safetensors(folder: Path, changes: list[Mutation]) -> None:
    check(folder / "model.safetensors", mutated(sample_safetensors(), changes))


@fuzz(150, thorough=False)
@given(content=st.binary(max_size=200))
def test_gguf_of_random_fields(folder: Path, content: bytes) -> None:
    check(folder / "model.gguf", b"GGUF" + struct.pack("<I", 3) + content)


@fuzz(150, thorough=False)
@given(content=st.binary(max_size=200))
def test_safetensors_of_random_headers(folder: Path, content: bytes) -> None:
    check(folder / "model.safetensors", safetensors(content))


def test_every_truncation_of_a_gguf_file(folder: Path, gguf_bytes: bytes) -> None:
    for length in range(1, len(gguf_bytes), 7):
        path = folder / "model.gguf"
        path.write_bytes(gguf_bytes[:length])
        # The last tensor's padding is not needed, all before it is.
        if length < len(gguf_bytes) - 32:
            with pytest.raises(TandemError):
                open_checkpoint(path)


@pytest.mark.slow
@fuzz(5_000, thorough=True)
@given(changes=mutations(json=False))
def test_mutated_gguf_thoroughly(folder: Path, gguf_bytes: bytes, changes: list[Mutation]) -> None:
    check(folder / "model.gguf", mutated(gguf_bytes, changes))


@pytest.mark.slow
@fuzz(5_000, thorough=True)
@given(changes=mutations(json=True))
def test_mutated_safetensors_thoroughly(folder: Path, changes: list[Mutation]) -> None:
    check(folder / "model.safetensors", mutated(sample_safetensors(), changes))


@pytest.mark.slow
@fuzz(300, thorough=True)
@given(changes=mutations(json=False))
def test_a_mutated_real_model(folder: Path, changes: list[Mutation]) -> None:
    original = (SHARED / "data/models/TinyStories-656K/TinyStories-656K-Q8_0.gguf").read_bytes()
    check(folder / "model.gguf", mutated(original, changes))
