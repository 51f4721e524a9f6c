"""GGUF files that lie: each is refused with a sentence that names what is wrong."""

import struct
from pathlib import Path

import pytest

from tandem.errors import ModelFileError, TandemError, UnsupportedModelError
from tandem.weights.gguf import read_gguf
from weights.builders import array, gguf, pair, read_bounded, string, tensor_info

HUGE = 2**64 - 1
U32 = struct.Struct("<I").pack
U64 = struct.Struct("<Q").pack
ROW = tensor_info("w", [32], 0, 0)  # 128 bytes of F32
TEXT, ARRAY, BOOL = 8, 9, 7

DAMAGED: dict[str, tuple[bytes, str]] = {
    "another format": (b"PK\x03\x04" + bytes(100), r"is not a GGUF file: it starts with b'PK\\x03\\x04'"),
    "only the magic": (b"GGUF", "the version needs 4 bytes at byte 4, the file has 4"),
    "half a magic": (b"GG", r"it starts with b'GG', expected b'GGUF'"),
    "half a header": (gguf()[:20], "the number of key-value pairs needs 8 bytes"),
    "too many tensors": (gguf(tensor_count=HUGE), "announces 18,446,744,073,709,551,615 tensors, more than"),
    "too many pairs": (gguf(pair_count=2**40), "announces 1,099,511,627,776 key-value pairs"),
    "a pair that is not there": (gguf(pair_count=1), "the length of key 0 needs 8 bytes"),
    "a tensor that is not there": (gguf(tensor_count=1), "the length of the name of tensor 0 needs 8 bytes"),
    "a key that never ends": (gguf([U64(HUGE)]), "key 0 needs 18,446,744,073,709,551,615 bytes"),
    "an empty key": (gguf([pair("", 4, U32(1))]), "key 0 is empty"),
    "a key of other bytes": (gguf([pair(b"\xff\xfe", 4, U32(1))]), "key 0 is not UTF-8 text"),
    "a key twice": (gguf([pair("k", 4, U32(1))] * 2), "key 'k' appears twice"),
    "a key of control characters": (
        gguf([pair("\x1b[2J", 13, b"")]),
        r"the value of '\\x1b\[2J' has the type 13",
    ),
    "an unknown value type": (
        gguf([pair("k", 99, U32(1))]),
        "the value of 'k' has the type 99, GGUF defines 0 to 12",
    ),
    "a bool of 2": (gguf([pair("k", BOOL, b"\x02")]), "the value of 'k' is a bool, but neither 0 nor 1"),
    "bools of 2": (gguf([pair("k", ARRAY, array(BOOL, 3, b"\0\1\2"))]), "is a bool, but neither 0 nor 1"),
    "a number cut off": (gguf([pair("k", 10, b"\0\0\0")]), "the value of 'k' needs 8 bytes"),
    "a text that never ends": (
        gguf([pair("k", TEXT, U64(2**62))]),
        "the value of 'k' needs 4,611,686,018,427,387,904",
    ),
    "a text of other bytes": (
        gguf([pair("k", TEXT, string(b"ab\xc3"))]),
        "the value of 'k' is not UTF-8 text",
    ),
    "an array that never ends": (
        gguf([pair("k", ARRAY, array(12, HUGE, bytes(64)))]),
        "the value of 'k' needs",
    ),
    "an array of unknown type": (gguf([pair("k", ARRAY, array(77, 1, bytes(8)))]), "has the type 77"),
    "strings that never end": (
        gguf([pair("k", ARRAY, array(TEXT, HUGE, b""))]),
        "the value of 'k' ends after the file",
    ),
    "a string that never ends": (
        gguf([pair("k", ARRAY, array(TEXT, 2, string("ab") + U64(HUGE)))]),
        "string 1 of the value of 'k' ends after the file",
    ),
    "a string of other bytes": (
        gguf([pair("k", ARRAY, array(TEXT, 2, string("ab") + string(b"\x80")))]),
        "string 1 of the value of 'k' is not UTF-8 text",
    ),
    "alignment zero": (
        gguf([pair("general.alignment", 4, U32(0))]),
        "general.alignment is 0, not a power of two",
    ),
    "alignment 24": (
        gguf([pair("general.alignment", 4, U32(24))]),
        "general.alignment is 24, not a power of two",
    ),
    "alignment of text": (
        gguf([pair("general.alignment", TEXT, string("x" * 9999))]),
        r"general.alignment is 'x{5,20}\.\.\.x{5,20}', not a power of two",
    ),
    "alignment beyond the file": (
        gguf([pair("general.alignment", 4, U32(2**31))], [ROW], bytes(128)),
        "tensor 'w' .* ends at byte 2,147,483,776, the file has",
    ),
    "a tensor twice": (
        gguf([], [ROW, tensor_info("w", [32], 0, 128)], bytes(256)),
        "tensor 'w' appears twice",
    ),
    "five dimensions": (gguf([], [tensor_info("w", [1] * 5, 0, 0)], bytes(4)), "tensor 'w' has 5 dimensions"),
    "billions of dimensions": (
        gguf([], [tensor_info("w", [1], 0, 0, rank=2**32 - 1)], bytes(4)),
        "tensor 'w' has 4,294,967,295 dimensions, GGUF allows 4",
    ),
    "an empty dimension": (
        gguf([], [tensor_info("w", [4, 0], 0, 0)]),
        r"tensor 'w' has an empty dimension: \(0, 4\)",
    ),
    "sizes that overflow": (
        gguf([], [tensor_info("w", [2**32, 2**32, 2**32, 2**32], 0, 0)], bytes(64)),
        r"tensor 'w' \(F32, shape \(4294967296, .* ends at byte",
    ),
    "part of a block": (
        gguf([], [tensor_info("w", [33], 8, 0)], bytes(64)),
        "tensor 'w' has rows of 33, Q8_0 needs a multiple of 32",
    ),
    "an unaligned offset": (
        gguf([], [tensor_info("w", [4], 0, 4)], bytes(64)),
        "tensor 'w' starts at 4, not a multiple of the alignment 32",
    ),
    "an offset beyond the file": (
        gguf([], [tensor_info("w", [4], 0, 2**40)], bytes(64)),
        "tensor 'w' .* ends at byte 1,099",
    ),
    "an offset that overflows": (
        gguf([], [tensor_info("w", [4], 0, 2**64 - 32)], bytes(64)),
        "tensor 'w' .* ends at byte 18,446",
    ),
    "one byte cut off": (gguf([], [ROW], bytes(127)), "tensor 'w' .* ends at byte 192, the file has 191"),
    "all data cut off": (gguf([], [ROW]), "tensor 'w' .* ends at byte 192, the file has 64"),
    "overlapping tensors": (
        gguf([], [ROW, tensor_info("v", [32], 0, 96)], bytes(256)),
        "tensors 'w' and 'v' overlap",
    ),
    "a name of thousands of characters": (
        gguf([], [tensor_info("n" * 5000, [4, 0], 0, 0)]),
        r"tensor 'n{77}\.\.\.' has an empty dimension",
    ),
}

