"""Steps in flight on a GPU: the bits of one step after another, whatever the memory's kind and the placement."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest

from devices.vulkan.conftest import Open
from devices.vulkan.test_lost import failing
from devices.vulkan.test_pipeline import KINDS, TINY
from pipeline.forced import placed
from tandem.devices.base import Device
from tandem.devices.cpu import CpuDevice
from tandem.devices.vulkan import queue
from tandem.devices.vulkan.binding import constants as vk
from tandem.engine.engine import Engine
from tandem.engine.request import Delta, Request
from tandem.engine.sampling_params import SamplingParams
from tandem.memory.plan import Limits

LIMITS = Limits(context=96, sequences=4, rows=24)
GREEDY = SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True)
EOS = 1
SAMPLED: list[dict[str, Any]] = [
    {},
    {"temperature": 0.8, "top_k": 20},
    {"temperature": 0.9, "top_p": 0.9},
    {"temperature": 1.5, "top_p": 0.6, "min_p": 0.02},
]


def engine_on(text: str, devices: Mapping[str, Device], *, run_ahead: bool = True) -> Engine:
    engine = Engine(placed(TINY, text, devices, LIMITS), eos_ids=[EOS])
    engine.run_ahead = run_ahead
    return engine


def stepped(engine: Engine, told: dict[str, list[Delta]]) -> None:
    for delta in engine.step():
        assert not told.setdefault(delta.request_id, []) or not told[delta.request_id][-1].ended
        told[delta.request_id].append(delta)
    engine.scheduler.check()


def answers(engine: Engine, seed: int, *, sampled: bool = False, requests: int = 10) -> dict[str, object]:
    """Of requests that come while others run, some of which stop early or are cancelled; by request what it brought."""
    draw = random.Random(seed)
    told: dict[str, list[Delta]] = {}
    story = [draw.randrange(3, 2000) for _ in range(60)]
    submitted: list[str] = []
    cancelled = set()
    flights = set()
    while len(submitted) < requests or not engine.idle:
        if len(submitted) < requests and draw.random() < 0.4:
            prompt = story[: draw.choice([0, 20, 40])] + [draw.randrange(3, 2000) for _ in range(draw.randint(1, 20))]
            other = sampled and draw.random() < 0.6
            how = draw.choice(SAMPLED) if other else {"temperature": 0.0}
            params = SamplingParams(
                **how,
                max_tokens=draw.randint(1, 30),
                seed=len(submitted),
                repetition_penalty=1.2 if sampled and draw.random() < 0.1 else 1.0,
                logprobs=draw.choice([None, None, 2]),
                stop_token_ids=[draw.randrange(3, 2000) for _ in range(400)],
            )
            submitted.append(f"r{len(submitted)}")
            engine.submit(Request(id=submitted[-1], prompt=prompt, params=params))
            if draw.random() < 0.2:
                cancelled.add(submitted[-1])
        for name in cancelled:
            if len(told.get(name, ())) == 4:
                engine.cancel(name)
        stepped(engine, told)
        flights.add(len(engine._flying))
    assert flights == ({0, 1} if engine.run_ahead else {0})
    assert all(allocator.used == 0 for allocator in engine.cache.allocators)
    found = {}
    for name in submitted:
        deltas = told[name]
        assert deltas[-1].ended and not any(delta.error for delta in deltas)
        tokens = [token for delta in deltas for token in delta.tokens]
        logprobs = [each for delta in deltas for each in delta.logprobs or []]
        reason = deltas[-1].finish_reason
        # How far a cancelled one came depends on when that is seen.
        found[name] = (tokens[:4], logprobs[:4]) if reason == "cancelled" else (tokens, logprobs, reason)
    return found


@pytest.mark.parametrize("hidden", KINDS)
def test_the_bits_are_those_of_one_step_after_another(hidden: dict[str, bool], opened: Open) -> None:
    device = opened(**hidden)
    one = engine_on("g", {"g": device}, run_ahead=False)
    ahead = engine_on("g", {"g": device})
    for seed in range(3):
        assert answers(ahead, seed, sampled=seed == 2) == answers(one, seed, sampled=seed == 2)
    assert ahead.counters.wasted_rows > 0 == one.counters.wasted_rows


@pytest.mark.parametrize("text", ["attn=cpu,ffn=g,head=g,m=2", "attn=g,ffn=cpu,head=g", "first=h,rest=g,layers=1,m=2"])
def test_several_lanes_run_ahead_too(text: str, opened: Open) -> None:
    """Also where a step begins on another lane than the one that ends the step before."""
    devices: dict[str, Device] = {"g": opened(), "h": opened(), "cpu": CpuDevice(1)}
    one, ahead = engine_on(text, devices, run_ahead=False), engine_on(text, devices)
    assert answers(ahead, 5, requests=6) == answers(one, 5, requests=6)
    devices["cpu"].close()


def test_a_steady_step_takes_nothing_more(opened: Open) -> None:
    device = opened()
    engine = engine_on("g", {"g": device})
    planned = {plan.device: plan for plan in engine.executor.plan.devices}
    for k, how in enumerate(({"temperature": 0.0}, {}, {"top_p": 0.9}, {"temperature": 0.5, "top_k": 9})):
        params = SamplingParams(max_tokens=20, ignore_eos=True, seed=k, **how)
        engine.submit(Request(id=str(k), prompt=[5 + k, 6, 7], params=params))
    for _ in range(4):
        engine.step()
    live = device._machine.memory._live.values()
    assert sum(buffer.size for buffer in live if buffer.keeps is None) == planned["g"].total
    before = device.counters.allocations, device.counters.whole_rows
    for _ in range(12):
        assert len(engine.step()) == 4 and len(engine._flying) == 1
    assert (device.counters.allocations, device.counters.whole_rows) == before
    assert engine.counters.wasted_rows == 0


def test_a_step_that_fails_in_flight_fails_its_requests_and_no_later_ones(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = opened()
    engine = engine_on("g", {"g": device})
    told: dict[str, list[Delta]] = {}
    engine.submit(Request(id="a", prompt=[5, 6, 7], params=GREEDY))
    for _ in range(3):
        stepped(engine, told)
    with monkeypatch.context() as patched:
        patched.setattr(queue, "call", failing("vkQueueSubmit", vk.OUT_OF_DEVICE_MEMORY, after=0))
        stepped(engine, told)  # commits what was in flight, and submits the step that fails
    engine.submit(Request(id="b", prompt=[5, 6, 7], params=GREEDY))
    while not engine.idle:
        stepped(engine, told)
    failed, later = told["a"][-1], told["b"]
    assert failed.error is not None and "has none left to run a step" in failed.error
    assert not any(delta.error for delta in later)
    tokens = [token for delta in later for token in delta.tokens]
    assert len(tokens) == 20 and [token for delta in told["a"] for token in delta.tokens] == tokens[:4]
