"""The kernel benchmark: that it counts what it says it counts. How fast is not looked at."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tandem import _native
from tandem.bench.attention_rig import AttentionShape
from tandem.bench.ceilings import Ceilings, highest, measure_ceilings
from tandem.bench.kernels import KernelWork, run_kernels
from tandem.bench.tables import kernels_table
from tandem.errors import BenchError

WORK = KernelWork(
    types=("Q4_0", "Q4_K", "BF16"), shapes=((64, 96), (48, 256)), rows=(1, 3, 64), attention=AttentionShape(4, 2, 32),
    depth=40, vocab=700, rounds=2, threads=2,
)  # fmt: skip


def ceilings(**more: Any) -> Ceilings:
    return Ceilings(**{"isa": "avx2", "threads": 2, "int8": 8e9, "bf16": None, "f32": 4e9, "read": 1e9, **more})


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(json.dumps(run_kernels(WORK)))
    return parsed


def test_every_point_once(result: dict[str, Any]) -> None:
    points = [(e["kernel"], e["type"], e["shape"], e["rows"]) for e in result["results"]]
    assert len(set(points)) == len(points)
    assert {p[1:3] for p in points if p[0] == "product"} == {
        ("Q4_0", "64x96"), ("BF16", "64x96"), ("Q4_0", "48x256"), ("Q4_K", "48x256"), ("BF16", "48x256"),
    }  # fmt: skip
    rows = {kernel: sorted({p[3] for p in points if p[0] == kernel}) for kernel, *_ in points}
    # The tall matrices of GGUF bytes that are more than any cache holds.
    assert all(count >= 48 * 64 for count in rows.pop("repack"))
    assert {p[:3] for p in points if p[0] == "repack"} == {("repack", *p[1:3]) for p in points if p[0] == "product"}
    assert rows == {
        "product": [1, 3, 64], "decode": [1, 3], "prefill": [64], "normalize": [1, 3, 64], "sample": [1, 3]
    }  # fmt: skip
    assert {p[1] for p in points if p[0] == "decode"} == {"f16", "q8_0"}


def test_what_is_counted(result: dict[str, Any]) -> None:
    def entry(kernel: str, kind: str, rows: int, shape: str | None = None) -> dict[str, Any]:
        (found,) = (
            e for e in result["results"]
            if (e["kernel"], e["type"], e["rows"]) == (kernel, kind, rows) and shape in (None, e["shape"])
        )  # fmt: skip
        return dict(found)

    product = entry("product", "Q4_0", 3, "64x96")
    assert product["macs"] == 3 * 64 * 96
    packed = _native.packed_bytes(2, 64, 96)
    assert product["bytes"] == packed + 3 * (96 + 64 * 4)
    repacked = next(e for e in result["results"] if e["kernel"] == "repack" and e["type"] == "Q4_K")
    assert repacked["bytes"] == repacked["rows"] * 144
    decode = entry("decode", "f16", 3)
    assert decode["macs"] == 3 * 2 * 40 * 4 * 32
    assert decode["bytes"] == 3 * 40 * 2 * 2 * 32 * 2
    prefill = entry("prefill", "q8_0", 64)
    assert prefill["macs"] == 2 * (64 * 65 // 2) * 4 * 32
    assert prefill["bytes"] == 64 * 2 * 2 * 34
    assert entry("sample", "all", 3)["bytes"] == 3 * 700 * 4


def test_shares_of_the_ceiling(result: dict[str, Any]) -> None:
    held = highest([Ceilings(**measured) for measured in result["ceilings"].values()])
    for entry in result["results"]:
        ideal = max(entry["macs"] / held.peak(entry["unit"]), entry["bytes"] / held.read)
        assert entry["of_ceiling"] == pytest.approx(ideal / entry["seconds"]["median"])
        assert len(entry["seconds"]["samples"]) == 2
    text = kernels_table(result)
    assert result["first_touch_bytes_per_s"] > 1e6
    for word in (
        "before:",
        "after:",
        "given new memory:",
        "repack 64x96",
        "product 64x96",
        "decode 4x2x32@40",
        "normalize 256",
        "of ceiling",
    ):
        assert word in text


def test_what_binds() -> None:
    assert ceilings().ideal_seconds(8e9, "int8", 0.5e9) == (1.0, "int8")
    assert ceilings().ideal_seconds(8e9, "int8", 2e9) == (2.0, "read")
    assert ceilings().peak("bf16") == 4e9
    assert ceilings(bf16=6e9).peak("bf16") == 6e9
    assert highest([ceilings(read=3e9), ceilings(int8=9e9)]) == ceilings(read=3e9, int8=9e9)


@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512"])
def test_ceilings_of_each_instruction_set(isa: str) -> None:
    try:
        _native.choose_isa(isa)
    except ValueError as error:
        pytest.skip(str(error))
    measured = measure_ceilings(1, isa)
    assert measured.isa == isa
    # Faster than one a millisecond, slower than any core: a loop that was merged or left out is beyond it.
    for rate in (measured.int8, measured.f32, measured.read):
        assert 1e7 < rate < 4e12
    # A bf16 dot is at most half as wide as an int8 one.
    assert measured.bf16 is None or measured.bf16 < 0.8 * measured.int8


def test_refusals() -> None:
    with pytest.raises(BenchError, match=r"no kernel 'dance'.*product"):
        KernelWork(kernels=("dance",))
    with pytest.raises(BenchError, match=r"no type 'Q9_9'.*Q4_0"):
        KernelWork(types=("Q9_9",))
    with pytest.raises(BenchError, match="16x33"):
        KernelWork(shapes=((16, 33),))
    with pytest.raises(BenchError, match="multiple of KV heads"):
        KernelWork(attention=AttentionShape(5, 2, 32))
    with pytest.raises(BenchError, match="no-such"):
        measure_ceilings(1, "no-such")
