"""The engine's promises about requests: how they end, what is refused, what is shared, and that nothing is lost."""

from __future__ import annotations

import pytest
from rig import EOS, VOCAB, Rig, alone

from tandem.engine.request import Request
from tandem.engine.sampling_params import SamplingParams
from tandem.errors import RequestError

GREEDY = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)


def test_a_generation_ends_at_max_tokens_or_with_the_context() -> None:
    rig = Rig(context=64)
    short = rig.submit([1, 2, 3], GREEDY)
    full = rig.submit([5] * 60, SamplingParams(max_tokens=None, ignore_eos=True))
    rig.run()
    assert (len(rig.results[short][0].tokens), rig.results[short][0].finish_reason) == (8, "length")
    assert (len(rig.results[full][0].tokens), rig.results[full][0].finish_reason) == (4, "length")


def test_a_stop_token_ends_a_generation_and_is_named() -> None:
    tokens = alone([1, 2, 3], GREEDY)[0].tokens
    stop = tokens[4]
    params = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True, stop_token_ids=[stop])
    sample = alone([1, 2, 3], params)[0]
    assert sample.tokens == tokens[: tokens.index(stop) + 1]
    assert (sample.finish_reason, sample.stop_reason) == ("stop", stop)


def test_min_tokens_keeps_a_generation_from_stopping() -> None:
    params = SamplingParams(max_tokens=60, min_tokens=40, seed=2, logit_bias={EOS: 100.0})
    sample = alone([1, 2, 3], params)[0]
    assert len(sample.tokens) == 41 and sample.tokens[-1] == EOS


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([], GREEDY, "the prompt is empty"),
        ([1] * 256, GREEDY, "the context of 256 must also hold the answer"),
        ([VOCAB], GREEDY, "outside the vocabulary of 64"),
        ([-1], GREEDY, "outside the vocabulary of 64"),
        ([1], SamplingParams(n=5), "at most 4 sequences"),
        ([1], SamplingParams(stop_token_ids=[VOCAB]), "stop_token_ids"),
    ],
)
def test_what_cannot_run_is_refused(prompt: list[int], params: SamplingParams, message: str) -> None:
    rig = Rig()
    with pytest.raises(RequestError, match=message):
        rig.engine.submit(Request(id="x", prompt=prompt, params=params))
    assert rig.engine.idle


def test_an_id_in_use_is_refused() -> None:
    rig = Rig()
    rig.submit([1], GREEDY)
    with pytest.raises(RequestError, match="running already"):
        rig.engine.submit(Request(id="r1", prompt=[1], params=GREEDY))


@pytest.mark.parametrize("steps", [0, 1, 3, 6])
def test_cancelling_frees_the_pages_at_once(steps: int) -> None:
    rig = Rig(prefix_cache=False)
    name = rig.submit([1] * 40, SamplingParams(max_tokens=50, n=3, ignore_eos=True))
    for _ in range(steps):
        rig.step()
    assert rig.engine.cancel(name)
    assert all(allocator.free == allocator.pages for allocator in rig.engine.cache.allocators)
    assert not rig.engine.cancel(name)
    rig.run()
    assert [sample.finish_reason for sample in rig.results[name].values()] == ["cancelled"] * 3


def test_one_sample_is_cancelled_and_the_others_go_on() -> None:
    rig = Rig()
    params = SamplingParams(max_tokens=20, n=3, ignore_eos=True, seed=1)
    name = rig.submit([1] * 20, params)
    assert not rig.engine.cancel(name, 1), "it has brought no token yet"
    while not rig.results[name][1].tokens:
        rig.step()
    assert rig.engine.cancel(name, 1)
    rig.run()
    assert [sample.finish_reason for sample in rig.results[name].values()] == ["length", "cancelled", "length"]
    assert rig.results[name][2] == alone([1] * 20, params)[2]


def test_a_failed_step_fails_its_requests_and_no_others() -> None:
    rig = Rig(sequences=1)
    first, second = rig.submit([1] * 5, GREEDY), rig.submit([2] * 5, GREEDY)
    rig.step()
    rig.program.fail_next = "the device was lost"
    rig.run()
    assert rig.results[first][0].finish_reason == "error"
    assert rig.results[first][0].error == "the device was lost"
    assert rig.results[second] == alone([2] * 5, GREEDY)


def test_pages_of_a_failed_step_are_not_found_again() -> None:
    rig = Rig(rows=64)
    rig.program.fail_next = "the device was lost"
    rig.submit([1] * 50, GREEDY)
    rig.run()
    again = rig.submit([1] * 50, GREEDY)
    rig.run()
    assert rig.results[again] == alone([1] * 50, GREEDY)


def test_scoring_a_prompt_leaves_the_sampled_tokens_alone() -> None:
    rig = Rig(rows=64)
    plain = rig.submit([1, 2, 3], GREEDY)
    scored = rig.submit([4, 5, 6, 7], SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True, prompt_logprobs=2))
    rig.run()
    assert rig.results[plain] == alone([1, 2, 3], GREEDY)
    assert rig.results[scored][0].tokens == alone([4, 5, 6, 7], GREEDY)[0].tokens
    assert len(rig.results[scored][0].prompt_logprobs) == 3


def test_priority_goes_first_and_nobody_waits_for_ever() -> None:
    rig = Rig(sequences=1, rows=64, prefix_cache=False)
    low = rig.submit([1] * 4, GREEDY, priority=1)
    high = rig.submit([2] * 4, GREEDY)
    order: list[str] = []
    rig.run(lambda: order.extend(name for name in sorted(rig.ended) if name not in order))
    assert order == [high, low]
    # A head start is not a privilege: under an unending stream of urgent requests the other one has its turn.
    waiting = rig.submit([3] * 4, GREEDY, priority=1)
    for _ in range(3000):
        if len(rig.results) - len(rig.ended) < 3:
            rig.submit([4] * 4, SamplingParams(max_tokens=2, temperature=0.0))
        rig.step()
        if waiting in rig.ended:
            break
    assert waiting in rig.ended


def test_a_long_prompt_stalls_nobody_for_more_than_a_chunk() -> None:
    rig = Rig(rows=20, sequences=4, context=256)
    running = [rig.submit([k], SamplingParams(max_tokens=60, ignore_eos=True)) for k in range(3)]
    rig.step()
    long = rig.submit([9] * 200, GREEDY)
    while not rig.results[long][0].tokens:
        before = [len(rig.results[name][0].tokens) for name in running]
        rig.step()
        after = [len(rig.results[name][0].tokens) for name in running]
        assert after == [n + 1 for n in before], "every running sequence gets its token in every step"


def test_a_salt_keeps_prefixes_apart() -> None:
    rig = Rig(rows=64)
    prompt = [1] * 60
    names = []
    for salt in ("", "", "other"):
        names.append(rig.submit(prompt, GREEDY, salt=salt))
        rig.run()
    assert [rig.results[name][0].cached_tokens for name in names] == [0, 48, 0]


def test_the_prompt_of_a_finished_answer_is_found_again() -> None:
    rig = Rig(rows=64)
    first = rig.submit([1] * 40, SamplingParams(max_tokens=30, temperature=0.0, ignore_eos=True))
    rig.run()
    conversation = [1] * 40 + rig.results[first][0].tokens
    second = rig.submit([*conversation, 5], GREEDY)
    rig.run()
    assert rig.results[second][0].cached_tokens == 64
    assert rig.results[second][0].tokens == alone([*conversation, 5], GREEDY)[0].tokens
