"""safetensors files: real ones, every element type, and all that the official library refuses."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paths import SHARED
from tandem.errors import ModelFileError, TandemError, UnsupportedModelError
from tandem.weights.dequantize import dequantize
from tandem.weights.safetensors import read_safetensors
from tandem.weights.tensor import TensorType
from weights.builders import entry, read_bounded, safetensors

STORIES = SHARED / "data/models/TinyStories-656K/model.safetensors"
ONE = {"a": entry("F32", [1], 0, 4)}


def test_a_real_file_reads() -> None:
    file = read_safetensors(STORIES)
    assert len(file.tensors) == 20
    assert file.skipped == {}
    assert file.metadata == {"format": "pt", "model.embed_tokens.weight": "lm_head.weight"}
    content = STORIES.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    for name, described in json.loads(content[8 : 8 + length]).items():
        if name != "__metadata__":
            begin, end = described["data_offsets"]
            values = np.frombuffer(content[8 + length + begin : 8 + length + end], np.float32)
            assert file.tensors[name].type is TensorType.F32
            assert file.tensors[name].shape == tuple(described["shape"])
            assert np.array_equal(dequantize(file.tensors[name]).reshape(-1), values)


def test_types_that_are_not_read_are_skipped_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    header = {
        "f16": entry("F16", [2], 0, 4),
        "bf16": entry("BF16", [2, 1], 4, 8),
        "i64": entry("I64", [1], 8, 16),
        "fp8": entry("F8_E4M3", [3], 16, 19),
        "fp4": entry("F4", [2], 19, 20),
        "none": entry("F32", [0, 4], 20, 20),
        "scalar": entry("F32", [], 20, 24),
    }
    data = np.array([1.5, -2], np.float16).tobytes() + struct.pack("<2H", 0x3F80, 0xC000) + bytes(12)
    path.write_bytes(safetensors(header, data + struct.pack("<f", 7)))
    file = read_safetensors(path)
    assert {name: dequantize(tensor).tolist() for name, tensor in file.tensors.items()} == {
        "f16": [1.5, -2.0],
        "bf16": [[1.0], [-2.0]],
        "none": [],
        "scalar": 7.0,
    }
    assert file.skipped["i64"] == "type I64; Tandem reads F32, F16, BF16 from safetensors"
    assert set(file.skipped) == {"i64", "fp8", "fp4"}


# What the official library accepts.
ACCEPTED: dict[str, bytes] = {
    "nothing": safetensors({}),
    "metadata only": safetensors({"__metadata__": {"a": "b"}}),
    "metadata null": safetensors({"__metadata__": None}),
    "one tensor": safetensors(ONE, bytes(4)),
    "spaces around": safetensors(b" " + json.dumps(ONE).encode() + b"  \n", bytes(4)),
    "an unknown field": safetensors({"a": {**entry("F32", [1], 0, 4), "x": [1, {}]}}, bytes(4)),
    "an empty name": safetensors({"": entry("F32", [1], 0, 4)}, bytes(4)),
    "tensors in another order": safetensors({"b": entry("F32", [1], 4, 8), **ONE}, bytes(8)),
    "empty tensors": safetensors({"a": entry("F32", [0], 0, 0), "b": entry("F32", [0, 5], 0, 0)}),
    "forty dimensions": safetensors({"a": entry("F32", [1] * 40, 0, 4)}, bytes(4)),
}

HUGE = 2**64 - 1
REFUSED: dict[str, tuple[bytes, str]] = {
    "seven bytes": (bytes(7), "it has 7 bytes, less than a header's length"),
    "an empty header": (safetensors(b""), "its header is not valid JSON"),
    "a header beyond the file": (safetensors({}, length=50), "it announces a header of 50 bytes and has 10"),
    "a header of 2^64": (
        safetensors({}, length=HUGE),
        "it announces a header of 18,446,744,073,709,551,615 bytes",
    ),
    "not JSON": (safetensors(b"hello"), r"its header is not valid JSON \(Expecting value"),
    "JSON and more": (safetensors(b"{}x"), r"its header is not valid JSON \(Extra data"),
    "JSON and zeros": (safetensors(b"{}\0\0"), "its header is not valid JSON"),
    "NaN": (safetensors(b'{"a":NaN}'), "NaN is not JSON"),
    "a control character": (safetensors(b'{"__metadata__":{"a":"\n"}}'), "Invalid control character"),
    "a byte order mark": (safetensors(b"\xef\xbb\xbf{}"), "its header is not valid JSON"),
    "other bytes": (safetensors(b'{"\xff":1}'), "its header is not valid JSON .*utf-8"),
    "half a surrogate pair": (safetensors(b'{"\\ud800":1}'), "surrogates not allowed"),
    "half a pair in metadata": (safetensors(b'{"__metadata__":{"a":"\\ud800"}}'), "surrogates not allowed"),
    "a list": (safetensors([]), "its header is not a JSON object"),
    "a number of thousands of digits": (safetensors(b'{"a":' + b"9" * 5000 + b"}"), "Exceeds the limit"),
    "nesting without end": (safetensors(b"[" * 200_000), "its header nests too deeply"),
    "nesting in an object": (safetensors(b'{"a":' * 100_000), "its header nests too deeply"),
    "a key twice": (
        safetensors(b'{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
        "an object has the same key twice",
    ),
    "metadata of numbers": (
        safetensors({"__metadata__": {"a": 1}}),
        "__metadata__ is not an object of strings",
    ),
    "metadata of a list": (safetensors({"__metadata__": []}), "__metadata__ is not an object of strings"),
    "no dtype": (
        safetensors({"a": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        "tensor 'a' has no dtype",
    ),
    "no shape": (
        safetensors({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, bytes(4)),
        "tensor 'a' has the shape None",
    ),
    "no offsets": (
        safetensors({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)),
        "tensor 'a' has the data_offsets None",
    ),
    "a tensor of text": (
        safetensors({"a": "F32" * 99}),
        r"tensor 'a' is described by 'F32F.*\.\.\..*', not by an object",
    ),
    "a negative size": (
        safetensors({"a": entry("F32", [-1], 0, 4)}, bytes(4)),
        r"tensor 'a' has the shape \[-1\]",
    ),
    "a size of 1.0": (
        safetensors({"a": entry("F32", [1.0], 0, 4)}, bytes(4)),
        r"tensor 'a' has the shape \[1\.0\]",
    ),
    "a size of true": (
        safetensors({"a": entry("F32", [True], 0, 4)}, bytes(4)),
        r"tensor 'a' has the shape \[True\]",
    ),
    "three offsets": (
        safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 4]}}, bytes(4)),
        r"tensor 'a' has the data_offsets \[0, 4, 4\], not \[begin, end\]",
    ),
    "sizes that overflow": (
        safetensors({"a": entry("F32", [2**62, 8], 0, 4)}, bytes(4)),
        r"tensor 'a' of F32 and shape \[4611686018427387904, 8\] is larger than any file",
    ),
    "a million huge sizes": (
        safetensors({"a": entry("F32", [2**63] * 100_000, 0, 4)}, bytes(4)),
        "is larger than any file",
    ),
    "a shape that lies": (
        safetensors({"a": entry("F32", [2], 0, 4)}, bytes(4)),
        r"tensor 'a' of F32 and shape \[2\] needs 8\.0 bytes and has 4",
    ),
    "half a byte": (safetensors({"a": entry("F4", [3], 0, 1)}, bytes(1)), r"needs 1\.5 bytes and has 1"),
    "offsets backwards": (
        safetensors({"a": entry("F32", [1], 4, 0)}, bytes(4)),
        "needs 4.0 bytes and has -4",
    ),
    "offsets beyond the file": (
        safetensors({"a": entry("F32", [1], 2**60, 2**60 + 4)}, bytes(4)),
        "leaves a hole before it",
    ),
    "a hole": (
        safetensors({**ONE, "b": entry("F32", [1], 8, 12)}, bytes(12)),
        "tensor 'b' leaves a hole before it",
    ),
    "a hole at the start": (
        safetensors({"a": entry("F32", [1], 4, 8)}, bytes(8)),
        "tensor 'a' leaves a hole before it",
    ),
    "an overlap": (
        safetensors({**ONE, "b": entry("F32", [1], 2, 6)}, bytes(6)),
        "tensor 'b' overlaps the tensor before it",
    ),
    "bytes after the last tensor": (safetensors(ONE, bytes(8)), "its tensors have 4 bytes, the file holds 8"),
    "a byte cut off": (safetensors(ONE, bytes(3)), "its tensors have 4 bytes, the file holds 3"),
}


def write(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_the_format_allows_is_read(tmp_path: Path, case: str) -> None:
    read_bounded(lambda: read_safetensors(write(tmp_path, ACCEPTED[case])), len(ACCEPTED[case]))


@pytest.mark.parametrize("case", REFUSED)
def test_damage_is_named(tmp_path: Path, case: str) -> None:
    content, message = REFUSED[case]
    path = write(tmp_path, content)
    with pytest.raises(ModelFileError, match=message) as caught:
        read_bounded(lambda: read_safetensors(path), len(content), seconds=2)
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value)) < len(str(path)) + 300
    assert str(caught.value).isprintable()


def test_an_element_type_of_the_future_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, safetensors({"a": entry("F2", [4], 0, 1)}, bytes(1)))
    with pytest.raises(UnsupportedModelError, match="tensor 'a' has the type 'F2'; Tandem knows BOOL, F4, "):
        read_safetensors(path)


@pytest.mark.parametrize(
    "junk",
    [
        b"[],",
        b"[0],",
        *(
            pytest.param(junk, marks=pytest.mark.slow)
            for junk in (b"{},", b'{"a":0},', b"300,", b'"aaa",', b'{"a":{"b":{}}},')
        ),
    ],
    ids=bytes.decode,
)
def test_hostile_json_stays_within_bounds(tmp_path: Path, junk: bytes) -> None:
    """The header may be 4 MiB; these patterns make the most Python objects out of each byte of it."""
    limit = 4 << 20
    content = safetensors((b'{"a":[' + junk * (limit // len(junk)))[: limit - 3] + b"0]}")
    path = write(tmp_path, content)
    with pytest.raises(ModelFileError):
        read_bounded(lambda: read_safetensors(path), len(content), seconds=60)


def test_many_keys_stay_within_bounds(tmp_path: Path) -> None:
    keys = ",".join(f'"{number:x}":0' for number in range(300_000))
    content = safetensors(f"{{{keys}}}".encode()[: (4 << 20) - 1] + b"}")
    with pytest.raises(ModelFileError):
        read_bounded(lambda: read_safetensors(write(tmp_path, content)), len(content), seconds=60)


def test_a_larger_header_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    path = write(tmp_path, safetensors(b" " * ((4 << 20) + 1)))
    with pytest.raises(ModelFileError, match="has a header of 4,194,305 bytes; Tandem reads headers up to 4,194,304"):
        read_safetensors(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
SIZES = st.lists(st.integers(0, 4) | st.integers(), max_size=3)
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F16", "I64", "F4", "BOOL"]) | JSON,
        "shape": SIZES | JSON,
        "data_offsets": st.lists(st.integers(0, 16), min_size=2, max_size=2) | JSON,
    },
)
HEADERS = st.dictionaries(st.text(max_size=3) | st.just("__metadata__"), ENTRIES | JSON, max_size=3)
SOUND = st.lists(st.tuples(st.sampled_from([("F32", 4), ("F16", 2), ("I64", 8)]), st.integers(0, 3)), max_size=4)


def official_accepts(content: bytes) -> bool:
    from safetensors import SafetensorError, deserialize

    try:
        deserialize(content)
    except SafetensorError:
        return False
    return True


def we_accept(path: Path) -> bool:
    try:
        read_safetensors(path)
    except TandemError:
        return False
    return True


@pytest.mark.parity
@pytest.mark.parametrize("case", [*ACCEPTED, *REFUSED])
def test_the_official_library_agrees_on_the_table(case: str) -> None:
    assert official_accepts(ACCEPTED[case] if case in ACCEPTED else REFUSED[case][0]) == (case in ACCEPTED)


@pytest.mark.parity
@settings(max_examples=3000, deadline=None)
@given(header=HEADERS, size=st.integers(0, 16))
def test_the_official_library_agrees_on_odd_headers(
    tmp_path_factory: pytest.TempPathFactory, header: object, size: int
) -> None:
    content = safetensors(header, bytes(size))
    assert we_accept(write(tmp_path_factory.getbasetemp(), content)) == official_accepts(content)


@pytest.mark.parity
@settings(max_examples=2000, deadline=None)
@given(tensors=SOUND, shift=st.integers(-1, 1), at=st.integers(0, 3))
def test_the_official_library_agrees_on_shifted_offsets(
    tmp_path_factory: pytest.TempPathFactory, tensors: list[tuple[tuple[str, int], int]], shift: int, at: int
) -> None:
    header, end = {}, 0
    for number, ((dtype, size), count) in enumerate(tensors):
        moved = shift if number == at else 0
        header[f"t{number}"] = entry(dtype, [count], max(end + moved, 0), max(end + moved, 0) + size * count)
        end += size * count
    content = safetensors(header, bytes(end))
    assert we_accept(write(tmp_path_factory.getbasetemp(), content)) == official_accepts(content)
