"""What an answer may be and what is found in it: grammars, tools and reasoning of one chat request."""

from __future__ import annotations

import asyncio
import secrets
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tandem.errors import RequestError
from tandem.server.call import Encoded
from tandem.server.errors import bad_request
from tandem.server.fields import Object, ResponseFormat
from tandem.server.model import ServedModel
from tandem.text.chat import check_template_kwargs
from tandem.text.grammar import Grammar
from tandem.text.tools.choice import after_reasoning, tool_grammar
from tandem.text.tools.formats import ToolFormat, check_tools, tool_format, with_tools
from tandem.text.tools.parser import AnswerParser, ReasoningState, reasoning_state
from tandem.text.tools.parts import CallArguments, CallName, Content, Part, Reasoning


class FunctionName(msgspec.Struct):
    name: Annotated[str, Meta(min_length=1)]


class NamedTool(msgspec.Struct):
    function: FunctionName
    type: Literal["function"] = "function"


ToolChoice = Literal["none", "auto", "required"] | NamedTool


class FunctionCall(msgspec.Struct):
    """arguments: a JSON object, as a text."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct):
    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class Answer(msgspec.Struct):
    """An answer taken apart. content is None for an answer of calls alone."""

    content: str | None
    reasoning: str | None
    calls: list[ToolCall]


class AnswerPlan:
    """One request's: its prompt, the grammar that its answers follow, and parsers for them."""

    def __init__(
        self,
        prompt: Encoded,
        grammar: Grammar | None,
        format: ToolFormat | None,
        parameters: dict[str, Object],
        reasoning: ReasoningState,
        parallel: bool,
    ) -> None:
        self.prompt = prompt
        self.grammar = grammar
        # Whether answers are content from end to end.
        self.plain = not parameters and reasoning == "no"
        self._parser = (format, parameters)
        self._reasoning: ReasoningState = reasoning
        self._parallel = parallel

    def parser(self) -> AnswerParser:
        return AnswerParser(*self._parser, reasoning=self._reasoning, parallel=self._parallel)

    def parse(self, text: str) -> Answer:
        """A whole answer."""
        if self.plain:
            return Answer(text, None, [])
        parser = self.parser()
        content, reasoning, calls = "", "", list[ToolCall]()
        for part in [*parser.push(text), *parser.finish()]:
            if isinstance(part, Content):
                content += part.text
            elif isinstance(part, Reasoning):
                reasoning += part.text
            elif isinstance(part, CallName):
                calls.append(ToolCall(call_id(), FunctionCall(part.name, "")))
            else:
                calls[part.index].function.arguments += part.text
        return Answer(content if content or not calls else None, reasoning or None, calls)


def call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def delta(part: Part) -> Object:
    """A part of an answer as a chat chunk's delta."""
    if isinstance(part, Content):
        return {"content": part.text}
    if isinstance(part, Reasoning):
        return {"reasoning_content": part.text}
    if isinstance(part, CallArguments):
        return {"tool_calls": [{"index": part.index, "function": {"arguments": part.text}}]}
    function = {"name": part.name, "arguments": ""}
    return {"tool_calls": [{"index": part.index, "id": call_id(), "type": "function", "function": function}]}


async def plan_answer(
    model: ServedModel,
    messages: list[Object],
    *,
    tools: list[Object] | None = None,
    tool_choice: ToolChoice | None = None,
    parallel: bool = True,
    response_format: ResponseFormat | None = None,
    variables: Object | None = None,
) -> AnswerPlan:
    """Renders a conversation, with tools if there are any. variables: of the chat template. Raises ApiError."""
    shown = tools if tools and tool_choice != "none" else []
    where = "tools"
    try:
        parameters = {name: dict(schema) for name, schema in check_tools(shown).items()}
        templates = model.tokenizer.chat_templates
        format = tool_format(templates, model.architecture) if shown else None
        if shown and format is None:
            raise RequestError(f"it is not known how {model.name} calls tools; leave tools out or take another model")
        where = "chat_template_kwargs"
        variables = check_template_kwargs(variables)
        where = "messages"
        if format is not None:
            messages = [dict(message) for message in with_tools(format, messages, shown)]
        in_template = shown if format is not None and format.in_template else None
        prompt = await asyncio.to_thread(model.prompts.render, messages, tools=in_template, **variables)
        reasoning = reasoning_state(templates, prompt[0])
        where = "response_format"
        grammar = None if response_format is None else response_format.grammar()
        if grammar is not None:
            grammar = after_reasoning(grammar, reasoning)
        where = "tool_choice"
        if tool_choice == "required" or isinstance(tool_choice, NamedTool):
            if grammar is not None:
                raise RequestError("response_format and a tool_choice that asks for a call contradict each other")
            if format is None:
                raise RequestError("tool_choice asks for a call, and there are no tools")
            named = tool_choice.function.name if isinstance(tool_choice, NamedTool) else None
            grammar = tool_grammar(format, parameters, named=named, parallel=parallel, reasoning=reasoning)
    except RequestError as error:
        raise bad_request(error, where) from None
    return AnswerPlan(prompt, grammar, format, parameters, reasoning, parallel)
