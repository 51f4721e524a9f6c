"""Batch invariance with real models on the CPU device: tokens, logprobs and the logits themselves, bit for bit."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from cpu_rig import CpuRig

from paths import SHARED
from tandem.devices.spec import KVDtype
from tandem.engine.build import EngineConfig
from tandem.engine.sampling_params import SamplingParams

TINY = SHARED / "data" / "models" / "TinyStories-656K"
STORIES = SHARED / "models" / "tandem-stories-22m"  # Gemma 3's shape: sliding windows, QK-norms
CONTEXT = 256


def params(draw: random.Random, seed: int) -> SamplingParams:
    return SamplingParams(
        max_tokens=draw.choice([draw.randint(1, 10), draw.randint(30, 80)]),
        temperature=draw.choice([0.0, 0.0, 1.0, 0.7]),
        top_k=draw.choice([0, 0, 40]),
        top_p=draw.choice([1.0, 0.9]),
        seed=seed,
        n=draw.choice([1, 1, 1, 2, 3]),
        repetition_penalty=draw.choice([1.0, 1.0, 1.2]),
        ignore_eos=draw.random() < 0.7,
        logprobs=draw.choice([None, 0, 3]),
        prompt_logprobs=draw.choice([None, None, None, 1]),
    )


def check_a_mix(model: Path, seed: int, requests: int) -> tuple[int, int]:
    """A random mix against each of its requests alone; returns preemptions and cached tokens."""
    draw = random.Random(seed)
    # 8-bit KV takes heads of a multiple of 32; TinyStories has 16.
    kv_dtype: KVDtype = draw.choice(["f16", "q8_0"]) if model == STORIES else "f16"
    sequences = draw.randint(3, 20)
    config = EngineConfig(
        threads=draw.choice([1, 2]),
        max_sequences=sequences,
        rows=draw.randint(sequences, 80),
        context=CONTEXT,
        kv_dtype=kv_dtype,
        prefix_cache=draw.random() < 0.75,
    )
    rig = CpuRig(model, config, kv_positions=draw.randint(CONTEXT, CONTEXT * 3 // 2))
    vocab = rig.engine.vocab
    story = [draw.randrange(2, vocab) for _ in range(CONTEXT)]
    asked: dict[str, tuple[list[int], SamplingParams]] = {}
    cancelled = set()

    def something_happens() -> None:
        while len(asked) < requests and draw.random() < 0.4:
            length = draw.choice([draw.randint(1, 60), 16 * draw.randint(1, 6), draw.randint(100, CONTEXT - 1)])
            shared = draw.choice([0, length, draw.randint(0, length)])
            prompt = story[:shared] + [draw.randrange(2, vocab) for _ in range(length - shared)]
            wanted = params(draw, len(asked))
            asked[rig.submit(prompt, wanted, priority=draw.choice([0, 0, -1, 1]))] = prompt, wanted
        if asked and draw.random() < 0.03:
            name = draw.choice(list(asked))
            if rig.engine.cancel(name):
                cancelled.add(name)

    while len(asked) < requests:
        something_happens()
        rig.step()
    rig.run(something_happens)

    single = EngineConfig(
        threads=1, max_sequences=3, rows=CONTEXT, context=CONTEXT, kv_dtype=kv_dtype, prefix_cache=False
    )
    alone = CpuRig(model, single)
    for name, (prompt, wanted) in asked.items():
        by_itself = alone.submit(prompt, wanted)
        alone.run()
        for index, expected in alone.results[by_itself].items():
            sample = rig.results[name][index]
            sample.cached_tokens = 0
            if name in cancelled:
                assert sample.tokens == expected.tokens[: len(sample.tokens)]
                assert sample.logprobs == expected.logprobs[: len(sample.logprobs)]
            else:
                assert sample == expected
    assert rig.logits == {key: alone.logits[key] for key in rig.logits}
    assert rig.engine.counters.sampled == len(rig.logits)
    preemptions, cached = rig.engine.counters.preemptions, rig.engine.counters.cached_tokens
    rig.close()
    alone.close()
    return preemptions, cached


@pytest.mark.parametrize(("model", "requests", "seeds"), [(TINY, 24, (0, 1, 2)), (STORIES, 10, (1, 3))])
def test_every_request_gets_the_logits_that_it_gets_alone(model: Path, requests: int, seeds: tuple[int, ...]) -> None:
    seen = [check_a_mix(model, seed, requests) for seed in seeds]
    assert sum(preemptions for preemptions, _ in seen) > 0 and sum(cached for _, cached in seen) > 0


@pytest.mark.slow
@pytest.mark.parametrize(("model", "mixes"), [(TINY, 60), (STORIES, 6)])
def test_many_mixes(model: Path, mixes: int) -> None:
    for seed in range(100, 100 + mixes):
        check_a_mix(model, seed, 30)
