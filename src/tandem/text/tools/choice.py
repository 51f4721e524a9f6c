"""Grammars of answers that must call a tool, and of answers that begin with reasoning."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from tandem.errors import RequestError
from tandem.text.grammar import JSON_OPTIONS, Grammar
from tandem.text.tools.formats import HERMES, ToolFormat
from tandem.text.tools.parser import THINK, ReasoningState

# Calls that one answer may be made to hold.
_MOST_CALLS = 16


def tool_grammar(
    format: ToolFormat,
    parameters: Mapping[str, Mapping[str, Any]],
    *,
    named: str | None = None,
    parallel: bool = True,
    reasoning: ReasoningState = "no",
) -> Grammar:
    """Of an answer that is a call of a tool and nothing else, its arguments as the tool's schema has them.

    parameters: as `check_tools` gives them. named: the tool to call; None: any. parallel: whether several calls may
    follow each other, where the format has a way to write them. Raises RequestError for a name that no tool has.
    """
    if named is not None and named not in parameters:
        raise RequestError(f"tool_choice names {named!r}, and no tool has that name")
    chosen = list(parameters) if named is None else [named]
    if not chosen:
        raise RequestError("tool_choice asks for a call, and there are no tools")
    before, after = ("<tool_call>\n", "\n</tool_call>") if format is HERMES else ("", "")
    rules = []
    for number, name in enumerate(chosen):
        opening = _quoted(f'{before}{{"name": {json.dumps(name)}, "{format.arguments}": ')
        closing = _quoted("}" + after)
        rules += [f"call{number}: {opening} arguments{number} {closing}"]
        rules += [f"arguments{number}: {_json({'type': 'object', **parameters[name]})}"]
    one = " | ".join(f"call{number}" for number in range(len(chosen)))
    many = f' ("\\n" call){{0,{_MOST_CALLS - 1}}}' if parallel and format is HERMES else ""
    return _lark([f"answer: call{many}", f"call: {one}", *rules], reasoning)


def after_reasoning(grammar: Grammar, reasoning: ReasoningState) -> Grammar:
    """A grammar for the answer behind the model's reasoning. One in Lark is left as it is: it is the whole text's."""
    if reasoning == "no" or grammar.kind == "lark":
        return grammar
    if grammar.kind == "regex":
        from llguidance._lib import regex_to_lark

        return _lark([f"answer: /{regex_to_lark(grammar.text, '')}/"], reasoning)
    grammar.source()  # a schema that is no JSON says so
    schema = json.loads(grammar.text) if grammar.text else {"type": "object"}
    return _lark([f"answer: {_json(schema)}"], reasoning)


def _lark(rules: Iterable[str], reasoning: ReasoningState) -> Grammar:
    thought = [r"thought[lazy]: /(.|\n)*<\/think>/"]
    if reasoning == "no":
        start = ["start: answer"]
    elif reasoning == "inside":
        start = [r"start: thought /\n{0,2}/ answer", *thought]
    else:
        start = [rf"start: ({_quoted(THINK)} thought /\n{{0,2}}/)? answer", *thought]
    return Grammar(kind="lark", text="\n".join([*start, *rules]))


def _json(schema: object) -> str:
    if isinstance(schema, dict):
        schema = {"x-guidance": JSON_OPTIONS, **schema}
    return f"%json {json.dumps(schema)}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
