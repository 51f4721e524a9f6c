"""The sampler against its numpy specification, feature by feature and over random parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import sampling_model as model
from tandem import _native
from tandem.engine.sampling import Sampler, SamplingState
from tandem.engine.sampling_params import SamplingParams

Logits = npt.NDArray[np.float32]


def runnable(isa: str) -> bool:
    try:
        return _native.choose_isa(isa) == isa
    except ValueError:
        return False


ISAS = [isa for isa in ("scalar", "avx2", "avx512") if runnable(isa)]


def pack_mask(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint32]:
    bits = np.zeros(-(-len(mask) // 32) * 32, dtype=bool)
    bits[: len(mask)] = mask
    return np.packbits(bits, bitorder="little").view(np.uint32)


def state_of(params: SamplingParams, vocab: int, seed: int = 7, **rest: Any) -> SamplingState:
    return SamplingState(params, rest.pop("prompt", [0]), vocab=vocab, seed=seed, **rest)


def sample_one(logits: Any, state: SamplingState, isa: str = "", **rest: Any) -> int:
    rows = np.asarray(logits, dtype=np.float32)[None]
    return int(Sampler(rows.shape[1], 1, isa).sample(rows, [state], **rest).tokens[0])


@st.composite
def rows_of_logits(draw: st.DrawFn) -> Logits:
    vocab = draw(st.sampled_from([1, 2, 31, 63, 64, 65, 200, 1000]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    x = rng.standard_normal(vocab) * draw(st.sampled_from([0.0, 0.5, 3.0, 20.0, 1e30]))
    if draw(st.booleans()):
        x = np.rint(x)  # many ties, -0.0 among them
    if draw(st.booleans()):
        x[rng.random(vocab) < 0.3] = -np.inf
    if draw(st.integers(0, 9)) == 0:
        x[rng.integers(vocab)] = draw(st.sampled_from([np.nan, -np.nan, np.inf]))
    return x.astype(np.float32)


@st.composite
def sampling_params(draw: st.DrawFn, vocab: int) -> SamplingParams:
    tokens = st.integers(0, vocab - 1)
    return SamplingParams(
        temperature=draw(st.sampled_from([0.0, 1e-320, 1e-6, 0.3, 1.0, 1.0, 1.7, 100.0, 1e300])),
        top_k=draw(st.sampled_from([-1, 0, 1, 2, 40, 300, 5000])),
        top_p=draw(st.sampled_from([1.0, 1e-9, 0.1, 0.5, 0.95, 0.9999999])),
        min_p=draw(st.sampled_from([0.0, 1e-310, 0.001, 0.05, 0.6, 1.0])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.0, 0.5, 1.3, 2.0])),
        presence_penalty=draw(st.sampled_from([0.0, 0.0, -1.5, 0.7])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.0, -0.3, 1.1])),
        logit_bias=draw(st.none() | st.dictionaries(tokens, st.sampled_from([-100.0, -1.3, 2.7, 100.0]), max_size=4)),
        stop_token_ids=draw(st.none() | st.lists(tokens, max_size=3)),
        ignore_eos=draw(st.booleans()),
        min_tokens=draw(st.sampled_from([0, 0, 3])),
        seed=draw(st.integers(0, 2**63 - 1)),
    )


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_equals_the_specification(data: st.DataObject) -> None:
    logits = data.draw(rows_of_logits())
    vocab = len(logits)
    params = data.draw(sampling_params(vocab))
    tokens = st.lists(st.integers(0, vocab - 1), max_size=8)
    prompt, output, eos = data.draw(tokens), data.draw(tokens), data.draw(tokens)
    mask = None
    if data.draw(st.booleans()):
        mask = np.random.default_rng(data.draw(st.integers(0, 2**32))).random(vocab) < data.draw(
            st.sampled_from([0.0, 0.02, 0.7])
        )
    assert params.seed is not None
    expected = model.sample(
        logits, params, seed=params.seed, sample_index=3, position=len(prompt) + len(output),
        prompt=prompt, output=output, eos=eos, mask=mask,
    )  # fmt: skip
    for isa in ISAS:
        state = SamplingState(params, prompt, vocab=vocab, eos_token_ids=eos, sample_index=3)
        for token in output:
            state.append(token)
        masks = None if mask is None else [pack_mask(mask)]
        before = logits.copy()
        assert sample_one(logits, state, isa, masks=masks) == expected
        np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": 0.8, "top_k": 40},
        {"top_k": 5000, "top_p": 0.9},
        {"top_p": 0.95},
        {"min_p": 0.02},
        {},
        {"temperature": 1.4, "repetition_penalty": 1.2, "frequency_penalty": 0.4, "top_p": 0.7},
    ],
)
@pytest.mark.parametrize("spread", [1.0, 4.0])
def test_equals_the_specification_at_a_large_vocabulary(options: dict[str, Any], spread: float) -> None:
    vocab = 262_144
    rng = np.random.default_rng(5)
    logits = (rng.standard_normal(vocab) * spread).astype(np.float32)
    params = SamplingParams(seed=11, **options)
    prompt = rng.integers(0, vocab, 300).tolist()
    expected = model.sample(logits, params, seed=11, position=300, prompt=prompt)
    for isa in ISAS:
        assert sample_one(logits, SamplingState(params, prompt, vocab=vocab), isa) == expected


def test_greedy_takes_the_lowest_of_equal_tokens() -> None:
    state = state_of(SamplingParams(temperature=0.0), 4)
    assert sample_one([1.0, 3.0, 3.0, 2.0], state) == 1
    assert sample_one([-0.0, 0.0, 0.0, -1.0], state) == 0


@pytest.mark.parametrize("top_k", [0, 8])
@pytest.mark.parametrize(("top_p", "kept"), [(0.25, 2), (0.25 + 1e-13, 3), (0.875, 7), (1e-300, 1)])
def test_top_p_keeps_the_shortest_prefix_that_holds_it(top_k: int, top_p: float, kept: int) -> None:
    equal = [8, 9, 18, 19, 28, 29, 38, 39]
    logits = np.full(48, -np.inf)
    logits[equal] = 0.7
    state = state_of(SamplingParams(top_p=top_p, top_k=top_k, temperature=2.0), 48)
    assert {sample_one(logits, state, positions=[p]) for p in range(100)} == set(equal[:kept])


def test_order_of_penalties() -> None:
    # Repetition divides what is positive and multiplies what is negative; the others count the output only.
    logits = np.array([4.0, -1.0, 3.1, 2.9], dtype=np.float32)
    greedy = {"temperature": 0.0}
    assert sample_one(logits, state_of(SamplingParams(**greedy, repetition_penalty=2.0), 4, prompt=[0, 1])) == 2
    assert sample_one(logits, state_of(SamplingParams(**greedy, presence_penalty=2.0), 4, prompt=[0])) == 0
    state = state_of(SamplingParams(**greedy, frequency_penalty=0.5), 4, prompt=[])
    chosen = []
    for _ in range(5):
        chosen.append(sample_one(logits, state))
        state.append(chosen[-1])
    assert chosen == [0, 0, 2, 0, 3]  # 4.0, 3.5, 3.1 (0 fell to 3.0), 3.0, 2.9


def test_min_tokens_masks_stop_tokens_until_enough_are_generated() -> None:
    params = SamplingParams(temperature=0.0, min_tokens=2, stop_token_ids=[0])
    state = state_of(params, 3, prompt=[2, 2], eos_token_ids=[1])
    logits = [5.0, 4.0, 3.0]
    for expected in (2, 2, 0):
        assert sample_one(logits, state) == expected
        state.append(expected)


def test_ignored_eos_is_an_ordinary_token_under_min_tokens() -> None:
    params = SamplingParams(temperature=0.0, min_tokens=2, ignore_eos=True)
    assert sample_one([5.0, 4.0], state_of(params, 2, eos_token_ids=[0])) == 0


def test_masks_per_row() -> None:
    sampler = Sampler(70, 3)
    logits = np.tile(np.arange(70, dtype=np.float32), (3, 1))
    allowed = np.zeros(70, dtype=bool)
    allowed[[3, 66]] = True
    states = [state_of(SamplingParams(temperature=0.0), 70) for _ in range(3)]
    result = sampler.sample(logits, states, masks=[None, pack_mask(allowed), pack_mask(~allowed)])
    assert result.tokens.tolist() == [69, 66, 69]


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf])
@pytest.mark.parametrize("options", [{"temperature": 0.0}, {}, {"logit_bias": {1: 1.0}}])
def test_rows_that_are_not_finite_fail_alone(bad: float, options: dict[str, Any]) -> None:
    logits = np.zeros((3, 100), dtype=np.float32)
    logits[1, 77] = bad
    state = state_of(SamplingParams(**options, logprobs=1), 100)
    result = Sampler(100, 3).sample(logits, [state] * 3)
    assert result.tokens[1] == -1
    assert list(result.errors) == [1]
    assert "not finite" in result.errors[1]
    assert sorted(result.logprobs) == [0, 2]
    assert (result.tokens[[0, 2]] >= 0).all()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_without_any_allowed_token_fails(temperature: float) -> None:
    state = state_of(SamplingParams(temperature=temperature), 40)
    masks = [np.zeros(2, dtype=np.uint32)]
    result = Sampler(40, 1).sample(np.zeros((1, 40), dtype=np.float32), [state], masks=masks)
    assert result.tokens[0] == -1
    assert "masked" in result.errors[0]


@pytest.mark.parametrize("threads", [1, 3])
def test_a_row_does_not_depend_on_the_others(threads: int) -> None:
    rng = np.random.default_rng(3)
    vocab, n = 500, 24
    logits = (rng.standard_normal((n, vocab)) * 2).astype(np.float32)
    options = [
        {},
        {"top_k": 9},
        {"top_p": 0.6},
        {"temperature": 0.0},
        {"repetition_penalty": 1.5, "min_p": 0.01},
    ]
    states = [state_of(SamplingParams(**options[i % 5], logprobs=2), vocab, seed=i) for i in range(n)]
    positions = list(range(100, 100 + n))
    sampler = Sampler(vocab, n, threads=threads)
    together = sampler.sample(logits, states, positions)
    tokens, logprobs = together.tokens.tolist(), together.logprobs
    order = rng.permutation(n)
    shuffled = sampler.sample(logits[order], [states[i] for i in order], [positions[i] for i in order])
    assert shuffled.tokens.tolist() == [tokens[i] for i in order]
    for i in range(n):
        alone = Sampler(vocab, 1).sample(logits[i : i + 1], [states[i]], [positions[i]])
        assert alone.tokens[0] == tokens[i]
        assert alone.logprobs[0] == logprobs[i]


def test_seed_position_and_sample_index_choose_the_noise() -> None:
    logits = np.zeros(1000, dtype=np.float32)

    def tokens(seed: int | None, sample_index: int, position: int) -> int:
        params = SamplingParams(seed=seed)
        state = SamplingState(params, [0], vocab=1000, sample_index=sample_index)
        return sample_one(logits, state, positions=[position])

    base = [tokens(1, 0, p) for p in range(20)]
    assert base == [tokens(1, 0, p) for p in range(20)]
    assert base != [tokens(2, 0, p) for p in range(20)]
    assert base != [tokens(1, 1, p) for p in range(20)]
    assert base != [tokens(1, 0, p) for p in range(1, 21)]
    assert tokens(-(2**63), 0, 0) != tokens(0, 0, 0)  # the seed's high word counts


def test_a_seed_is_drawn_and_reported_where_none_is_given() -> None:
    states = [SamplingState(SamplingParams(seed=seed), [0], vocab=9) for seed in (None, -1)]
    assert states[0].seed != states[1].seed
    assert all(0 <= state.seed < 2**53 for state in states)
    repeated = SamplingState(SamplingParams(seed=states[0].seed), [0], vocab=9)
    logits = np.zeros(9, dtype=np.float32)
    for position in range(30):
        assert sample_one(logits, states[0], positions=[position]) == sample_one(logits, repeated, positions=[position])


def test_extreme_temperatures() -> None:
    logits = np.array([1.0, 1.0 + 1e-4, 0.0, -5.0], dtype=np.float32)
    cold = state_of(SamplingParams(temperature=1e-6), 4)
    assert {sample_one(logits, cold, positions=[p]) for p in range(50)} == {1}
    hot = state_of(SamplingParams(temperature=100.0), 4)
    assert {sample_one(logits, hot, positions=[p]) for p in range(50)} == {0, 1, 2, 3}


def test_rows_may_be_strided() -> None:
    wide = np.random.default_rng(0).standard_normal((4, 3, 50)).astype(np.float32)
    states = [state_of(SamplingParams(), 50) for _ in range(4)]
    sampler = Sampler(50, 4)
    strided = sampler.sample(wide[:, 1], states).tokens.tolist()
    assert strided == sampler.sample(np.ascontiguousarray(wide[:, 1]), states).tokens.tolist()
