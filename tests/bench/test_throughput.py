"""The throughput benchmark on the smallest model: that it measures what it says it does. How fast is not looked at."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from paths import SHARED
from tandem.bench.subject import Subject, open_subject, step_weight_bytes
from tandem.bench.tables import throughput_table
from tandem.bench.throughput import KINDS, ThroughputBench, Workload, relative_to_smaller, run_throughput
from tandem.errors import BenchError
from tandem.models.open import model_spec
from tandem.weights.open import open_checkpoint

MODEL = SHARED / "data/models/TinyStories-656K/TinyStories-656K-Q8_0.gguf"
WORKLOAD = Workload(batches=(1, 3, 5), depths=(0, 37), prompt_tokens=20, new_tokens=6, mixed_steps=3, rounds=2, rows=32)


@pytest.fixture(scope="module")
def subject() -> Iterator[Subject]:
    checkpoint = open_checkpoint(MODEL)
    with open_subject(checkpoint, WORKLOAD.engine_config(model_spec(checkpoint), threads=1)) as subject:
        yield subject


@pytest.mark.parametrize("depth", WORKLOAD.depths)
@pytest.mark.parametrize("batch", WORKLOAD.batches)
def test_spans_hold_what_they_are_named_for(subject: Subject, batch: int, depth: int) -> None:
    bench = ThroughputBench(subject.engine, WORKLOAD)
    decode = bench.measure("decode", batch, depth)
    assert (decode.steps, decode.rows, decode.sampled) == (6, 6 * batch, 6 * batch)
    prefill = bench.measure("prefill", batch, depth)
    assert (prefill.rows, prefill.sampled) == (batch * (20 + depth % 16), batch)
    assert prefill.steps == -(-prefill.rows // 32)
    mixed = bench.measure("mixed", batch, depth)
    assert (mixed.steps, mixed.rows) == (3, 3 * 32)
    assert mixed.sampled >= 3 * batch
    for span in (decode, prefill, mixed):
        assert span.waited > 0 < span.sampling
        assert 0 < span.overhead < 1
    assert subject.engine.idle
    assert all(allocator.used == 0 for allocator in subject.engine.cache.allocators)


def test_beginnings_are_computed_once(subject: Subject) -> None:
    bench = ThroughputBench(subject.engine, WORKLOAD)
    rows = []
    for _ in range(2):
        before = subject.engine.counters.rows
        bench.measure("decode", 5, 37)
        rows.append(subject.engine.counters.rows - before)
    assert rows[0] - rows[1] == 5 * 32  # two whole pages of each


def test_copied_beginnings_are_read_as_those_that_they_copy(subject: Subject) -> None:
    """One beginning is computed; behind the copies in pages of their own the model goes on as behind the first."""
    engine = subject.engine
    bench = ThroughputBench(engine, WORKLOAD, copied=True)
    before = engine.counters.rows
    bench._compute_beginnings(3, 32)
    assert engine.counters.rows - before == 33
    engine.cache.check([])
    answers = []
    for beginning in bench._beginnings[:3]:
        before = engine.counters.rows
        bench._submit([*beginning[:32], 7, 8], 4)
        answer: list[int] = []
        while not engine.idle:
            answer += [token for delta in bench._step() for token in delta.tokens]
        answers.append(answer)
        assert engine.counters.rows - before == 2 + 3
    assert len({tuple(each[:32]) for each in bench._beginnings[:3]}) == 3
    assert answers[0] == answers[1] == answers[2] and len(answers[0]) == 4
    decode = bench.measure("decode", 3, 37, new_tokens=2)
    assert (decode.steps, decode.rows) == (2, 6)


def test_result(subject: Subject) -> None:
    told: list[tuple[int, int]] = []
    result: dict[str, Any] = json.loads(
        json.dumps(run_throughput(subject, WORKLOAD, lambda done, total: told.append((done, total))))
    )
    assert told == [(done, 36) for done in range(1, 37)]
    assert [(entry["depth"], entry["batch"]) for entry in result["results"]] == [
        (depth, batch) for depth in (0, 37) for batch in (1, 3, 5)
    ]
    for entry in result["results"]:
        for kind in KINDS:
            for summary in entry[kind].values():
                assert len(summary["samples"]) == 2
                assert summary["low"] <= summary["median"] <= summary["high"]
            (name,) = entry["lanes"][kind]
            lane = entry["lanes"][kind][name]
            assert name == "cpu" and 0 < lane["busy"]["low"] <= lane["busy"]["high"] <= 1
            assert lane["hand_overs_per_step"]["high"] == 0 and lane["hand_over_s"] is None
        decode = entry["decode"]
        assert decode["tokens_per_s"]["samples"] == pytest.approx(
            [entry["batch"] / seconds for seconds in decode["step_s"]["samples"]]
        )
        assert decode["bytes_copied_per_step"]["high"] == decode["allocations_per_step"]["high"] == 0
        assert decode["bandwidth_share"]["median"] > 0
    assert result["model"]["file"] == MODEL.name
    assert result["threads"] == 1
    table = throughput_table(result)
    assert "depth 37" in table
    assert sum(line.startswith(("1 ", "3 ", "5 ")) for line in table.splitlines()) == 6


def test_bytes_of_a_decode_step(subject: Subject) -> None:
    checkpoint = open_checkpoint(MODEL)
    every = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    embedding = checkpoint.tensors[model_spec(checkpoint).tensors[0]["embedding"]].nbytes
    assert subject.weight_bytes == step_weight_bytes(model_spec(checkpoint), checkpoint)
    assert every - embedding <= subject.weight_bytes <= every
    # 2 layers, 4 KV heads of 16, keys and values, two bytes each.
    position = 2 * 4 * 16 * 2 * 2
    assert subject.kv_bytes(100) == 100 * position
    share = subject.bandwidth_share(0.5, 3, 100)
    assert share == pytest.approx((subject.weight_bytes + 300 * position) / 0.5 / subject.read_bandwidth)


def test_relative_to_smaller() -> None:
    assert relative_to_smaller({8: 40.0, 1: 10.0, 9: 30.0, 16: 60.0, 32: 54.0}) == {8: 4.0, 9: 0.75, 16: 1.5, 32: 0.9}
    assert relative_to_smaller({4: 1.0}) == {}


def test_workloads_that_cannot_be() -> None:
    with pytest.raises(BenchError, match="no measurement 'sleep'"):
        Workload(kinds=("decode", "sleep"))
    with pytest.raises(BenchError, match="64 rows leaves none for prompts beside 64"):
        Workload(rows=64)
    spec = model_spec(open_checkpoint(MODEL))
    with pytest.raises(BenchError, match=r"depth of 512 .* trained for 512; choose smaller"):
        Workload().engine_config(spec)


def test_lanes_of_a_pipeline_are_told() -> None:
    """What each did, and what handing over took: as JSON and in the table."""
    workload = Workload(kinds=("decode",), batches=(4,), depths=(0,), new_tokens=3, rounds=1, rows=32)
    checkpoint = open_checkpoint(MODEL)
    config = workload.engine_config(model_spec(checkpoint), threads=1, placement="attn=cpu,ffn=ref,m=2")
    with open_subject(checkpoint, config) as subject:
        result: dict[str, Any] = json.loads(json.dumps(run_throughput(subject, workload)))
    lanes = result["results"][0]["lanes"]["decode"]
    assert set(lanes) == {"cpu", "ref"}
    assert all(0 < lane["busy"]["median"] <= 1 for lane in lanes.values())
    # Each of two micro-batches comes from the other lane at each of the layers.
    assert 0 < lanes["cpu"]["hand_overs_per_step"]["median"] <= 2 * subject.spec.layers
    assert lanes["cpu"]["hand_over_s"]["median"] > 0
    table = throughput_table(result)
    assert "hand-overs a step" in table
    assert any(line.split()[:3] == ["4", "decode", "cpu"] for line in table.splitlines())
