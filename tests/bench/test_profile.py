"""A profile on the CPU, which tells no kernels: steps, the table, the trace. Kernels: tests/devices/vulkan."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from paths import SHARED
from tandem.bench.profile import measure_ceilings, profile_table, run_profile, summarize, write_trace
from tandem.bench.subject import Subject, open_subject
from tandem.bench.throughput import Workload
from tandem.devices.base import Ceilings, KernelTime
from tandem.models.open import model_spec
from tandem.pipeline.timing import ProgramTime, StepTime
from tandem.weights.open import open_checkpoint

MODEL = SHARED / "data/models/TinyStories-656K/TinyStories-656K-Q8_0.gguf"
WORKLOAD = Workload(kinds=("prefill", "decode"), batches=(1, 3), depths=(5,), prompt_tokens=20, new_tokens=2, rows=32)


@pytest.fixture(scope="module")
def subject() -> Iterator[Subject]:
    checkpoint = open_checkpoint(MODEL)
    spec = model_spec(checkpoint)
    config = WORKLOAD.engine_config(spec, threads=1, placement="attn=cpu,ffn=ref")
    assert measure_ceilings(spec, config) == {}
    with open_subject(checkpoint, config) as subject:
        yield subject


def test_each_point_has_its_steps_and_each_program_its_time(subject: Subject, tmp_path: Path) -> None:
    result, steps = run_profile(subject, WORKLOAD, {}, None)
    seen = {(entry["kind"], entry["batch"]): entry for entry in result["results"]}
    assert set(seen) == {(kind, batch) for kind in WORKLOAD.kinds for batch in WORKLOAD.batches}
    assert seen["decode", 3]["steps"] == 2 and seen["prefill", 3]["steps"] == 3  # of 75 rows, 32 a step
    assert set(seen["decode", 1]["device_seconds_per_step"]) == {"cpu", "ref"}
    assert subject.engine.executor.profile is None
    assert "no device here tells of kernels" in profile_table(result)
    for step in steps:
        ends = [program.start + program.seconds for program in step.programs]
        assert all(end <= program.start for end, program in zip(ends, step.programs[1:], strict=False))
    write_trace(tmp_path / "trace.json", steps)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert {event["args"]["name"] for event in events if event["ph"] == "M"} == {"cpu", "ref"}
    assert sum(event["ph"] == "X" for event in events) == sum(len(step.programs) for step in steps)


def test_kernels_are_added_up_by_kind_of_block(tmp_path: Path) -> None:
    kernels = [KernelTime("product", "Q8_0 x1", f"ffn {layer}", 0.5, 1_000_000_000, 2_000_000_000) for layer in (0, 1)]
    kernels.append(KernelTime("norm", "", "head", 3.0))
    step = StepTime(4, 4, [ProgramTime("vulkan:0", 10.0, 5.0, kernels)])
    (norm, product) = summarize([step, step])["kernels"]
    assert (norm["block"], norm["seconds_per_step"], norm["per_step"]) == ("head", 3.0, 1.0)
    assert (product["block"], product["per_step"], product["bytes_per_step"]) == ("ffn", 2.0, 2_000_000_000)
    entry = {"kind": "decode", "batch": 4, "depth": 0, "steps": 2, **summarize([step, step])}
    ceilings = {"vulkan:0": {"read_bytes_per_s": 4e9, "copy_bytes_per_s": 3e9, "int8_macs_per_s": None}}
    assert set(ceilings["vulkan:0"]) == set(Ceilings.__slots__)
    table = profile_table({"results": [entry], "ceilings": ceilings})
    assert "4.0 GB/s read, 3.0 GB/s copied" in table
    assert "ffn product Q8_0 x1 2 1000.000 25.0% 2.00 50.0% 4.00" in " ".join(table.split())
    write_trace(tmp_path / "trace.json", [step])
    spans = [each for each in json.loads((tmp_path / "trace.json").read_text())["traceEvents"] if each["ph"] == "X"]
    assert [(span["ts"], span["dur"]) for span in spans[1:]] == [(11e6, 0.5e6), (11.5e6, 0.5e6), (12e6, 3e6)]
