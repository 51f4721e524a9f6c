"""Sampling parameters: vLLM's defaults, and one clear sentence for each bad value."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import pytest

from tandem.engine.sampling_params import SamplingParams
from tandem.errors import RequestError

NAN, INFINITY = float("nan"), float("inf")


def test_defaults_are_those_of_vllm() -> None:
    assert msgspec.structs.asdict(SamplingParams()) == {
        "n": 1,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "logit_bias": None,
        "seed": None,
        "stop": None,
        "stop_token_ids": None,
        "ignore_eos": False,
        "min_tokens": 0,
        "max_tokens": 16,
        "logprobs": None,
        "prompt_logprobs": None,
        "skip_special_tokens": True,
        "include_stop_str_in_output": False,
        "grammar": None,
    }


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("n", [0, -1, 1.5, 16385, True]),
        ("temperature", [-0.1, NAN, INFINITY, "hot", True, None]),
        ("top_k", [-2, 1.0, 2**31]),
        ("top_p", [0.0, -0.1, 1.01, NAN]),
        ("min_p", [-0.01, 1.01, NAN]),
        ("repetition_penalty", [0.0, -1.0, 101.0, NAN, INFINITY]),
        ("presence_penalty", [-2.1, 2.1, NAN]),
        ("frequency_penalty", [-2.1, 2.1, NAN]),
        ("logit_bias", [{1: 101.0}, {1: NAN}, {-1: 0.0}, {"a": 1.0}, [1]]),
        ("seed", [2**63, -(2**63) - 1, 1.0]),
        ("stop", ["", ["a", ""], [1], 7]),
        ("stop_token_ids", [[-1], ["a"], 5]),
        ("ignore_eos", [1, None]),
        ("min_tokens", [-1, 17]),
        ("max_tokens", [0, -1, 2.0]),
        ("logprobs", [-1, 21, 1.0]),
        ("prompt_logprobs", [-1, 21]),
        ("skip_special_tokens", ["yes"]),
        ("include_stop_str_in_output", [0]),
    ],
)
def test_bad_values_get_one_sentence(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(RequestError, match=rf"^{name}.* must [^\n]*\.$"):
            SamplingParams(**{name: value})


def test_extremes_are_accepted() -> None:
    SamplingParams(
        n=16384, temperature=0, top_k=-1, top_p=1e-12, min_p=1, repetition_penalty=0.01, presence_penalty=-2,
        frequency_penalty=2, logit_bias={0: -100, 5: 100}, seed=-(2**63), stop=["a", "b"], stop_token_ids=[],
        min_tokens=5, max_tokens=None, logprobs=0, prompt_logprobs=20,
    )  # fmt: skip
    SamplingParams(temperature=1e-320)


def test_unknown_tokens_need_the_vocabulary() -> None:
    SamplingParams(logit_bias={99: 1.0}, stop_token_ids=[99]).validate(100)
    with pytest.raises(RequestError, match=r"^logit_bias names token 99, but .* from 0 to 98\.$"):
        SamplingParams(logit_bias={99: 1.0}).validate(99)
    with pytest.raises(RequestError, match=r"^stop_token_ids names token 99"):
        SamplingParams(stop_token_ids=[5, 99]).validate(99)


def test_frozen_and_serializable() -> None:
    params = SamplingParams(stop=["a"], logit_bias={3: 1.5}, temperature=0.3)
    with pytest.raises((AttributeError, dataclasses.FrozenInstanceError)):
        params.temperature = 2.0  # type: ignore[misc]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams) == params


def test_stops() -> None:
    assert SamplingParams().stop_strings == ()
    assert SamplingParams(stop="x").stop_strings == ("x",)
    assert SamplingParams(stop=["x", "y"]).stop_strings == ("x", "y")
    assert SamplingParams(stop_token_ids=[1]).stop_ids([2]) == {1, 2}
    assert SamplingParams(stop_token_ids=[1], ignore_eos=True).stop_ids([1, 2]) == {1}


@pytest.mark.parametrize("name", ["top_k", "max_tokens", "min_tokens", "stop_token_ids"])
def test_a_number_that_is_too_large_is_told_the_limit(name: str) -> None:
    value = [10**12] if name == "stop_token_ids" else 10**12
    with pytest.raises(RequestError, match=r"and at most 2147483647, not 1000000000000"):
        SamplingParams(**{name: value})  # type: ignore[arg-type]
