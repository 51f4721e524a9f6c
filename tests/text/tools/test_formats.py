"""Which model calls tools how, what its template shows of them, and grammars that make it call."""

from __future__ import annotations

import json
from typing import Any

import pytest

from paths import SHARED
from tandem.errors import RequestError
from tandem.text.chat import check_template_kwargs, render_chat
from tandem.text.grammar import Grammar, GrammarCompiler
from tandem.text.tools.choice import after_reasoning, tool_grammar
from tandem.text.tools.formats import GEMMA, HERMES, LLAMA3, ToolFormat, check_tools, tool_format, with_tools
from tandem.text.tools.parser import AnswerParser, ReasoningState
from text.loading import real
from text.tools.test_parser import told

TEMPLATES = {path.stem: path.read_text() for path in (SHARED / "data" / "templates").glob("*.jinja")}
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "maxLength": 10}, "when": {"$ref": "#/$defs/Day"}},
                "required": ["city", "when"],
                "additionalProperties": False,
                "$defs": {"Day": {"enum": ["today", "tomorrow"]}},
            },
        },
    },
    {"type": "function", "function": {"name": "stop-all"}},
]
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Weather in Bern?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Bern"}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "1", "content": "rain"},
]


@pytest.mark.parametrize(
    ("template", "architecture", "format"),
    [
        ("Qwen-Qwen3-0.6B", "qwen3", HERMES),
        ("Qwen-Qwen2.5-7B-Instruct", "qwen2", HERMES),
        ("meta-llama-Llama-3.1-8B-Instruct", "llama", LLAMA3),
        ("google-gemma-2-2b-it", "gemma3", GEMMA),
        ("microsoft-Phi-3.5-mini-instruct", "phi3", None),
    ],
)
def test_the_format_is_the_models(template: str, architecture: str, format: ToolFormat | None) -> None:
    assert tool_format(TEMPLATES[template], architecture) == format
    assert tool_format({"default": TEMPLATES[template]}, architecture) == format


@pytest.mark.parametrize(
    "template", ["Qwen-Qwen3-0.6B", "Qwen-Qwen2.5-7B-Instruct", "meta-llama-Llama-3.1-8B-Instruct"]
)
def test_a_template_that_knows_tools_shows_them_and_calls_as_objects(template: str) -> None:
    format = tool_format(TEMPLATES[template], "llama")
    assert format is not None
    text = render_chat(
        TEMPLATES[template], with_tools(format, TALK, TOOLS), tools=TOOLS, special_tokens={"bos_token": ""}
    )
    assert '"get_weather"' in text and "Weather of a city" in text
    assert f'{{"name": "get_weather", "{format.arguments}": {{"city": "Bern"}}}}' in text
    assert text.index("Weather in Bern?") < text.index("rain")


