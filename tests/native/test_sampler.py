"""The native sampler's randomness, its choice of instruction set and its refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine import sampling_model as model
from tandem import _native

# From Random123's kat_vectors, philox4x32 with 10 rounds: counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_philox_gives_the_published_vectors(counter: str, key: str, result: str) -> None:
    assert _native.philox4x32(words(counter), words(key)) == words(result)
    assert [int(word) for word in model.philox4x32(words(counter), words(key))] == words(result)


@pytest.mark.parametrize(
    ("seed", "sample_index", "position"), [(0, 0, 0), (2**64 - 1, 2**32 - 1, 2**31 - 1), (2**40, 3, 9)]
)
def test_noise_layout(seed: int, sample_index: int, position: int) -> None:
    noise = np.empty(1000, dtype=np.float64)
    _native.gumbel_noise(seed, sample_index, position, noise)
    np.testing.assert_array_equal(noise, model.gumbel(seed, sample_index, position, 1000))
    # Token 150 is word 150 / 16 % 4 = 1 of counter 16 * 2 + 150 % 16 = 38.
    block = _native.philox4x32([38, position, sample_index, 0], [seed % 2**32, seed // 2**32])
    u = (block[1] + 0.5) / 2**32
    assert noise[150] == pytest.approx(-np.log(-np.log(u)), rel=1e-13)


def test_noise_is_a_gumbel_distribution() -> None:
    noise = np.empty(200_000, dtype=np.float64)
    _native.gumbel_noise(99, 0, 0, noise)
    assert noise.min() > -3.14
    assert noise.max() < 22.88
    assert noise.mean() == pytest.approx(np.euler_gamma, abs=0.01)
    assert noise.var() == pytest.approx(np.pi**2 / 6, rel=0.02)
    uniform = np.sort(np.exp(-np.exp(-noise)))
    assert np.abs(uniform - (np.arange(200_000) + 0.5) / 200_000).max() < 2 / np.sqrt(200_000)  # Kolmogorov-Smirnov


def sequence(vocab: int = 10, **changes: Any) -> _native.SamplerSequence:
    options: dict[str, Any] = {
        "vocab": vocab, "seed": 0, "sample_index": 0, "temperature": 1.0, "top_k": 0, "top_p": 1.0,
        "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "min_position": 0,
        "logprobs": -1, "logit_bias": [], "stop_tokens": [], "prompt": np.zeros(0, np.int32), "capacity": 0,
    }  # fmt: skip
    return _native.SamplerSequence(**options | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"logit_bias": [(10, 1.0)]},
        {"stop_tokens": [-1]},
        {"prompt": np.array([3, 10], np.int32), "presence_penalty": 1.0},
        {"logprobs": 21},
    ],
)
def test_sequences_refuse_what_they_cannot_hold(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        sequence(**changes)
    with pytest.raises(ValueError):
        sequence().append(10)


def test_counts_grow_beyond_their_planned_capacity() -> None:
    vocab = 5000
    counted = sequence(vocab, temperature=0.0, presence_penalty=1.0, capacity=1)
    sampler = _native.Sampler(vocab, 1)
    logits = np.zeros((1, vocab), dtype=np.float32)
    for expected in range(300):  # each token once, since the one before is penalized
        sampler.sample(logits, [counted], np.zeros(1, np.int32), [])
        assert sampler.tokens[0, 0] == expected
        counted.append(expected)


def test_calls_that_do_not_fit_are_refused() -> None:
    sampler = _native.Sampler(10, 2)
    logits = np.zeros((3, 10), dtype=np.float32)
    positions = np.zeros(2, np.int32)
    two = [sequence(), sequence()]
    mask = np.zeros(1, np.uint32)
    sampler.sample(logits, two, positions, [None, ~mask])
    for arguments in (
        (logits[:1], two, positions, []),
        (logits, [*two, two[0]], np.zeros(3, np.int32), []),
        (logits, two, positions[:1], []),
        (logits[:, :9], two, positions, []),
        (np.zeros((2, 20), np.float32)[:, ::2], two, positions, []),
        (logits, two, positions, [None]),
        (logits, two, positions, [None, mask[:0]]),
        (logits, [sequence(11), sequence(11)], positions, []),
    ):
        with pytest.raises(ValueError):
            sampler.sample(*arguments)
    for arguments in (
        (logits, [1, 2], positions, []),
        (logits.astype(np.float64), two, positions, []),
        (logits, two, positions, [None, mask.view(np.int32)]),
    ):
        with pytest.raises(TypeError):
            sampler.sample(*arguments)
    for targets, top in (([10], 0), ([-1], 0), ([0], 21), ([0, 0, 0], 0)):
        with pytest.raises(ValueError):
            sampler.score(logits, np.array(targets, np.int32), top)
    with pytest.raises(ValueError):
        _native.Sampler(10, 2, isa="sse9")
    with pytest.raises(ValueError):
        _native.Sampler(0, 2)


def test_results_outlive_the_sampler() -> None:
    sampler = _native.Sampler(10, 2)
    tokens = sampler.tokens
    logits = np.zeros((2, 10), dtype=np.float32)
    logits[:, 4] = 90.0
    sampler.sample(logits, [sequence(), sequence()], np.zeros(2, np.int32), [])
    del sampler
    assert tokens.tolist() == [[4], [4]]


@pytest.mark.parametrize(("vocab", "rows", "threads"), [(1, 1, 1), (1000, 7, 2), (30_001, 64, 3), (5000, 2, 8)])
def test_its_memory_is_known_beforehand(vocab: int, rows: int, threads: int) -> None:
    assert _native.Sampler(vocab, rows, threads).bytes == _native.sampler_bytes(vocab, rows, threads)
