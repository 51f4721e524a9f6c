"""Placements that keep every block whole give the same logits, bit for bit, with any number of micro-batches."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from cpu_rig import CpuRig
from test_cpu_invariance import CONTEXT, STORIES, TINY, params

from tandem.devices.base import Device
from tandem.devices.cpu import CpuDevice
from tandem.engine.build import EngineConfig
from tandem.engine.sampling_params import SamplingParams
from tandem.models.open import model_spec
from tandem.models.spec import ModelSpec
from tandem.pipeline.notation import parse_placement
from tandem.pipeline.placement import Placement, Share
from tandem.weights.open import open_checkpoint


def placed(draw: random.Random, spec: ModelSpec) -> Placement:
    """On two lanes: by kind, by layer, by chance, or on one; up to four micro-batches."""
    m = draw.randint(1, 4)
    texts = [f"attn=a,ffn=b,m={m}", f"attn=b,ffn=a,head=b,m={m}", f"first=a,rest=b,layers=1,m={m}", f"a,m={m}"]
    if draw.random() < 0.25:
        return Placement(tuple((Share(draw.choice("ab")),) for _ in spec.blocks), m)
    return parse_placement(draw.choice(texts), spec)


def check_a_mix(model: Path, seed: int, requests: int) -> None:
    """Requests that come and go, against each of them alone on one lane."""
    draw = random.Random(seed)
    sequences = draw.randint(3, 12)
    config = EngineConfig(
        threads=1,
        max_sequences=sequences,
        rows=draw.randint(sequences, 80),
        context=CONTEXT,
        prefix_cache=draw.random() < 0.75,
    )
    devices: dict[str, Device] = {"a": CpuDevice(draw.choice([1, 2])), "b": CpuDevice(1)}
    placement = placed(draw, model_spec(open_checkpoint(model)))
    devices = {name: device for name, device in devices.items() if name in placement.names}
    positions = draw.randint(CONTEXT, CONTEXT * 2)
    rig = CpuRig(model, config, kv_positions=positions, placement=placement, devices=devices)
    story = [draw.randrange(2, rig.engine.vocab) for _ in range(CONTEXT)]
    asked: dict[str, tuple[list[int], SamplingParams]] = {}

    def something_comes() -> None:
        while len(asked) < requests and draw.random() < 0.4:
            length = draw.choice([draw.randint(1, 60), 16 * draw.randint(1, 6), draw.randint(100, CONTEXT - 1)])
            shared = draw.choice([0, length, draw.randint(0, length)])
            prompt = story[:shared] + [draw.randrange(2, rig.engine.vocab) for _ in range(length - shared)]
            wanted = params(draw, len(asked))
            asked[rig.submit(prompt, wanted)] = prompt, wanted

    while len(asked) < requests:
        something_comes()
        rig.step()
    rig.run(something_comes)
    alone = CpuRig(model, EngineConfig(threads=1, max_sequences=3, rows=CONTEXT, context=CONTEXT, prefix_cache=False))
    for name, (prompt, wanted) in asked.items():
        by_itself = alone.submit(prompt, wanted)
        alone.run()
        for index, expected in alone.results[by_itself].items():
            sample = rig.results[name][index]
            sample.cached_tokens = 0
            assert sample == expected, (placement, name)
    assert {key: rig.logits[key] for key in alone.logits} == alone.logits
    rig.engine.executor.close()
    alone.engine.executor.close()


@pytest.mark.parametrize("seed", range(8))
def test_lanes_and_micro_batches_change_nothing(seed: int) -> None:
    check_a_mix(TINY, seed, requests=8)


def test_lanes_and_micro_batches_change_nothing_with_windows() -> None:
    check_a_mix(STORIES, 100, requests=4)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200, 230))
def test_lanes_and_micro_batches_change_nothing_in_many_mixes(seed: int) -> None:
    check_a_mix(TINY if seed % 3 else STORIES, seed, requests=12)
