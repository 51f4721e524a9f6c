"""Batch invariance: whatever else the engine does, a request gets the tokens and logprobs that it gets alone."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rig import EOS, VOCAB, Rig, alone

from tandem.engine.sampling_params import SamplingParams


def random_params(draw: random.Random) -> SamplingParams:
    return SamplingParams(
        max_tokens=draw.randint(1, 50),
        temperature=draw.choice([0.0, 0.0, 1.0, 0.7]),
        top_k=draw.choice([0, 0, 10]),
        seed=draw.randrange(1000),
        n=draw.choice([1, 1, 1, 2, 3]),
        repetition_penalty=draw.choice([1.0, 1.0, 1.3]),
        ignore_eos=draw.random() < 0.5,
        min_tokens=draw.choice([0, 0, 1]),
        logprobs=draw.choice([None, 2]),
        prompt_logprobs=draw.choice([None, None, None, 1]),
    )


@given(st.integers(0, 10**9))
@settings(max_examples=40, deadline=None)
def test_every_request_gets_what_it_gets_alone(seed: int) -> None:
    draw = random.Random(seed)
    context = draw.choice([64, 160, 256])
    window = draw.choice([None, 5, 16, 24, 40])
    sequences = draw.randint(3, 8)
    rig = Rig(
        rows=draw.randint(sequences, 48),
        sequences=sequences,
        context=context,
        window=window,
        kv_positions=draw.randint(context, context * 3),
        prefix_cache=draw.random() < 0.7,
    )
    story = [draw.randrange(VOCAB) for _ in range(context)]
    wanted = {}
    cancelled = set()
    to_come = draw.randint(1, 14)

    def arrivals_and_cancellations() -> None:
        nonlocal to_come
        while to_come and draw.random() < 0.4:
            to_come -= 1
            length = draw.choice([draw.randint(1, context - 1), 16 * draw.randint(1, context // 16 - 1)])
            shared = draw.choice([0, length, draw.randint(0, length)])
            prompt = story[:shared] + [draw.randrange(VOCAB) for _ in range(length - shared)]
            params = random_params(draw)
            name = rig.submit(prompt, params, priority=draw.choice([0, 0, -1, 1]))
            wanted[name] = (prompt, params)
        if wanted and draw.random() < 0.05:
            name = draw.choice(list(wanted))
            if rig.engine.cancel(name):
                rig.engine.scheduler.check()
                cancelled.add(name)

    while to_come:
        arrivals_and_cancellations()
        rig.step()
    rig.run(arrivals_and_cancellations)
    for name, (prompt, params) in wanted.items():
        expected = alone(prompt, params, context=context, window=window)
        for index, sample in rig.results[name].items():
            if name in cancelled:
                assert sample.tokens == expected[index].tokens[: len(sample.tokens)]
                continue
            sample.cached_tokens = 0
            assert sample == expected[index]


@pytest.mark.parametrize("rows", [1, 2, 7, 16, 33, 200])
def test_chunk_size_changes_nothing(rows: int) -> None:
    params = SamplingParams(max_tokens=30, temperature=1.0, seed=5, logprobs=1, prompt_logprobs=1)
    prompt = [i * 7 % VOCAB for i in range(150)]
    rig = Rig(rows=rows, sequences=1)
    name = rig.submit(prompt, params)
    rig.run()
    assert rig.results[name] == alone(prompt, params)
    assert len(rig.results[name][0].prompt_logprobs) == len(prompt) - 1


def test_preempted_requests_get_the_same_tokens() -> None:
    rig = Rig(rows=32, sequences=8, context=128, window=20, kv_positions=160)
    prompts = [[(i * k + 1) % VOCAB for i in range(20)] for k in range(1, 9)]
    params = SamplingParams(max_tokens=90, temperature=1.0, seed=3, ignore_eos=True)
    names = [rig.submit(prompt, params) for prompt in prompts]
    rig.run()
    assert rig.engine.scheduler.preemptions > 0
    for name, prompt in zip(names, prompts, strict=True):
        assert rig.results[name] == alone(prompt, params, context=128, window=20)


def test_samples_of_a_request_share_one_prefill_and_differ() -> None:
    rig = Rig(rows=64, sequences=4)
    params = SamplingParams(n=4, max_tokens=12, temperature=1.0, seed=1, ignore_eos=True)
    prompt = [i % VOCAB for i in range(41)]
    name = rig.submit(prompt, params)
    rig.run()
    assert rig.program.rows_computed == len(prompt) + 4 * 11
    assert rig.engine.cache.bytes_copied > 0, "the last page is shared until it is written"
    tokens = [tuple(sample.tokens) for sample in rig.results[name].values()]
    assert len(set(tokens)) == 4
    single = SamplingParams(max_tokens=12, temperature=1.0, seed=1, ignore_eos=True)
    assert rig.results[name][0].tokens == alone(prompt, single)[0].tokens


def test_tokens_are_the_same_with_the_prefix_cache_on_and_off() -> None:
    results = []
    for prefix_cache in (True, False):
        rig = Rig(rows=64, sequences=8, context=256, window=40, prefix_cache=prefix_cache)
        names = [
            rig.submit([i % 50 for i in range(130)] + [k], SamplingParams(max_tokens=20, seed=k, logprobs=0))
            for k in range(8)
        ]
        rig.run()
        results.append([(s.tokens, s.logprobs) for name in names for s in rig.results[name].values()])
    assert results[0] == results[1]


def test_a_generation_ends_at_eos_unless_it_is_ignored() -> None:
    params = SamplingParams(max_tokens=200, temperature=1.0, seed=2)
    ended = alone([1, 2, 3], params)[0]
    assert ended.finish_reason == "stop"
    assert ended.tokens[-1] == EOS and EOS not in ended.tokens[:-1]
    assert ended.stop_reason is None
