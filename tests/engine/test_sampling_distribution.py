"""Sampled frequencies against the probabilities that the parameters define, by chi-square over many seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tandem.engine.sampling import Sampler, SamplingState
from tandem.engine.sampling_params import SamplingParams

LOGITS = np.log(np.array([0.02, 0.3, 0.05, 0.25, 0.08, 0.3], dtype=np.float32))
VOCAB = len(LOGITS)
POSITIONS = 200


def draws(params: SamplingParams, seeds: int, sample_index: int = 0) -> npt.NDArray[np.int32]:
    """Tokens [seeds, POSITIONS]."""
    sampler = Sampler(VOCAB, POSITIONS)
    logits = np.tile(LOGITS, (POSITIONS, 1))
    tokens = []
    for seed in range(seeds):
        state = SamplingState(params, [0], vocab=VOCAB, seed=seed, sample_index=sample_index)
        tokens.append(sampler.sample(logits, [state] * POSITIONS, range(POSITIONS)).tokens.copy())
    return np.array(tokens)


def assert_fits(counts: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float64]) -> None:
    """Chi-square within four standard deviations (Wilson and Hilferty), and nothing impossible drawn."""
    assert not counts[probabilities == 0].any()
    counts, probabilities = counts[probabilities > 0], probabilities[probabilities > 0]
    expected = probabilities * counts.sum()
    df = len(counts) - 1
    limit = df * (1 - 2 / (9 * df) + 4 * np.sqrt(2 / (9 * df))) ** 3
    assert ((counts - expected) ** 2 / expected).sum() < limit


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"temperature": 0.5}, [0, 1, 2, 3, 4, 5]),
        ({"temperature": 3.0}, [0, 1, 2, 3, 4, 5]),
        ({"top_k": 2}, [1, 5]),
        ({"top_p": 0.84}, [1, 3, 5]),
        ({"top_p": 0.86}, [1, 3, 4, 5]),
        ({"min_p": 0.25}, [1, 3, 4, 5]),
        ({"top_k": 3, "top_p": 0.8, "temperature": 0.7}, [1, 3, 5]),
    ],
)
def test_frequencies(options: dict[str, Any], kept: list[int]) -> None:
    tokens = draws(SamplingParams(**options), seeds=100)
    probabilities = np.zeros(VOCAB)
    probabilities[kept] = np.exp(LOGITS[kept].astype(np.float64) / options.get("temperature", 1.0))
    assert_fits(np.bincount(tokens.ravel(), minlength=VOCAB), probabilities / probabilities.sum())


def test_neighbouring_positions_and_samples_are_independent() -> None:
    first, second = (draws(SamplingParams(), seeds=100, sample_index=i) for i in range(2))
    probabilities = np.exp(LOGITS.astype(np.float64))
    joint = np.outer(probabilities, probabilities).ravel() / probabilities.sum() ** 2
    for a, b in ((first[:, ::2], first[:, 1::2]), (first[::2], first[1::2]), (first, second)):
        assert_fits(np.bincount((a * VOCAB + b).ravel(), minlength=VOCAB**2), joint)


def test_every_token_of_a_flat_large_vocabulary_is_reached_alike() -> None:
    vocab, rows = 20_000, 200
    sampler = Sampler(vocab, rows)
    logits = np.zeros((rows, vocab), dtype=np.float32)
    tokens = [
        sampler.sample(
            logits, [SamplingState(SamplingParams(seed=seed), [0], vocab=vocab)] * rows, range(rows)
        ).tokens.copy()
        for seed in range(25)
    ]
    assert_fits(np.bincount(np.ravel(tokens) * 64 // vocab, minlength=64), np.full(64, 1 / 64))
    assert_fits(np.bincount(np.ravel(tokens) % 64, minlength=64), np.bincount(np.arange(vocab) % 64) / vocab)
