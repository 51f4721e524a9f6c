"""Parts of recorded answers, however they are cut."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.text.tools.formats import GEMMA, HERMES, LLAMA3, ToolFormat
from tandem.text.tools.parser import AnswerParser, ReasoningState, reasoning_state
from tandem.text.tools.parts import CallArguments, CallName, Content, Part, Reasoning
from text.tools.recorded import PARAMETERS, RECORDED, Recorded

# Content, reasoning, and each call's name and arguments as they were written.
Told = tuple[str, str, list[tuple[str, str]]]


def told(parts: Iterable[Part]) -> Told:
    """What a client makes of the parts; checks that they come in an order that clients understand."""
    content, reasoning = "", ""
    calls: list[tuple[str, str]] = []
    for part in parts:
        if isinstance(part, Content):
            content += part.text
        elif isinstance(part, Reasoning):
            assert not content and not calls
            reasoning += part.text
        elif isinstance(part, CallName):
            assert part.index == len(calls)
            calls.append((part.name, ""))
        else:
            assert isinstance(part, CallArguments) and part.index == len(calls) - 1
            calls[-1] = (calls[-1][0], calls[-1][1] + part.text)
        assert not isinstance(part, Content | Reasoning | CallArguments) or part.text
    return content, reasoning, calls


def parse(pieces: Iterable[str], format: ToolFormat, state: ReasoningState = "no", *, parallel: bool = True) -> Told:
    parser = AnswerParser(format, PARAMETERS, reasoning=state, parallel=parallel)
    parts = [part for piece in pieces for part in parser.push(piece)]
    return told([*parts, *parser.finish()])


def cut(text: str, draw: random.Random) -> list[str]:
    at = sorted(draw.choices(range(len(text) + 1), k=draw.randint(0, 12)))
    return [text[i:j] for i, j in zip([0, *at], [*at, len(text)], strict=True)]


@pytest.mark.parametrize("recorded", RECORDED.values(), ids=RECORDED)
def test_recorded_answers(recorded: Recorded) -> None:
    content, reasoning, calls = parse([recorded.text], recorded.format, recorded.state)
    assert (content, reasoning) == (recorded.content, recorded.reasoning)
    assert [(name, json.loads(arguments)) for name, arguments in calls] == list(recorded.calls)


@pytest.mark.parametrize("recorded", RECORDED.values(), ids=RECORDED)
def test_any_cut_tells_the_same(recorded: Recorded) -> None:
    whole = parse([recorded.text], recorded.format, recorded.state)
    assert parse(recorded.text, recorded.format, recorded.state) == whole
    draw = random.Random(1)
    for _ in range(40):
        assert parse(cut(recorded.text, draw), recorded.format, recorded.state) == whole


PIECES = (
    *(
        "<tool_call>",
        "</tool_call>",
        "<think>",
        "</think>",
        "<|python_tag|>",
        "```tool_code",
        "```json",
        "```",
        "\n",
        " ",
    ),
    *(
        '{"name": "get_weather", ',
        '"arguments": ',
        '"parameters": ',
        '{"city": "B"}',
        "}",
        "{",
        "[",
        "]",
        '"',
        "\\",
        ";",
        ",",
    ),
    *("get_weather(", "city='x')", "get_weather", "1", "text", "<", "ü", "null", ":", "<too"),
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(PIECES), max_size=14).map("".join),
    st.sampled_from([HERMES, LLAMA3, GEMMA]),
    st.sampled_from(["no", "may", "inside"]),
    st.randoms(use_true_random=False),
)
def test_any_cut_of_any_text_tells_the_same(
    text: str, format: ToolFormat, state: ReasoningState, draw: random.Random
) -> None:
    whole = parse([text], format, state)
    assert parse(text, format, state) == whole
    assert parse(cut(text, draw), format, state) == whole


@pytest.mark.parametrize(
    "name", ["qwen, two calls", "llama 3.1, two", "llama 3.2, a list", "gemma, positional arguments"]
)
def test_calls_beyond_the_first_are_dropped_where_only_one_may_be(name: str) -> None:
    recorded = RECORDED[name]
    for pieces in ([recorded.text], recorded.text):
        content, _, calls = parse(pieces, recorded.format, parallel=False)
        assert content == ""
        assert [(name, json.loads(arguments)) for name, arguments in calls] == [recorded.calls[0]]


def test_arguments_come_as_they_are_written() -> None:
    parser = AnswerParser(HERMES, PARAMETERS)
    assert parser.push('<tool_call>\n{"name": "get_weather", "arguments"') == []
    assert parser.push(': {"ci') == [CallName(0, "get_weather"), CallArguments(0, '{"ci')]
    assert parser.push('ty": "B') == [CallArguments(0, 'ty": "B')]
    assert parser.push('"}}\n</tool') == [CallArguments(0, '"}')]
    assert parser.push("_call>\n") == []
    assert parser.finish() == []
    assert parser.calls == 1


def test_text_comes_at_once_where_nothing_can_follow_from_it() -> None:
    parser = AnswerParser(LLAMA3, PARAMETERS)
    assert parser.push("Hel") == [Content("Hel")]
    assert parser.push("lo ") == [Content("lo")]
    assert parser.push("you") == [Content(" you")]
    plain = AnswerParser()
    assert plain.push(" <tool_call>\n") == [Content(" <tool_call>\n")]


def test_a_call_that_breaks_off_keeps_what_was_told() -> None:
    content, _, calls = parse(['<tool_call>{"name": "get_weather", "arguments": {"city": "B'], HERMES)
    assert (content, calls) == ("", [("get_weather", '{"city": "B')])
    assert parse(['<tool_call>{"name": "get_wea'], HERMES) == ('<tool_call>{"name": "get_wea', "", [])


@pytest.mark.parametrize(
    ("template", "prompt", "state"),
    [
        ("{% if enable_thinking %}</think>", "<|im_start|>assistant\n", "may"),
        ("{% if enable_thinking %}</think>", "assistant\n<think>\n\n</think>\n\n", "no"),
        ("…</think>…", "assistant\n<think>\n", "inside"),
        ("{{ messages }}", "assistant\n", "no"),
        (None, "assistant\n", "no"),
    ],
)
def test_where_reasoning_is(template: str | None, prompt: str, state: str) -> None:
    assert reasoning_state(template, prompt) == state