UNSUPPORTED: dict[str, tuple[bytes, str]] = {
    "version 1": (gguf(version=1), "GGUF file of version 1; Tandem reads 2 and 3, convert the model again"),
    "version 0": (gguf(version=0), "GGUF file of version 0; Tandem reads versions 2 and 3"),
    "version 4": (gguf(version=4), "GGUF file of version 4; Tandem reads versions 2 and 3"),
    "big-endian": (
        b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
        "big-endian GGUF file; Tandem reads little-endian ones",
    ),
    "arrays of arrays": (
        gguf([pair("k", ARRAY, array(ARRAY, 1, array(4, 1, U32(1))))]),
        "the value of 'k' is an array of arrays",
    ),
    "IQ2_XXS": (
        gguf([], [tensor_info("blk.0.ffn_up.weight", [256], 16, 0)], bytes(66)),
        "tensor 'blk.0.ffn_up.weight' has the type IQ2_XXS; Tandem reads F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, "
        "Q4_K, Q5_K, Q6_K, BF16: take another quantization",
    ),
    "MXFP4": (gguf([], [tensor_info("w", [32], 39, 0)], bytes(17)), "tensor 'w' has the type MXFP4;"),
    "a removed type": (
        gguf([], [tensor_info("w", [32], 31, 0)], bytes(18)),
        "tensor 'w' has the type Q4_0_4_4;",
    ),
    "a type of the future": (
        gguf([], [tensor_info("w", [32], 4711, 0)], bytes(18)),
        "tensor 'w' has the type number 4711;",
    ),
}


def read(tmp_path: Path, content: bytes) -> TandemError:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(TandemError) as caught:
        read_bounded(lambda: read_gguf(path), len(content), seconds=2)
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value)) < len(str(path)) + 300, "one sentence, however long the names in the file"
    assert str(caught.value).isprintable()
    return caught.value


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_named(tmp_path: Path, case: str) -> None:
    content, message = DAMAGED[case]
    error = read(tmp_path, content)
    assert type(error) is ModelFileError
    with pytest.raises(ModelFileError, match=message):
        raise error


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_is_not_supported_is_named(tmp_path: Path, case: str) -> None:
    content, message = UNSUPPORTED[case]
    error = read(tmp_path, content)
    assert type(error) is UnsupportedModelError
    with pytest.raises(UnsupportedModelError, match=message):
        raise error


def test_many_tiny_entries_stay_within_bounds(tmp_path: Path) -> None:
    """The most Python objects that a file of this size can ask for."""
    infos = [tensor_info(f"{n:x}", [], 30, 2 * n) for n in range(20_000)]
    pairs = [pair(f"{n:x}", ARRAY, array(TEXT, 1, string("a"))) for n in range(20_000)]
    pairs.append(pair("general.alignment", 4, U32(1)))
    content = gguf(pairs, infos, bytes(40_000), alignment=1)
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    assert len(read_bounded(lambda: read_gguf(path), len(content), seconds=60).tensors) == 20_000
