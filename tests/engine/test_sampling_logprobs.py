"""Log-probabilities of sampled tokens and of prompts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import sampling_model as model
from tandem.engine.request import TokenLogprobs
from tandem.engine.sampling import Sampler, SamplingState
from tandem.engine.sampling_params import SamplingParams


def expected(logits: np.ndarray, token: int, top: int) -> TokenLogprobs:
    logprobs = model.log_softmax(logits)
    order = model.in_order(logits)
    return TokenLogprobs(
        token=token,
        logprob=float(logprobs[token]),
        rank=1 + int(np.flatnonzero(order == token)[0]),
        top_ids=order[:top].tolist(),
        top_logprobs=logprobs[order[:top]].tolist(),
    )


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([1, 5, 64, 65, 300, 3000]),
    st.integers(0, 2**32),
    st.sampled_from([0.0, 1.0, 8.0]),
    st.booleans(),
    st.integers(0, 20),
)
def test_equal_the_specification(vocab: int, seed: int, spread: float, ties: bool, top: int) -> None:
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal((3, vocab)) * spread).astype(np.float32)
    if ties:
        logits = np.rint(logits) + np.float32(0.0)
    # Penalties and filters change the token, never what is reported of it.
    params = SamplingParams(seed=1, logprobs=top, repetition_penalty=3.0, top_k=7, logit_bias={0: 3.0})
    sampler = Sampler(vocab, 3)
    states = [SamplingState(params, [vocab - 1], vocab=vocab, sample_index=i) for i in range(3)]
    result = sampler.sample(logits, states)
    for row in range(3):
        assert result.logprobs[row] == expected(logits[row], int(result.tokens[row]), top)
    targets = rng.integers(0, vocab, 3)
    assert sampler.prompt_logprobs(logits, targets.tolist(), top) == [
        expected(logits[row], int(targets[row]), top) for row in range(3)
    ]


def test_agree_with_float64() -> None:
    rng = np.random.default_rng(2)
    logits = (rng.standard_normal((2, 262_144)) * 3).astype(np.float32)
    exact = logits.astype(np.float64)
    exact -= np.log(np.exp(exact).sum(axis=1, keepdims=True))
    tokens = [int(logits[0].argmax()), 17]
    for row, record in enumerate(Sampler(262_144, 2).prompt_logprobs(logits, tokens, 20)):
        assert record is not None
        assert record.logprob == pytest.approx(exact[row, tokens[row]], abs=2e-6)
        np.testing.assert_allclose(record.top_logprobs, -np.sort(-exact[row])[:20], atol=2e-6)


def test_only_rows_that_asked_have_them() -> None:
    states = [SamplingState(SamplingParams(logprobs=n), [0], vocab=8) for n in (None, 0, 3)]
    result = Sampler(8, 3).sample(np.zeros((3, 8), dtype=np.float32), states)
    assert sorted(result.logprobs) == [1, 2]
    assert result.logprobs[1].top_ids == []
    assert result.logprobs[2].top_ids == [0, 1, 2]
    assert result.logprobs[2].logprob == pytest.approx(-np.log(8), abs=1e-6)


def test_a_masked_token_has_no_probability() -> None:
    logits = np.array([[0.0, -np.inf, 0.0]], dtype=np.float32)
    (record,) = Sampler(3, 1).prompt_logprobs(logits, [1], 3)
    assert record is not None
    assert record.logprob == -np.inf
    assert (record.rank, record.top_ids) == (3, [0, 2, 1])


def test_prompt_rows_that_are_not_finite_have_none() -> None:
    logits = np.zeros((2, 4), dtype=np.float32)
    logits[0, 1] = np.nan
    records = Sampler(4, 2).prompt_logprobs(logits, [1, 1], 0)
    assert records[0] is None
    assert records[1] is not None
