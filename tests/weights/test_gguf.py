"""GGUF files read and written: real ones, round trips, split models, against ggml's Python package."""

import os
import shutil
import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize as reference_values

from paths import SHARED
from tandem.errors import ModelFileError
from tandem.weights.dequantize import dequantize
from tandem.weights.gguf import read_gguf
from tandem.weights.gguf_writer import write_gguf
from tandem.weights.tensor import Tensor, TensorType
from weights.builders import array, f32, pair, random_blocks, read_bounded, split_model, tensor_info
from weights.builders import gguf as build

STORIES = SHARED / "data/models/TinyStories-656K/TinyStories-656K-Q8_0.gguf"
VOCABULARIES = SHARED / "data/vocab"


def same_tensors(ours: dict[str, Tensor], theirs: gguf.GGUFReader) -> None:
    assert list(ours) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        mine = ours[tensor.name]
        assert mine.shape == tuple(reversed(tensor.shape.tolist()))
        assert mine.type.name == tensor.tensor_type.name
        assert np.array_equal(mine.data, tensor.data.view(np.uint8).reshape(-1))
        values = reference_values(tensor.data, tensor.tensor_type).reshape(mine.shape)
        assert np.array_equal(dequantize(mine), values)


def same_metadata(ours: dict[str, object], theirs: gguf.GGUFReader) -> None:
    fields = {key: field for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert list(ours) == list(fields)
    for key, field in fields.items():
        value = ours[key]
        if isinstance(value, np.ndarray):
            value = value.tolist()
        assert value == field.contents(), key
        assert type(value) is type(field.contents()), key


def test_a_real_model_reads_as_the_reference_reads_it() -> None:
    checkpoint = read_gguf(STORIES)
    theirs = gguf.GGUFReader(STORIES)
    assert checkpoint.format == "gguf"
    assert checkpoint.path == STORIES
    same_metadata(checkpoint.metadata, theirs)
    same_tensors(checkpoint.tensors, theirs)
    assert checkpoint.metadata["tokenizer.ggml.scores"].dtype == np.float32
    assert not next(iter(checkpoint.tensors.values())).data.flags.writeable


def test_a_real_vocabulary_reads_as_the_reference_reads_it() -> None:
    path = VOCABULARIES / "ggml-vocab-phi-3.gguf"
    same_metadata(read_gguf(path).metadata, gguf.GGUFReader(path))


@pytest.mark.parametrize(
    ("name", "tokens", "merges"),
    [
        ("gpt-2", 50257, 50000),
        ("llama-bpe", 128256, 280147),
        ("llama-spm", 32000, 0),
        ("qwen2", 151936, 151387),
        ("gemma-4", 262144, 514906),
    ],
)
def test_real_vocabularies_open_quickly(name: str, tokens: int, merges: int) -> None:
    started = time.perf_counter()
    metadata = read_gguf(VOCABULARIES / f"ggml-vocab-{name}.gguf").metadata
    # The largest takes 0.3 s on a slow machine; ten times that is a reader that got slow, not a busy machine.
    assert time.perf_counter() - started < 3
    assert len(metadata["tokenizer.ggml.tokens"]) == tokens
    assert len(metadata.get("tokenizer.ggml.merges", [])) == merges
    assert all(type(token) is str for token in metadata["tokenizer.ggml.tokens"])


def test_a_large_vocabulary_opens_in_bounded_memory() -> None:
    path = VOCABULARIES / "ggml-vocab-gpt-2.gguf"
    read_bounded(lambda: read_gguf(path), path.stat().st_size, seconds=60)


METADATA = {
    "general.architecture": "llama",
    "an.int": 7,
    "a.float": 0.5,
    "a.bool": True,
    "a.text": "zwei Zeilen\nund ein ▁",
    "nothing": "",
    "u8": np.uint8(200),
    "i8": np.int8(-100),
    "u16": np.uint16(60_000),
    "i16": np.int16(-30_000),
    "i32": np.int32(-2_000_000_000),
    "u64": np.uint64(2**63 + 1),
    "i64": np.int64(-(2**62)),
    "f64": np.float64(0.1),
    "words": ["", "a", "▁Ω", "x" * 300],
    "ints": [1, -2, 3],
    "floats": [0.25, -1.5],
    "bools": [True, False, True],
    "u16s": np.array([1, 65535], np.uint16),
    "no.numbers": np.array([], np.int32),
}


@pytest.mark.parametrize("alignment", [32, 64, 8])
def test_what_is_written_is_what_both_readers_read(tmp_path: Path, alignment: int) -> None:
    path = tmp_path / "model.gguf"
    metadata = {"general.alignment": alignment, **METADATA}
    tensors = [
        Tensor(f"w.{type.name}", type, (3, 2 * type.block), random_blocks(type, 6, seed=type.ggml_id))
        for type in TensorType
    ]
    tensors += [f32("norm", 5), f32("cube", 2, 3, 4), f32("four", 2, 1, 3, 5)]
    write_gguf(path, metadata, tensors)

    checkpoint = read_gguf(path)
    assert list(checkpoint.metadata) == list(metadata)
    for key, value in metadata.items():
        read = checkpoint.metadata[key]
        if isinstance(value, np.ndarray):
            assert read.dtype == value.dtype
        assert np.array_equal(read, value), key
    assert checkpoint.metadata["ints"].dtype == np.int32
    assert checkpoint.metadata["floats"].dtype == np.float32
    assert checkpoint.metadata["bools"].dtype == np.bool_
    for tensor in tensors:
        read = checkpoint.tensors[tensor.name]
        assert (read.name, read.type, read.shape) == (tensor.name, tensor.type, tensor.shape)
        assert np.array_equal(read.data, tensor.data)

    # gguf 0.19 asserts on an empty array's type, so compare everything else.
    del metadata["no.numbers"]
    write_gguf(path, metadata, tensors)
    theirs = gguf.GGUFReader(path)
    same_tensors(read_gguf(path).tensors, theirs)
    for key in metadata:
        value = read_gguf(path).metadata[key]
        assert theirs.fields[key].contents() == (value.tolist() if isinstance(value, np.ndarray) else value)
    assert theirs.fields["an.int"].types == [gguf.GGUFValueType.UINT32]
    assert theirs.fields["a.float"].types == [gguf.GGUFValueType.FLOAT32]


def test_a_file_by_the_reference_writer_is_read(tmp_path: Path) -> None:
    path = tmp_path / "theirs.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_token_list(["a", "b"])
    values = np.random.default_rng(1).standard_normal((4, 64), np.float32)
    writer.add_tensor("norm", values[0])
    writer.add_tensor("half", values.astype(np.float16))
    packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q5_1)
    writer.add_tensor("packed", packed, raw_dtype=gguf.GGMLQuantizationType.Q5_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = read_gguf(path)
    assert checkpoint.metadata == {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "tokenizer.ggml.tokens": ["a", "b"],
    }
    assert checkpoint.tensors["packed"].shape == (4, 64)
    same_tensors(checkpoint.tensors, gguf.GGUFReader(path))


def test_version_2_reads_like_version_3(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    data = bytearray(STORIES.read_bytes())
    data[4:8] = struct.pack("<I", 2)
    path.write_bytes(data)
    old, new = read_gguf(path), read_gguf(STORIES)
    assert old.metadata["tokenizer.ggml.tokens"] == new.metadata["tokenizer.ggml.tokens"]
    assert all(np.array_equal(old.tensors[name].data, new.tensors[name].data) for name in new.tensors)


def test_a_scalar_and_unaligned_data_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    alignment = pair("general.alignment", 4, struct.pack("<I", 1))
    infos = [tensor_info("scalar", [], 0, 0), tensor_info("row", [2], 0, 4)]
    path.write_bytes(build([alignment], infos, struct.pack("<3f", 1.5, 2.5, 3.5), alignment=1))
    tensors = read_gguf(path).tensors
    assert tensors["scalar"].shape == (1,)
    assert dequantize(tensors["scalar"]).tolist() == [1.5]
    assert dequantize(tensors["row"]).tolist() == [2.5, 3.5]


def test_tensors_are_views_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, {}, [f32("big", 1024, 1024)])
    tensor = read_bounded(lambda: read_gguf(path).tensors["big"], 0)
    assert tensor.data.base is not None
    path.unlink()
    assert np.isfinite(dequantize(tensor)).all()  # mapped until the last view is gone


def test_tensors_can_be_read_from_the_file_as_long_as_they_live(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"m\xff.gguf")
    write_gguf(path, {}, [f32("big", 64, 64), f32("other", 8)])
    tensors = read_gguf(path).tensors
    path.unlink()
    other = tensors.pop("other")
    part = Tensor("part", other.type, (3,), other.data[4:16])
    for tensor in (other, part):
        file = tensor.file
        assert file is not None
        assert os.pread(file.descriptor, tensor.nbytes, file.offset) == tensor.data.tobytes()
        assert file.path.endswith("m\\udcff.gguf")
    assert Tensor("copy", other.type, (8,), other.data.copy()).file is None
    del tensors, tensor, other, part
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file.descriptor)


