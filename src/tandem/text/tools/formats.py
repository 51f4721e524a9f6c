"""How models write calls of tools, and which model writes them how.

- `hermes`: `<tool_call>{"name": …, "arguments": …}</tool_call>`, any number of them (Qwen 2.5 and 3, Hermes).
- `llama3`: the whole answer is `{"name": …, "parameters": …}`, maybe after `<|python_tag|>`, several with `;` between
  (Llama 3.1); or a list `[name(argument=value), …]` (Llama 3.2 and 3.3).
- `gemma`: as the prompt asks for it: JSON as Llama's, such a list, or either in a block of `tool_code` or `json`
  (Gemma 3, which has no tokens of its own for it).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tandem.errors import RequestError

Tool = Mapping[str, Any]
Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """marks: what begins a call, and what ends it after its JSON. fences: what begins a block of calls. bare: an
    answer may begin with a call, without a mark. in_template: the chat template shows the tools to the model.
    """

    name: str
    marks: tuple[tuple[str, str], ...] = ()
    fences: tuple[str, ...] = ()
    bare: bool = False
    in_template: bool = True
    arguments: str = "parameters"


HERMES = ToolFormat("hermes", marks=(("<tool_call>", "</tool_call>"),), arguments="arguments")
LLAMA3 = ToolFormat("llama3", marks=(("<|python_tag|>", ""),), bare=True)
GEMMA = ToolFormat("gemma", fences=("```tool_code", "```json"), bare=True, in_template=False)


def tool_format(template: str | Mapping[str, str] | None, architecture: str) -> ToolFormat | None:
    """How a model writes calls, by its chat template and architecture; None where that is unknown.

    template: as for `render_chat`. architecture: `ModelSpec.architecture`.
    """
    text = template if isinstance(template, str) else "\n".join((template or {}).values())
    if "<tool_call>" in text:
        return HERMES
    if "<|python_tag|>" in text or (architecture == "llama" and "<|start_header_id|>" in text and "tools" in text):
        return LLAMA3
    return GEMMA if architecture.startswith("gemma") else None


def check_tools(tools: Sequence[Tool]) -> dict[str, Mapping[str, Any]]:
    """The schema of each tool's parameters, by the tool's name. tools: as OpenAI's API has them.

    Raises RequestError for tools of another form, and for two of one name.
    """
    parameters: dict[str, Mapping[str, Any]] = {}
    for number, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) and tool.get("type") == "function" else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
            raise RequestError(
                f'tool {number} must be {{"type": "function", "function": {{"name": …, "parameters": …}}}}, '
                f"not {tool!r:.80}"
            )
        if name in parameters:
            raise RequestError(f"two tools have the name {name!r}")
        schema = function.get("parameters") or {"type": "object", "properties": {}}
        if not isinstance(schema, Mapping):
            raise RequestError(f"the parameters of the tool {name!r} must be a JSON schema, not {schema!r:.80}")
        parameters[name] = schema
    return parameters


def with_tools(format: ToolFormat, messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """The conversation for a template that knows nothing of tools: calls and results become text, and the tools stand
    before the first question, in the words of Google's documentation for Gemma.
    """
    if format.in_template:
        return list(messages)
    written = [_as_text(message) for message in messages]
    if tools:
        definitions = json.dumps([tool["function"] for tool in tools], ensure_ascii=False)
        told = (
            "You have access to functions. If you decide to invoke any of the function(s), you MUST put it in the "
            'format of\n{"name": function name, "parameters": dictionary of argument name and its value}\n\n'
            f"You SHOULD NOT include any other text in the response if you call a function\n{definitions}"
        )
        if written and written[0]["role"] == "system":
            written[0] = {**written[0], "content": f"{written[0]['content']}\n\n{told}"}
        else:
            written.insert(0, {"role": "system", "content": told})
    return _merged(written)


def _as_text(message: Message) -> Message:
    content = message.get("content") or ""
    if message.get("role") == "tool":
        return {"role": "user", "content": f"```tool_output\n{content}\n```"}
    calls = message.get("tool_calls")
    if not calls:
        return message
    texts = [content] if content else []
    for call in calls:
        function = call.get("function", {})
        arguments = function.get("arguments")
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        texts.append(f'{{"name": {json.dumps(function.get("name"))}, "parameters": {text}}}')
    return {"role": "assistant", "content": "\n".join(texts)}


def _merged(messages: list[Message]) -> list[Message]:
    """Turns of one role that follow each other become one, as results of several calls do: templates want them to
    alternate.
    """
    merged: list[Message] = []
    for message in messages:
        last = merged[-1] if merged else None
        texts = last is not None and isinstance(last.get("content"), str) and isinstance(message.get("content"), str)
        if last is not None and texts and last["role"] == message["role"] == "user":
            merged[-1] = {**last, "content": f"{last['content']}\n{message['content']}"}
        else:
            merged.append(message)
    return merged
