"""Arguments of the wrong type, or far too large, are said in one sentence and harm nobody else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from paths import SHARED
from tandem.engine.sampling_params import SamplingParams
from tandem.errors import DeviceError, MemoryPlanError, ModelFileError, RequestError, TandemError
from tandem.llm import LLM

TINY = SHARED / "data" / "models" / "TinyStories-656K"
SHORT = SamplingParams(max_tokens=3, temperature=0.0)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(max_sequences=1, threads=1, rows=16, context=64) as model:
        yield model


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([2**70], "outside the vocabulary"),
        ([-(2**40)], "outside the vocabulary"),
        (None, "not None"),
        ([1.5], r"not \[1.5\]"),
        (["a", "b"], "a text or a list of token ids"),
        (b"abc", "not b'abc'"),
    ],
)
def test_a_prompt_of_the_wrong_type_is_refused_alone(llm: LLM, prompt: Any, message: str) -> None:
    bad, good = llm.generate([prompt, "Once"], SHORT)
    assert good.error is None and good.outputs[0].text
    assert bad.error is not None
    with pytest.raises(RequestError, match=message) as refusal:
        llm.stream(prompt, SHORT)
    assert bad.error == str(refusal.value)


def test_arrays_of_token_ids_are_prompts(llm: LLM) -> None:
    expected = llm.generate([5, 6], SHORT)[0].outputs
    assert llm.generate(np.array([5, 6]), SHORT)[0].outputs == expected  # type: ignore[arg-type]
    assert llm.generate([np.array([5, 6]), "a"], SHORT)[0].outputs == expected  # type: ignore[list-item]


def test_a_priority_that_is_no_number_is_refused_alone(llm: LLM) -> None:
    bad, good = llm.generate(["a", "b"], SHORT, priority=["x", 1])  # type: ignore[list-item]
    assert bad.error == "priority must be a whole number, not 'x'"
    assert good.error is None
    assert llm.generate("Once", SHORT)[0].error is None


@pytest.mark.parametrize("prompts", [None, b"abc", 5, {"prompt": "a"}, {1, 2}])
def test_prompts_of_the_wrong_type_are_refused(llm: LLM, prompts: Any) -> None:
    with pytest.raises(RequestError, match="prompts must be a text, a list of token ids, or a list of such prompts"):
        llm.generate(prompts, SHORT)


@pytest.mark.parametrize("params", [{"max_tokens": 3}, 5, [SHORT, None]])
def test_parameters_of_the_wrong_type_are_refused(llm: LLM, params: Any) -> None:
    with pytest.raises(RequestError, match="must be SamplingParams, or a list"):
        llm.generate(["Once", "Twice"], params)
    with pytest.raises(RequestError, match="must be SamplingParams, not"):
        llm.stream("Once", params)


@pytest.mark.parametrize("messages", ["hello", b"hello", {"role": "user", "content": "hello"}, 5])
def test_messages_that_are_no_list_are_refused(llm: LLM, messages: Any) -> None:
    for use in (llm.chat, llm.render):
        with pytest.raises(RequestError, match="messages must be a list of messages, such as"):
            use(messages)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"threads": "2"}, DeviceError, "threads must be a whole number, not '2'"),
        ({"placement": 5}, DeviceError, "placement must be a device"),
        ({"model": 5}, ModelFileError, "model must be a path or a name"),
        ({"context": "5"}, MemoryPlanError, "context must be a whole number, not '5'"),
        ({"max_sequences": 1.5}, MemoryPlanError, "max_sequences must be a whole number, not 1.5"),
        ({"rows": None}, MemoryPlanError, "rows must be a whole number, not None"),
        ({"memory": 1.5}, MemoryPlanError, "memory must be a number of bytes or a text such as 8GiB"),
        ({"kv_dtype": 16}, MemoryPlanError, "kv_dtype=16"),
        ({"prefix_cache": "no"}, MemoryPlanError, "prefix_cache must be true or false"),
    ],
)
def test_constructor_arguments_of_the_wrong_type(options: Any, error: type[TandemError], message: str) -> None:
    with pytest.raises(error, match=message):
        LLM(**{"model": TINY, **options})


def test_a_text_that_cannot_fit_is_refused_at_once(llm: LLM) -> None:
    text = "Once upon a time " * 1_200_000
    started = time.perf_counter()
    with pytest.raises(RequestError, match="the context of 64"):
        llm.stream(text, SHORT)
    assert time.perf_counter() - started < 2


def test_a_context_of_two_leaves_one_token() -> None:
    with LLM(TINY, max_sequences=1, threads=1, rows=16, context=2) as model:
        [output] = model.generate([[1, 2]], SHORT)
        assert output.error is not None and "at most 1 token or" in output.error
        [output] = model.generate([[1]], SamplingParams(n=2))
        assert output.error is not None and output.error.endswith("at most 1 sequence at once")
        assert "up to 1 sequence at once" in model.memory_plan.table()