@pytest.mark.parametrize("opened", [0, 1, 2])
def test_any_part_opens_the_whole_model(tmp_path: Path, opened: int) -> None:
    paths = split_model(tmp_path)
    checkpoint = read_gguf(paths[opened])
    assert list(checkpoint.tensors) == ["a", "b", "c", "d"]
    assert checkpoint.metadata["general.name"] == "in parts"
    assert checkpoint.path == paths[0]


def test_a_split_model_without_a_tensor_count_opens(tmp_path: Path) -> None:
    assert len(read_gguf(split_model(tmp_path, announced=None)[0]).tensors) == 4


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    paths = split_model(tmp_path)
    paths[1].unlink()
    with pytest.raises(ModelFileError, match=r"one of 3 parts and model-00002-of-00003\.gguf is missing beside it"):
        read_gguf(paths[0])


def test_a_renamed_part_is_explained(tmp_path: Path) -> None:
    path = split_model(tmp_path)[0].rename(tmp_path / "model.gguf")
    with pytest.raises(ModelFileError, match=r"one of 3 parts .* does not end in -00001-of-00003\.gguf"):
        read_gguf(path)


def test_swapped_parts_are_noticed(tmp_path: Path) -> None:
    paths = split_model(tmp_path)
    paths[1].rename(tmp_path / "other")
    shutil.copy(paths[2], paths[1])
    with pytest.raises(ModelFileError, match=r"model-00002-of-00003\.gguf says that it is part 3 of 3"):
        read_gguf(paths[0])


