"""Dequantized values, from GGUF bytes and back out of the packed layout, against the gguf package bit for bit."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from native.raw_weights import ISAS, TYPES, block_columns, float_weights, random_weights, require_isa
from tandem import _native
from tandem.weights.files import map_file

by_type = pytest.mark.parametrize("weight_type", TYPES, ids=lambda t: t.name)


@by_type
@pytest.mark.parametrize("exponents", [(-8, 1), (-24, -14), (10, 15)])
def test_values_are_those_of_the_gguf_package(weight_type: Type, exponents: tuple[int, int]) -> None:
    rng = np.random.default_rng(5)
    block = block_columns(weight_type)
    for rows, columns in ((1, block), (16, 3 * block), (37, 9 * block), (5, 11 * block)):
        data = random_weights(weight_type, rows, columns, rng, exponents)
        expected = float_weights(weight_type, rows, columns, data).view(np.uint32)
        read = _native.dequantize(int(weight_type), rows, columns, data)
        np.testing.assert_array_equal(read.view(np.uint32), expected)
        packed = _native.PackedMatrix(int(weight_type), rows, columns, data)
        assert (packed.type, packed.rows, packed.columns) == (int(weight_type), rows, columns)
        np.testing.assert_array_equal(packed.dequantize().view(np.uint32), expected)


@by_type
@pytest.mark.parametrize("isa", ISAS[1:])
def test_all_instruction_sets_pack_the_same_bytes(weight_type: Type, isa: str) -> None:
    require_isa(isa)
    rng = np.random.default_rng(7)
    block = block_columns(weight_type)
    for rows, columns in ((1, block), (16, 3 * block), (37, 9 * block), (13, 256), (24, 256 + 11 * block % 256)):
        data = random_weights(weight_type, rows, columns, rng)
        plain = _native.PackedMatrix(int(weight_type), rows, columns, data, isa="scalar")
        fast = _native.PackedMatrix(int(weight_type), rows, columns, data, isa=isa)
        np.testing.assert_array_equal(fast.data, plain.data)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_lane_packs_many_matrices(threads: int, tmp_path: Path) -> None:
    """More pieces than threads, out of a file, beginning and ending within pages, and out of memory."""
    rng = np.random.default_rng(8)
    shapes = [(Type.Q4_0, 1200, 1152), (Type.Q6_K, 17, 512), (Type.BF16, 700, 1000), (Type.F32, 5, 3)]
    parts = [random_weights(type, rows, columns, rng) for type, rows, columns in shapes]
    file = tmp_path / "weights"
    file.write_bytes(b"GGUF" + b"".join(part.tobytes() for part in parts))
    opened = map_file(file)
    content = np.frombuffer(opened, np.uint8)
    starts = np.cumsum([4, *(part.size for part in parts)])
    for files in (True, False):
        data = [content[a : a + part.size] if files else part for a, part in zip(starts, parts, strict=False)]
        lane = _native.Lane(threads)
        sources = [
            (int(t), rows, columns, d, (str(file), opened.descriptor, int(start)) if files else None)
            for (t, rows, columns), d, start in zip(shapes, data, starts, strict=False)
        ]
        for packed, (type, rows, columns), part in zip(lane.pack("", sources), shapes, parts, strict=True):
            expected = _native.PackedMatrix(int(type), rows, columns, part, isa="scalar")
            np.testing.assert_array_equal(packed.data, expected.data)
        lane.close()


@pytest.mark.parametrize("threads", [1, 3])
def test_a_file_that_cannot_be_read_fails_the_packing(threads: int, tmp_path: Path) -> None:
    """Cut short while it is mapped, or not readable at all; the lane goes on."""
    data = random_weights(Type.Q8_0, 4096, 1024, np.random.default_rng(9))
    file = tmp_path / "weights"
    file.write_bytes(data.tobytes())
    opened = map_file(file)
    content = np.frombuffer(opened, np.uint8)
    lane = _native.Lane(threads)

    def pack(descriptor: int) -> list[_native.PackedMatrix]:
        return lane.pack("", [(int(Type.Q8_0), 4096, 1024, content, (str(file), descriptor, 0))])

    whole = pack(opened.descriptor)[0].data.copy()
    os.truncate(file, data.size - 1)
    with pytest.raises(_native.StepFailed, match=f"weights ends at byte {data.size - 1}: something shortened it"):
        pack(opened.descriptor)
    with file.open("ab") as rest, pytest.raises(_native.StepFailed, match=r"byte [0-9]+: Bad file"):
        pack(rest.fileno())
    with file.open("ab") as rest:
        rest.write(data[-1:].tobytes())
    np.testing.assert_array_equal(pack(opened.descriptor)[0].data, whole)
    lane.close()


def test_every_float16_is_widened_exactly() -> None:
    """NaNs stay NaNs, but may be made quiet."""
    halves = np.arange(2**16, dtype=np.uint16)
    expected = halves.view(np.float16).astype(np.float32)
    for columns in (1, 256):
        read = _native.dequantize(int(Type.F16), 2**16 // columns, columns, halves.view(np.uint8)).reshape(-1)
        number = ~np.isnan(expected)
        np.testing.assert_array_equal(read[number].view(np.uint32), expected[number].view(np.uint32))
        assert np.isnan(read[~number]).all()


@by_type
def test_packing_costs_no_more_than_a_tenth(weight_type: Type) -> None:
    """Whole groups and panels; the header of a last panel that is not whole may cost more."""
    data = random_weights(weight_type, 64, 2048, np.random.default_rng(6))
    assert _native.PackedMatrix(int(weight_type), 64, 2048, data).bytes <= 1.1 * data.size


@pytest.mark.parametrize(
    ("weight_type", "rows", "columns", "size", "message"),
    [
        (Type.Q4_0, 2, 33, 36, "2 x 33 .* multiple of 32"),
        (Type.Q4_K, 2, 128, 144, "multiple of 256"),
        (Type.Q4_0, 2, 64, 71, "takes 72 bytes, not 71"),
        (Type.F32, 2, 2, 17, "takes 16 bytes, not 17"),
        (Type.Q4_0, -1, 32, 18, "-1 x 32 matrix is empty"),
        (Type.F32, 3, 0, 0, "3 x 0 matrix is empty"),
        (Type.F32, 2**40, 2**40, 0, "larger than any memory"),
        (Type.Q2_K, 1, 256, 84, "type 10"),
    ],
)
def test_wrong_sizes_are_refused(weight_type: Type, rows: int, columns: int, size: int, message: str) -> None:
    data = np.zeros(size, np.uint8)
    with pytest.raises(ValueError, match=message):
        _native.PackedMatrix(int(weight_type), rows, columns, data)
    with pytest.raises(ValueError, match=message):
        _native.dequantize(int(weight_type), rows, columns, data)
