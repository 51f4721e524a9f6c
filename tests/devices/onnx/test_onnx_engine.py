"""The engine's workloads on ONNX devices: batches that come and go, shared prefixes, preemption, steady steps."""

from __future__ import annotations

import random

import pytest
from msgspec import structs

from devices.onnx.test_onnx_pipeline import NAME
from devices.vulkan.support import BUNDLED
from engine.numpy_allocations import counted
from tandem.engine.build import EngineConfig, plan_engine
from tandem.engine.request import Request
from tandem.engine.sampling_params import SamplingParams
from tandem.weights.open import open_checkpoint

PLACEMENTS = [f"attn={NAME},ffn=cpu", NAME, f"ffn=cpu+{NAME},ratio=0.5", f"attn={NAME},ffn=cpu,m=2"]


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_crowd_ends_and_says_what_each_says_alone(placement: str) -> None:
    """More requests than run at once, and fewer pages than they want. Greedy tokens may part where two are as likely:
    most requests are as long as the first difference that rounding makes.
    """
    config = EngineConfig(
        placement=placement, threads=1, max_sequences=4, rows=32, context=128, memory=None, full_sequences=1
    )
    draw = random.Random(1)
    shared = [draw.randrange(3, 4000) for _ in range(40)]
    prompts = [[*shared[: 20 + 5 * i], draw.randrange(3, 4000)] for i in range(4)]
    prompts += [[draw.randrange(3, 4000) for _ in range(3 + 7 * i)] for i in range(4)]
    params = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)

    def answers(where: str, together: bool) -> list[list[int]]:
        engine = plan_engine(open_checkpoint(str(BUNDLED)), structs.replace(config, placement=where)).load([])
        told: dict[str, list[int]] = {}
        ended = []

        def run() -> None:
            while not engine.idle:
                for delta in engine.step():
                    assert delta.error is None
                    told[delta.request_id] += delta.tokens
                    ended.extend([delta.request_id] if delta.ended else [])
                engine.scheduler.check()

        for number, prompt in enumerate(prompts):
            told[str(number)] = []
            engine.submit(Request(id=str(number), prompt=prompt, params=params))
            if not together:
                run()
        run()
        assert sorted(ended) == sorted(told)
        assert all(allocator.used == 0 for allocator in engine.cache.allocators)
        engine.executor.close()
        return list(told.values())

    crowd, alone = answers(placement, True), answers("cpu", False)
    assert all(len(tokens) == 12 for tokens in crowd)
    same = sum(a == b for a, b in zip(crowd, alone, strict=True))
    assert same >= len(prompts) // 2


@pytest.mark.parametrize("placement", PLACEMENTS[:3])
def test_a_steady_step_allocates_and_copies_nothing(placement: str) -> None:
    config = EngineConfig(threads=1, max_sequences=3, rows=32, context=128, placement=placement)
    engine = plan_engine(open_checkpoint(str(BUNDLED)), config).load([])
    params = SamplingParams(max_tokens=60, temperature=0.0, ignore_eos=True)
    for k in range(3):
        engine.submit(Request(id=str(k), prompt=[100 + k, 200, 300], params=params))
    for _ in range(4):
        engine.step()
    with counted() as sizes:
        for _ in range(30):
            assert len(engine.step()) == 3
    assert sizes == []
    assert engine.counters.bytes_copied == 0
    engine.executor.close()