def test_a_part_of_another_model_is_noticed(tmp_path: Path) -> None:
    paths = split_model(tmp_path)
    write_gguf(paths[2], {"split.no": 2, "split.count": 3}, [f32("a", 4)])
    with pytest.raises(ModelFileError, match=r"model-00003-of-00003\.gguf: tensor 'a' is also in an earlier part"):
        read_gguf(paths[0])
    write_gguf(paths[2], {"split.no": 2, "split.count": 3}, [f32("other", 4)])
    with pytest.raises(ModelFileError, match="announces 4 tensors in 3 parts, they hold 3"):
        read_gguf(paths[0])


def test_a_split_number_of_another_type_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model-00001-of-00002.gguf"
    path.write_bytes(build([pair("split.count", 9, array(4, 2, bytes(8)))]))
    with pytest.raises(ModelFileError, match=r"split\.count is array\(\[0, 0\], dtype=uint32\); expected a whole"):
        read_gguf(path)


def test_nothing_is_left_behind_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "model.gguf"
    with pytest.raises(ModelFileError, match=r"missing/model\.gguf cannot be written: No such file or directory"):
        write_gguf(path, {}, [])
    target = tmp_path / "model.gguf"
    target.mkdir()
    with pytest.raises(ModelFileError, match="cannot be written: Is a directory"):
        write_gguf(target, {}, [])
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.gguf"]


def test_writing_replaces_a_file_that_is_still_mapped(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, {}, [f32("w", 64)])
    old = read_gguf(path).tensors["w"]
    before = old.data.copy()
    write_gguf(path, {}, [f32("other", 8)])
    assert np.array_equal(old.data, before)
    assert list(read_gguf(path).tensors) == ["other"]


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"),
    [
        ({"mixed": [1, "a"]}, [], "mixed needs items of one type"),
        ({"empty": []}, [], "an empty array is written from a numpy array"),
        ({"complex": np.complex64(1)}, [], "complex is complex64"),
        ({"table": np.zeros((2, 2))}, [], "table is float64 with 2 dimensions"),
        ({"general.alignment": 24}, [], "general.alignment is 24; expected a power of two"),
        ({}, [f32("x" * 64, 1)], "too long"),
        ({}, [f32("x", 1), f32("x", 1)], "used twice"),
        ({}, [f32("x", 1, 1, 1, 1, 1)], "tensor 'x' has 4 bytes of F32"),
        (
            {},
            [Tensor("x", TensorType.Q8_0, (32,), np.zeros(33, np.uint8))],
            "tensor 'x' has 33 bytes of Q8_0",
        ),
    ],
)
def test_what_the_format_cannot_hold_is_refused(
    tmp_path: Path, metadata: dict[str, object], tensors: list[Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_gguf(tmp_path / "model.gguf", metadata, tensors)
    assert not list(tmp_path.iterdir())


def test_an_int_that_uint32_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OverflowError):
        write_gguf(tmp_path / "model.gguf", {"n": 2**32}, [])