def test_a_template_that_knows_no_tools_gets_them_as_text() -> None:
    # Gemma 3's template takes a system message, and turns that alternate.
    template = (
        "{% for m in messages if m.role != 'system' %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    )
    text = render_chat(template, with_tools(GEMMA, [*TALK, {"role": "tool", "content": "wind"}], TOOLS))
    assert text.startswith("<system>Be brief.\n\nYou have access to functions.")
    assert "Weather of a city" in text
    assert '<assistant>{"name": "get_weather", "parameters": {"city": "Bern"}}' in text
    assert text.endswith("<user>```tool_output\nrain\n```\n```tool_output\nwind\n```")
    assert with_tools(GEMMA, TALK[:2], []) == TALK[:2]
    [told_first, _] = with_tools(GEMMA, TALK[1:2], TOOLS)
    assert told_first["role"] == "system"


@pytest.mark.parametrize(
    ("tools", "says"),
    [
        ([{"type": "retrieval"}], "tool 0 must be"),
        ([{"type": "function", "function": {"name": ""}}], "tool 0 must be"),
        ([*TOOLS, TOOLS[0]], "two tools have the name 'get_weather'"),
        (
            [{"type": "function", "function": {"name": "f", "parameters": "x"}}],
            "the parameters of the tool 'f' must be",
        ),
    ],
)
def test_tools_that_cannot_be_say_why(tools: list[Any], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        check_tools(tools)


def test_calls_in_messages_that_cannot_be_say_why() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": "{"}}
    with pytest.raises(RequestError, match="message 0 calls f with arguments that are not JSON"):
        render_chat("x", [{"role": "assistant", "tool_calls": [call]}])
    with pytest.raises(RequestError, match="message 0 has a tool call that is not"):
        render_chat("x", [{"role": "assistant", "tool_calls": ["f"]}])


@pytest.mark.parametrize("kwargs", [{"messages": []}, {"tools": []}, {"add_generation_prompt": True}, [], "x"])
def test_template_arguments_that_cannot_be_are_refused(kwargs: Any) -> None:
    with pytest.raises(RequestError, match="chat_template_kwargs"):
        check_template_kwargs(kwargs)


def test_template_arguments_reach_the_template() -> None:
    kwargs = check_template_kwargs({"enable_thinking": False})
    text = render_chat(TEMPLATES["Qwen-Qwen3-0.6B"], TALK[:2], **kwargs)
    assert text.endswith("<think>\n\n</think>\n\n")
    assert check_template_kwargs(None) == {}


def accepted(grammar: Grammar, text: str) -> bool:
    """Whether a grammar takes this text, whole."""
    tokenizer = real("bundled")
    compiler = GrammarCompiler(lambda: tokenizer, vocab=tokenizer.vocab_size, eos_ids=tokenizer.eos_ids)
    matcher = compiler.compile(grammar).deep_copy()
    ids = tokenizer.encode(text, add_special=False)
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


CALL = '{{"name": "get_weather", "{}": {{"city": "Bern", "when": "today"}}}}'


@pytest.mark.parametrize("format", [HERMES, LLAMA3, GEMMA])
def test_a_required_call_is_one_that_the_parser_reads(format: ToolFormat) -> None:
    parameters = check_tools(TOOLS)
    call = CALL.format(format.arguments)
    text = f"<tool_call>\n{call}\n</tool_call>" if format is HERMES else call
    grammar = tool_grammar(format, parameters)
    assert accepted(grammar, text)
    assert accepted(
        grammar, text.replace(CALL.format(format.arguments), f'{{"name": "stop-all", "{format.arguments}": {{}}}}')
    )
    assert accepted(grammar, f"{text}\n{text}") == (format is HERMES)
    assert not accepted(tool_grammar(format, parameters, parallel=False), f"{text}\n{text}")
    assert not accepted(grammar, text.replace("today", "later"))
    assert not accepted(grammar, "No.")
    assert not accepted(tool_grammar(format, parameters, named="stop-all"), text)
    parser = AnswerParser(format, parameters)
    content, _, calls = told([*parser.push(text), *parser.finish()])
    assert (content, [(name, json.loads(arguments)) for name, arguments in calls]) == (
        "",
        [("get_weather", {"city": "Bern", "when": "today"})],
    )


@pytest.mark.parametrize(
    ("state", "text", "good"),
    [
        ("may", '<think>\nHm </no>.\n</think>\n\n{"a": 1}', True),
        ("may", '{"a": 1}', True),
        ("may", "<think>\nHm.\n</think>\n\nNo.", False),
        ("inside", 'Hm.\n</think>\n{"a": 1}', True),
        ("inside", '{"a": 1}', False),
        ("no", '<think></think>{"a": 1}', False),
    ],
)
def test_an_answer_behind_reasoning(state: ReasoningState, text: str, good: bool) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    assert accepted(after_reasoning(Grammar.json_schema(schema), state), text) == good
    if state != "no":
        regex = after_reasoning(Grammar(kind="regex", text=r'\{"a": \d/?\}'), state)
        assert accepted(regex, text) == good
    parameters = check_tools(TOOLS)
    call = f"<tool_call>\n{CALL.format('arguments')}\n</tool_call>"
    assert accepted(tool_grammar(HERMES, parameters, reasoning=state), text.replace('{"a": 1}', call)) == good


def test_a_choice_of_no_tool_says_so() -> None:
    with pytest.raises(RequestError, match="no tool has that name"):
        tool_grammar(HERMES, check_tools(TOOLS), named="other")
    with pytest.raises(RequestError, match="there are no tools"):
        tool_grammar(HERMES, {})
