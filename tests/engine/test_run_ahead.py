"""Steps in flight: the same answers as one after another, nothing lost, and which steps may lead."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rig import EOS, VOCAB, Rig, Sample, alone

from tandem.engine.sampling_params import SamplingParams
from tandem.memory import plan
from tandem.memory.plan import STEPS_IN_FLIGHT

GREEDY = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)


def flying(rig: Rig) -> int:
    return len(rig.engine._flying)


def test_a_decoding_batch_keeps_steps_in_flight() -> None:
    rig = Rig(candidates=64)
    names = [rig.submit([1 + k, 2, 3], GREEDY) for k in range(3)]
    seen = []
    rig.run(lambda: seen.append(flying(rig)))
    assert seen == [STEPS_IN_FLIGHT - 1] * 11 + [0]
    assert [rig.results[name] for name in names] == [alone([1 + k, 2, 3], GREEDY) for k in range(3)]
    counters = rig.engine.counters
    assert (counters.steps, counters.sampled, counters.wasted_rows) == (12, 36, 0)
    assert counters.rows == rig.program.rows_computed == 9 + 33


def test_a_device_of_whole_rows_has_one_step_in_flight() -> None:
    rig = Rig()
    rig.submit([1, 2, 3], GREEDY)
    rig.run(lambda: check(flying(rig) == 0))


def check(held: bool) -> None:
    assert held


@pytest.mark.parametrize(
    ("options", "leads"),
    [
        ({}, True),
        ({"logprobs": 3}, True),
        ({"logit_bias": {3: 2.0}, "min_tokens": 5}, True),
        ({"repetition_penalty": 1.2}, False),
        ({"frequency_penalty": 0.1}, False),
        ({"temperature": 1.0, "top_k": 5}, True),
        ({"temperature": 1.0}, True),
        ({"temperature": 0.7, "top_p": 0.9, "logit_bias": {3: 2.0}}, True),
        ({"temperature": 0.2, "top_p": 0.4, "min_p": 0.1, "logprobs": 2}, True),
        ({"temperature": 1.0, "frequency_penalty": 0.1}, False),
        # The host wants the row whole.
        ({"logprobs": 1, "logit_bias": {3: 2.0}}, False),
        ({"temperature": 1.0, "logprobs": 1}, False),
        ({"temperature": 1.0, "top_k": 65}, False),
    ],
)
def test_steps_lead_whose_tokens_the_device_knows(options: dict[str, Any], leads: bool) -> None:
    params = SamplingParams(**{"max_tokens": 9, "temperature": 0.0, "seed": 1, "ignore_eos": True} | options)
    rig = Rig(candidates=64, vocab=300)
    name = rig.submit([1, 2, 3], params)
    seen = set()
    while rig.engine.counters.steps < 8:
        rig.step()
        seen.add(flying(rig))
    assert seen == {1 if leads else 0}
    rig.run()
    assert rig.results[name] == alone([1, 2, 3], params, vocab=300)
    assert rig.engine.counters.wasted_rows == 0


def test_a_wrong_guess_costs_the_row_that_was_computed_from_it() -> None:
    """Only of the sequence that it was made for; and none is made for it for a while."""
    rig = Rig(candidates=64, vocab=300)
    params = SamplingParams(max_tokens=40, seed=1, ignore_eos=True)
    sampled, greedy = rig.submit([1, 2, 3], params), rig.submit([4, 5], GREEDY)
    rig.program.wrong_guess_in = 5
    seen = []
    rig.run(lambda: seen.append(flying(rig)))
    assert rig.results[sampled] == alone([1, 2, 3], params, vocab=300)
    assert rig.results[greedy] == alone([4, 5], GREEDY, vocab=300)
    counters = rig.engine.counters
    assert counters.wasted_rows == 2
    assert counters.rows == rig.program.rows_computed == 3 + 2 + 39 + 11 + counters.wasted_rows
    assert set(seen[:5]) == {1} and set(seen[9:20]) == {0} and 1 in seen[25:]


def test_a_token_that_candidates_cannot_tell_is_computed_again() -> None:
    """Nearly equal logits: half of their mass is more than 64 candidates."""
    rig = Rig(candidates=64, vocab=300)
    params = SamplingParams(max_tokens=40, seed=1, ignore_eos=True, top_p=0.5, temperature=50.0)
    hard, greedy = rig.submit([1, 2, 3], params), rig.submit([4, 5], GREEDY)
    rig.run()
    assert rig.results[hard] == alone([1, 2, 3], params, vocab=300)
    assert rig.results[greedy] == alone([4, 5], GREEDY, vocab=300)
    counters = rig.engine.counters
    # Two rows for each of the tokens that were to be told without their row, of which the second may come whole, too.
    assert 2 <= counters.wasted_rows <= 8
    assert 40 <= counters.whole_rows <= 40 + counters.wasted_rows // 2


def test_one_row_for_the_host_holds_the_whole_step() -> None:
    rig = Rig(candidates=64)
    rig.submit([1, 2, 3], GREEDY)
    rig.step()
    assert flying(rig) == 1
    sampled = rig.submit([4, 5], SamplingParams(max_tokens=3, seed=2, ignore_eos=True, presence_penalty=0.5))
    rig.step()
    while sampled not in rig.ended:
        assert flying(rig) <= 1
        rig.step()
    rig.step()
    assert flying(rig) == 1
    rig.run()


def test_a_prompt_that_goes_on_does_not_lead() -> None:
    rig = Rig(rows=8, candidates=64)
    rig.submit([1] * 20, GREEDY)
    seen = []
    for _ in range(4):
        rig.step()
        seen.append(flying(rig))
    assert seen == [0, 0, 1, 1]
    rig.run()


def stopping(prompt: list[int]) -> tuple[SamplingParams, list[int]]:
    """Parameters that stop at the fifth token, unless that came before; and the answer."""
    tokens = alone(prompt, GREEDY)[0].tokens
    stop = tokens[4]
    params = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True, stop_token_ids=[stop])
    return params, tokens[: tokens.index(stop) + 1]


def test_a_stop_wastes_a_row_and_its_pages_are_kept_until_it_is_done() -> None:
    params, answer = stopping([1, 2, 3])
    rig = Rig(candidates=64, prefix_cache=False)
    name = rig.submit([1, 2, 3], params)
    while name not in rig.ended:
        rig.step()
    assert flying(rig) == 1 and not rig.engine.idle
    assert all(allocator.used for allocator in rig.engine.cache.allocators)
    late = rig.submit([5, 6], GREEDY)
    rig.run()
    assert rig.results[name][0].tokens == answer
    assert rig.results[late] == alone([5, 6], GREEDY)
    assert rig.engine.counters.wasted_rows == 1


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_cancelling_gives_pages_back_with_the_step_in_flight(steps: int) -> None:
    rig = Rig(candidates=64, prefix_cache=False)
    first, other = rig.submit([1] * 20, GREEDY), rig.submit([2] * 20, GREEDY)
    for _ in range(2 + steps):
        rig.step()
    assert flying(rig) == 1 and rig.engine.cancel(first) and not rig.engine.cancel(first)
    rig.run()
    assert rig.results[first][0].finish_reason == "cancelled"
    assert rig.results[other] == alone([2] * 20, GREEDY)


def test_a_failed_step_fails_those_in_it_and_what_ran_ahead_is_dropped() -> None:
    rig = Rig(candidates=64)
    first = [rig.submit([k] * 5, GREEDY) for k in (1, 2)]
    for _ in range(3):
        rig.step()
    rig.program.fail_next = "the GPU has no memory left"
    rig.step()  # commits the step before, submits the one that fails
    late = rig.submit([3] * 5, GREEDY)  # begins in a step ahead of which the failed one is
    rig.run()
    for name in first:
        sample = rig.results[name][0]
        assert (sample.finish_reason, sample.error) == ("error", "the GPU has no memory left")
        assert sample.tokens == alone([int(name[1])] * 5, GREEDY)[0].tokens[:4]
    assert rig.results[late] == alone([3] * 5, GREEDY)


def test_pages_that_are_short_are_taken_from_nobody_while_a_step_is_in_flight() -> None:
    rig = Rig(candidates=64, sequences=3, context=64, kv_positions=96, window=None, prefix_cache=False)
    params = SamplingParams(max_tokens=50, temperature=0.0, ignore_eos=True)
    names = [rig.submit([k] * 10, params) for k in range(3)]
    preempted: list[tuple[int, int]] = []

    def look() -> None:
        preempted.append((rig.engine.scheduler.preemptions, flying(rig)))

    rig.run(look)
    assert preempted[-1][0] > 0 and {ahead for _, ahead in preempted} == {0, 1}
    assert [rig.results[name] for name in names] == [alone([k] * 10, params, context=64, window=None) for k in range(3)]


def test_a_step_ahead_takes_up_new_requests() -> None:
    rig = Rig(candidates=64)
    rig.submit([1, 2, 3], GREEDY)
    rig.step()
    new = rig.submit([4, 5, 6], GREEDY)
    rig.step()  # the one in flight, and behind it the first one with the new request
    assert not rig.results[new][0].tokens
    rig.step()
    assert len(rig.results[new][0].tokens) == 1
    rig.run()


Script = list[tuple[int, list[int], SamplingParams, int | None]]


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    """(step of arrival, prompt, parameters, steps until it is cancelled), with prompts that share beginnings."""
    script = []
    for index in range(draw(st.integers(1, 7))):
        shared = draw(st.sampled_from([0, 0, 20, 40]))
        prompt = [i * i % 61 for i in range(shared)] + draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=6))
        temperature = draw(st.sampled_from([0.0, 0.0, 1.0, 1.0, 5.0]))
        params = SamplingParams(
            max_tokens=draw(st.integers(3, 25)),
            temperature=temperature,
            top_k=draw(st.sampled_from([0, 0, 20, 65])),
            top_p=draw(st.sampled_from([1.0, 1.0, 0.9, 0.5])),
            min_p=draw(st.sampled_from([0.0, 0.0, 0.1])),
            n=draw(st.sampled_from([1, 1, 1, 2])),
            seed=index,
            logprobs=draw(st.sampled_from([None, None, 2])),
            presence_penalty=draw(st.sampled_from([0.0, 0.0, 0.0, 0.7])),
            min_tokens=draw(st.sampled_from([0, 0, 3])),
            logit_bias=draw(st.sampled_from([None, {EOS: 6.0}])),
        )
        script.append((draw(st.integers(0, 20)), prompt, params, draw(st.sampled_from([None, None, None, 3, 9]))))
    return script


def played(rig: Rig, script: Script) -> list[dict[int, Sample]]:
    names: dict[int, str] = {}
    step = 0
    while len(names) < len(script) or not rig.engine.idle:
        for index, (arrival, prompt, params, _) in enumerate(script):
            if arrival == step:
                names[index] = rig.submit(prompt, params)
        for index, (arrival, _, _, patience) in enumerate(script):
            if patience is not None and arrival + patience == step:
                rig.engine.cancel(names[index])
        rig.step()
        step += 1
    assert rig.ended == set(rig.results)
    return [rig.results[names[index]] for index in range(len(script))]


@settings(max_examples=60, deadline=None)
@given(
    script=scripts(),
    rows=st.integers(4, 40),
    window=st.sampled_from([None, 5, 20]),
    extra=st.integers(0, 128),
    prefix_cache=st.booleans(),
    steps=st.sampled_from([STEPS_IN_FLIGHT, 3]),
    vocab=st.sampled_from([VOCAB, 200]),
    wrong=st.sampled_from([0, 1, 3, 10]),
)
def test_random_schedules_bring_the_same(
    script: Script,
    rows: int,
    window: int | None,
    extra: int,
    prefix_cache: bool,
    steps: int,
    vocab: int,
    wrong: int,
) -> None:
    """As alone, on a device that hides its logits; and no page is lost (the rig looks around every step)."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(plan, "STEPS_IN_FLIGHT", steps)
        rig = Rig(
            rows=rows,
            candidates=64,
            context=96,
            window=window,
            kv_positions=96 + extra,
            prefix_cache=prefix_cache,
            vocab=vocab,
        )
        rig.program.wrong_guess_in = wrong
    for (_, prompt, params, patience), samples in zip(script, played(rig, script), strict=True):
        expected = alone(prompt, params, context=96, window=window, vocab=vocab)
        for index, sample in samples.items():
            if sample.finish_reason == "cancelled":
                assert patience is not None
                assert sample.tokens == expected[index].tokens[: len(sample.tokens)]
                continue
            assert sample.finish_reason == expected[index].finish_reason
            assert (sample.tokens, sample.logprobs) == (expected[index].tokens, expected[index].logprobs)
