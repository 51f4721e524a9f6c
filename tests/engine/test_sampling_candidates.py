"""Sampling from candidates: the tokens and log-probabilities of the whole rows, and few whole rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.candidates_model import answer, buffers_for
from engine.rig import Rig
from engine.test_sampling import Logits, pack_mask, rows_of_logits, sampling_params
from tandem.devices.candidates import candidate_shapes
from tandem.engine.sampling import Sampled, Sampler, SamplingState
from tandem.engine.sampling_params import SamplingParams


class Device:
    """Answers from logits that the sampler gets to see only where it fetches them."""

    def __init__(self, logits: Logits) -> None:
        self.logits = logits
        self.buffers = buffers_for(len(logits), len(logits), logits.shape[1])
        self.fetched: list[int] = []

    def sample(self, states: list[SamplingState], masks: Any = None, sampler: Sampler | None = None) -> Sampled:
        sampler = sampler or Sampler(self.logits.shape[1], len(self.logits))
        sampler.ask(self.buffers, states, len(self.logits), masks)
        answer(self.logits, self.buffers)
        return sampler.sample_candidates(self.buffers, states, self._fetch, masks)

    def _fetch(self, rows: list[int]) -> Logits:
        self.fetched += rows
        hidden = np.full_like(self.logits, np.nan)
        hidden[rows] = self.logits[rows]
        return hidden


def states_for(params: SamplingParams, vocab: int, count: int = 1, **rest: Any) -> list[SamplingState]:
    return [SamplingState(params, [0], vocab=vocab, seed=7, sample_index=i, **rest) for i in range(count)]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_give_what_the_whole_row_gives(data: st.DataObject) -> None:
    logits = data.draw(rows_of_logits())
    vocab = len(logits)
    params = data.draw(sampling_params(vocab))
    top = data.draw(st.sampled_from([None, 0, 5, 20]))
    params = SamplingParams(**{name: getattr(params, name) for name in params.__struct_fields__} | {"logprobs": top})
    tokens = st.lists(st.integers(0, vocab - 1), max_size=8)
    prompt, output, eos = data.draw(tokens), data.draw(tokens), data.draw(tokens)
    masks = None
    if data.draw(st.booleans()):
        masks = [pack_mask(np.random.default_rng(data.draw(st.integers(0, 2**32))).random(vocab) < 0.4)]
    state = SamplingState(params, prompt, vocab=vocab, eos_token_ids=eos, sample_index=3)
    for token in output:
        state.append(token)
    whole = Sampler(vocab, 1).sample(logits[None], [state], masks=masks)
    device = Device(logits[None])
    picked = device.sample([state], masks)
    assert picked.tokens.tolist() == whole.tokens.tolist()
    assert picked.errors == whole.errors
    assert picked.logprobs == whole.logprobs


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({"temperature": 0.0}, 0),
        ({"temperature": 0.0, "logprobs": 20}, 0),
        ({"temperature": 0.0, "repetition_penalty": 1.3, "frequency_penalty": 0.2, "logit_bias": {5: 2.0}}, 0),
        ({"temperature": 0.7, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "logprobs": 3}, 0),
        ({"top_k": 64}, 0),
        ({"top_k": 65}, 40),
        ({}, 0),
        ({"logprobs": 0}, 40),
        ({"temperature": 0.0, "logprobs": 2, "presence_penalty": 1.0}, 40),
        # The mass of the candidates proves that they hold what top-p keeps; and what min-p keeps.
        ({"top_p": 0.9, "temperature": 0.3}, 0),
        ({"min_p": 0.2}, 0),
        # Noise among all tokens finds one of those that top-p keeps, though they are many.
        ({"top_p": 0.9, "temperature": 50.0}, 0),
        ({"top_p": 0.8, "temperature": 3.0, "logit_bias": {7: 9.0}}, 0),
        # Nothing proves it here: nearly equal logits.
        ({"top_p": 0.5, "temperature": 50.0}, 40),
        ({"min_p": 0.2, "temperature": 50.0}, 40),
    ],
)
def test_whole_rows_come_only_where_candidates_do_not_suffice(options: dict[str, Any], most: int) -> None:
    vocab, count = 5000, 40
    logits = (np.random.default_rng(4).standard_normal((count, vocab)) * 6).astype(np.float32)
    states = states_for(SamplingParams(**options), vocab, count)
    device = Device(logits)
    picked = device.sample(states)
    tokens, logprobs = picked.tokens.tolist(), picked.logprobs
    whole = Sampler(vocab, count).sample(logits, states)
    assert (tokens, logprobs) == (whole.tokens.tolist(), whole.logprobs)
    assert len(device.fetched) == most


def test_noise_that_no_other_token_can_reach_proves_a_choice() -> None:
    """One token far ahead: top-p keeps it and a plateau of others, but no noise lifts those so high."""
    logits = np.full((1, 3000), -30.0, np.float32)
    logits[0, 1234] = 0.0
    device = Device(logits)
    picked = device.sample(states_for(SamplingParams(top_p=1 - 1e-15), 3000))
    assert picked.tokens.tolist() == [1234]
    assert device.fetched == []


def test_rows_without_room_come_whole() -> None:
    vocab = 4096
    capacity = candidate_shapes(2, 1, vocab)["adjustments"][0]
    logits = np.random.default_rng(0).standard_normal((2, vocab)).astype(np.float32)
    params = SamplingParams(temperature=0.0, presence_penalty=0.5, repetition_penalty=2.0)
    states = [SamplingState(params, range(capacity - 1), vocab=vocab), SamplingState(params, [7, 8], vocab=vocab)]
    device = Device(logits)
    device.buffers = buffers_for(2, 1, vocab)
    picked = device.sample(states, [pack_mask(np.arange(vocab) < 50), pack_mask(np.arange(vocab) >= 50)])
    assert device.buffers.asks[:, 0].tolist() == [1, 0]
    assert device.fetched == [1]
    expected = Sampler(vocab, 2).sample(
        logits, states, masks=[pack_mask(np.arange(vocab) < 50), pack_mask(np.arange(vocab) >= 50)]
    )
    assert picked.tokens.tolist() == expected.tokens.tolist()


def test_rows_that_are_not_finite_fail_alone() -> None:
    logits = np.zeros((4, 100), np.float32)
    logits[1, 7] = np.nan
    logits[2, :] = -np.inf
    picked = Device(logits).sample(states_for(SamplingParams(temperature=0.0), 100, 4))
    assert picked.tokens.tolist() == [0, -1, -1, 0]
    assert "not finite" in picked.errors[1] and "masked" in picked.errors[2]
    assert sorted(picked.errors) == [1, 2]


def test_an_engine_gives_the_same_from_candidates() -> None:
    """Greedy, sampled, penalized, scored and forked requests together, on a device that hides its logits."""
    params = [
        SamplingParams(temperature=0.0, max_tokens=9),
        SamplingParams(temperature=0.8, top_k=20, top_p=0.9, logprobs=2, max_tokens=9, n=2, seed=3),
        SamplingParams(temperature=0.0, repetition_penalty=1.4, logit_bias={3: 4.0}, min_tokens=5, max_tokens=9),
        SamplingParams(temperature=0.0, prompt_logprobs=1, logprobs=1, max_tokens=4),
        SamplingParams(top_p=0.5, max_tokens=9, seed=1),
        SamplingParams(max_tokens=9, seed=2),
    ]
    results = []
    for candidates in (0, 64):
        rig = Rig(vocab=300, candidates=candidates)
        for i, each in enumerate(params):
            rig.submit([1 + i, 2, 3, 4, 5], each)
        rig.run()
        results.append(rig.results)
    assert results[0] == results[1]
    assert all(sample.error is None for samples in results[0].values() for sample in samples.values())
    counters = rig.engine.counters
    scored = 4
    assert scored == counters.whole_rows < counters.sampled


def test_an_engine_of_greedy_requests_sees_no_row() -> None:
    rig = Rig(vocab=300, candidates=64)
    for i in range(6):
        rig.submit([1 + i, 2, 3], SamplingParams(temperature=0.0, max_tokens=8, logprobs=3 if i % 2 else None))
    rig.run()
    assert rig.engine.counters.whole_rows == 0
    assert rig.engine.counters.sampled == 48


def test_every_sample_of_a_prompt_has_a_slot_of_its_own() -> None:
    rig = Rig(vocab=300, candidates=64)
    rig.submit([1, 2, 3], SamplingParams(n=3, temperature=0.0, max_tokens=3))
    rig.submit([4, 5], SamplingParams(temperature=0.0, max_tokens=3))
    rig.step()
    batch = rig.engine._steps[0].builder._batch
    assert batch.samples[: batch.n_samples, 0].tolist() == [2, 2, 2, 4]
    assert sorted(batch.samples[: batch.n_samples, 1].tolist()) == [0, 1, 2, 3]
    rig.run()
