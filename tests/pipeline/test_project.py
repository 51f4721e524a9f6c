"""Projections: what they say, and that their figures are those of the measurements that they name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paths import REPO
from tandem.bench.projection import LABEL, projection_json, projection_report
from tandem.bench.synthetic import GEMMA3, shape_checkpoint
from tandem.errors import BenchError
from tandem.models.load import block_weights
from tandem.models.open import model_spec
from tandem.pipeline.hardware import Band, known_hardware, read_hardware
from tandem.pipeline.project import ENDS, Projection, impossible, project
from tandem.pipeline.workload import Workload
from tandem.weights.tensor import TensorType

RESULTS = REPO / "benchmarks" / "results"


def gemma(name: str, hardware: str = "780m+phoenix", workload: Workload | None = None) -> Projection:
    checkpoint = shape_checkpoint(name, GEMMA3[name], TensorType.Q4_0)
    spec = model_spec(checkpoint)
    placements = ["cpu", "vulkan:0", "ffn=vulkan:0+cpu,ratio=0.6"]
    machine = read_hardware(hardware)
    return project(spec, lambda i: block_weights(checkpoint, spec, i), machine, workload or Workload(), placements)


@pytest.mark.parametrize("name", ["gemma3-1b", "gemma3-27b"])
def test_ten_thousand_tokens_per_second_on_a_780m_are_impossible(name: str) -> None:
    why = impossible(gemma(name), 10_000)
    assert why is not None
    assert why.startswith("10,000 tokens/s is impossible on ")
    assert "a token of this model takes " in why
    if name == "gemma3-1b":
        # The GPU alone: 16.6 TFLOP/s over 2 GFLOP a token.
        assert "at its peak of 16.6 TFLOP/s" in why and "alone ends at 8,297" in why
    else:
        assert "impossible on this hardware" in why
        # 16.6 TFLOP/s over 54 GFLOP a token.
        assert "54.0 GFLOP" in why and "vulkan:0 16.6" in why and why.endswith("alone ends at 307")


def test_what_the_arithmetic_allows_is_not_called_impossible() -> None:
    assert impossible(gemma("gemma3-1b"), 100) is None


def test_no_projection_exceeds_the_bound() -> None:
    projection = gemma("gemma3-4b", workload=Workload(batch=8, prompt=16, new=64))
    for predictions in projection.predictions.values():
        low, middle, high = (predictions[end].tokens_per_s for end in ENDS)
        assert low < middle < high < projection.bound.decode <= projection.bound.any_batch


def test_it_is_labelled_and_brings_assumptions_band_and_sources() -> None:
    projection = gemma("gemma3-1b")
    text = projection_report(projection, "gemma3-1b", 10_000)
    assert text.startswith(LABEL)
    for part in ("Assumed:", "Roofline:", "benchmarks/results/", "https://", "not used", " to "):
        assert part in text
    values = projection_json(projection, "gemma3-1b", 10_000)
    assert values["label"] == LABEL and json.loads(json.dumps(values)) == values


def reached(source: str) -> float:
    """The efficiency that a named measurement shows."""
    name, _, case = source.removeprefix("benchmarks/results/").partition(", ")
    result = json.loads((RESULTS / name).read_text())
    point, _, what = case.partition(": ")
    if what == "of ideal":
        return float(result["cells"][point]["of_ideal"]["tandem"])
    name, kind, rows = point.split()
    model = result["models"][name]
    found = next(each for each in model["cases"] if (each["kind"], each["rows"]) == (kind, int(rows)))
    key, rate = ("bytes_per_step", "read_bytes_per_s") if "read" in what else ("macs_per_step", "int8_macs_per_s")
    done = sum(kernel[key] for kernel in found["profile"]["kernels"])
    return float(done / found["step_s"] / model["ceilings"]["vulkan:0"][rate])


@pytest.mark.parametrize("name", known_hardware())
def test_efficiencies_are_those_of_the_measurements_that_are_named(name: str) -> None:
    bands: list[Band] = [band for each in read_hardware(name).device for band in (each.read, each.macs)]
    checked = 0
    for value, source in [(b.low, b.low_from) for b in bands] + [(b.high, b.high_from) for b in bands]:
        if source.startswith("benchmarks/results/"):
            assert value == pytest.approx(reached(source), abs=0.001), source
            checked += 1
        else:
            assert source.startswith("published: ")
    assert checked >= 6


def test_hardware_of_ones_own(tmp_path: Path) -> None:
    text = (REPO / "src/tandem/data/hardware/780m+phoenix.toml").read_text()
    own = tmp_path / "mine.toml"
    own.write_text(text.replace("89.6e9", "44.8e9"))
    slower = gemma("gemma3-1b", str(own), Workload(batch=1))
    assert slower.bound.decode == pytest.approx(gemma("gemma3-1b", workload=Workload(batch=1)).bound.decode / 2)


@pytest.mark.parametrize(
    "text, what",
    [("name = 3", "Expected `str`"), ("[", "Invalid"), ('name = "x"\n[memory]\nbytes_per_s = 1', "missing")],
)
def test_a_file_that_describes_no_hardware_is_refused(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(BenchError, match="does not describe hardware"):
        read_hardware(str(path))
    with pytest.raises(BenchError, match=r"780m\+phoenix"):
        read_hardware("nothing")
