"""Replaying a trace: every request gets what the trace says, and the percentiles are those of what was seen."""

from __future__ import annotations

import json

import numpy as np
import pytest

from paths import SHARED
from tandem.bench.replay import Replay, replay
from tandem.bench.report import Distribution
from tandem.bench.subject import open_subject
from tandem.bench.trace import TraceRequest
from tandem.engine.build import EngineConfig
from tandem.weights.open import open_checkpoint

MODEL = SHARED / "data/models/TinyStories-656K/TinyStories-656K-Q8_0.gguf"


def test_percentiles_are_numpys() -> None:
    values = np.random.default_rng(0).exponential(size=997)
    spread = Distribution.of(values.tolist())
    assert (spread.n, spread.max) == (997, values.max())
    for name, q in (("p50", 50), ("p90", 90), ("p99", 99)):
        assert getattr(spread, name) == pytest.approx(np.percentile(values, q), rel=1e-12)
    assert spread.mean == pytest.approx(values.mean())


def test_percentiles_between_two_values_are_interpolated() -> None:
    assert Distribution.of([1.0, 2.0, 3.0, 4.0, 5.0]).p90 == pytest.approx(4.6)
    assert Distribution.of([10.0, 20.0]).p50 == 15.0
    assert Distribution.of([7.0]).p99 == 7.0


def test_latencies_of_a_replay_that_is_known() -> None:
    requests = [TraceRequest(0.0, 10, 3), TraceRequest(1.0, 5, 1), TraceRequest(2.0, 5, 2)]
    seen = Replay(requests, speed=2.0, first=[0.0] * 3, last=[0.0] * 3)
    # Arrivals at 0, 0.5 and 1 s.
    for now, tokens in ((0.25, [0]), (0.75, [0, 1]), (1.75, [0, 2]), (2.25, [2])):
        for index in tokens:
            seen.add_token(index, now)
        seen.step_ends.append(now)
        seen.step_rows.append(10)
        seen.step_running.append(len(tokens))
        seen.step_waiting.append(0)
    seen.seconds, seen.idle_s, seen.native_s = 2.25, 0.25, 1.5
    told = json.loads(json.dumps(seen.to_json()))
    assert told["ttft_s"] == Distribution.of([0.25, 0.25, 0.75]).to_json()
    assert told["itl_s"] == Distribution.of([0.5, 1.0, 0.5]).to_json()
    assert told["request_s"] == Distribution.of([1.75, 0.25, 1.25]).to_json()
    assert told["new_tokens"] == 6
    assert told["new_tokens_per_s"] == 6 / 2.25
    assert told["tokens_per_s"] == 26 / 2.25
    assert told["overhead"] == 0.25
    assert told["idle_share"] == pytest.approx(1 / 9)
    assert told["per_second"]["new_tokens"] == [3, 2]
    assert told["per_second"]["rows"] == [20, 10]
    assert told["per_second"]["running"] == [2, 2]


def test_every_request_of_a_trace_is_answered_in_full() -> None:
    requests = [TraceRequest(0.02 * (i // 3), 5 + 7 * (i % 4), 1 + i % 6) for i in range(12)]
    told: list[int] = []
    with open_subject(open_checkpoint(MODEL), EngineConfig(threads=1, max_sequences=3, rows=16, context=64)) as subject:
        seen = replay(subject.engine, requests, speed=4.0, progress=lambda done, total: told.append(done))
        assert subject.engine.idle
    assert told == sorted(told)
    assert told[-1] == 12
    assert len(seen.token_times) == sum(request.new_tokens for request in requests)
    assert len(seen.gaps) == len(seen.token_times) - 12
    assert sum(seen.step_rows) == sum(request.prompt_tokens + request.new_tokens - 1 for request in requests)
    assert max(seen.step_running) <= 3
    for index, request in enumerate(requests):
        assert request.arrival_s / 4 == seen.arrival(index) < seen.first[index] <= seen.last[index] <= seen.seconds
    assert 0 < seen.native_s < seen.seconds - seen.idle_s
    assert seen.to_json()["preemptions"] == 0


def test_the_engine_rests_until_the_next_arrival() -> None:
    requests = [TraceRequest(0.0, 4, 2), TraceRequest(0.5, 4, 2)]
    with open_subject(open_checkpoint(MODEL), EngineConfig(threads=1, max_sequences=2, rows=16, context=64)) as subject:
        seen = replay(subject.engine, requests)
    assert seen.first[1] > 0.5
    assert 0 < seen.idle_s < seen.seconds


def test_answers_of_one_token_have_no_gaps() -> None:
    seen = Replay([TraceRequest(0.0, 4, 1)], speed=1.0, first=[0.0], last=[0.0])
    seen.add_token(0, 0.5)
    seen.step_ends.append(0.5)
    seen.step_rows.append(4)
    seen.step_running.append(0)
    seen.step_waiting.append(0)
    seen.seconds = 0.5
    assert seen.to_json()["itl_s"] is None
    # A replay of less than a second is one window.
    assert seen.to_json()["new_tokens_in_a_second"]["n"] == 1
