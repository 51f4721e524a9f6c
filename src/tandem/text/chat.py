"""Chat templates: a conversation as the text that a model was trained to continue.

Templates come with the model and are run in jinja2's sandbox, with the filters, functions and tags that
Hugging Face transformers gives them (`tojson`, `raise_exception`, `strftime_now`, `break`, `continue`,
`generation`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tandem.errors import ModelFileError, RequestError

Message = Mapping[str, Any]

# Names that clients give a message's reasoning, the standard one first.
_REASONING = ("reasoning_content", "thinking", "reasoning")
# What a template's variables of a request's own are called, and parameters of what renders it.
_TAKEN = frozenset({"add_generation_prompt", "messages", "special_tokens", "template", "tools"})
# A template that goes through the parts of a content by itself; others print a list as Python does.
_TAKES_PARTS = re.compile(r"""\bfor\s+\w+\s+in\s+\w+(?:\.content\b|\[\s*['"]content['"]\s*\])""")


def render_chat(
    template: str | Mapping[str, str] | None,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    special_tokens: Mapping[str, str] | None = None,
    **template_kwargs: Any,
) -> str:
    """The text of a conversation, ready for `Tokenizer.encode(text, add_special=False)`.

    template: jinja source, or sources by name: `tool_use` is taken for requests with tools, else `default`.
    messages: each with `role`, and what the template reads (`content`, `tool_calls`, …); plain JSON values. A content
    that is a list of parts may hold parts of type `text` only.
    add_generation_prompt: end with the opening of the assistant's turn. special_tokens: `bos_token` and so
    on. template_kwargs: further variables, such as `enable_thinking`.

    Raises RequestError for a model without a template and for messages that the template refuses or cannot
    render, and ModelFileError for a template that is itself wrong.
    """
    if isinstance(template, Mapping):
        template = (template.get("tool_use") if tools else None) or template.get("default")
    if template is None:
        raise RequestError(
            "this model has no chat template; give it a plain prompt, or use a model made for chat, "
            "whose files bring a template"
        )
    variables = {
        "documents": None,
        **(special_tokens or {}),
        **_plain(template_kwargs, "template arguments"),
        "messages": _conversation(messages, takes_parts=_TAKES_PARTS.search(template) is not None),
        "tools": _plain(tools, "tools") if tools else None,
        "add_generation_prompt": add_generation_prompt,
    }
    try:
        return _compile(template).render(variables)
    except _Refused as error:
        raise RequestError(f"the chat template refuses these messages: {_reason(error)}") from None
    except (SecurityError, OverflowError, RecursionError, MemoryError) as error:
        raise ModelFileError(f"the model's chat template does what no template may: {_reason(error)}") from None
    except jinja2.TemplateSyntaxError as error:
        raise ModelFileError(
            f"the model's chat template is not valid jinja: {_reason(error)}, line {error.lineno}"
        ) from None
    except Exception as error:  # a template can raise whatever its expressions do
        raise RequestError(f"the chat template cannot render these messages: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """What an error says, as part of one sentence."""
    return " ".join(str(error).split()) or type(error).__name__


class _Refused(jinja2.TemplateError):
    """What a template raises on purpose."""


class _Generation(Extension):
    """`{% generation %}` marks what the assistant said, for training; here it only groups."""

    tags = frozenset({"generation"})  # type: ignore[assignment]  # jinja2 only looks names up

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


@lru_cache(maxsize=16)
def _compile(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(template)


def _refuse(message: object) -> NoReturn:
    raise _Refused(str(message))


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers writes it; jinja's own escapes HTML and sorts keys."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def check_messages(messages: object) -> None:
    """Raises RequestError for what is no list, such as a text."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence | None):
        raise RequestError(
            'messages must be a list of messages, such as [{"role": "user", "content": "Hello"}], '
            f"not {messages!r:.80}"
        )


def check_template_kwargs(kwargs: object) -> dict[str, Any]:
    """What a client sends as `chat_template_kwargs`, for `render_chat` and what calls it.

    Raises RequestError for what is no object, and for names that a request has fields of their own for.
    """
    if kwargs is None:
        return {}
    if not isinstance(kwargs, Mapping) or not all(isinstance(name, str) for name in kwargs):
        raise RequestError(
            f'chat_template_kwargs must be an object, such as {{"enable_thinking": false}}, not {kwargs!r:.80}'
        )
    if taken := _TAKEN.intersection(kwargs):
        raise RequestError(f"chat_template_kwargs cannot hold {min(taken)}: the request itself says that")
    return dict(kwargs)


def _conversation(messages: Sequence[Message], *, takes_parts: bool) -> list[dict[str, Any]]:
    """The messages as templates expect them: plain, and reasoning under the names that templates read."""
    check_messages(messages)
    if not messages:
        raise RequestError("there are no messages; give at least one")
    conversation = []
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise RequestError(
                f"message {number} must be an object with a role (system, user, assistant, tool), not {message!r:.80}"
            )
        plain = _plain(message, f"message {number}")
        if isinstance(plain.get("content"), list):
            texts = [_text_of(part, number) for part in plain["content"]]
            if not takes_parts:
                plain["content"] = "\n".join(texts)
        if plain.get("content", "") is None:
            plain["content"] = ""  # as an answer of tool calls only has it; a template would print "None"
        if plain.get("tool_calls"):
            plain["tool_calls"] = [_call(call, number) for call in plain["tool_calls"]]
        reasoning = next((plain[key] for key in _REASONING if plain.get(key) is not None), None)
        if reasoning is not None:
            plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
        conversation.append(plain)
    return conversation


def _call(call: Any, number: int) -> Any:
    """A call with its arguments as an object, which clients send as a text: templates write them as JSON."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RequestError(
            f'message {number} has a tool call that is not {{"type": "function", '
            '"function": {"name": …, "arguments": …}}'
        )
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            raise RequestError(
                f"message {number} calls {function['name']} with arguments that are not JSON: {arguments!r:.80}"
            ) from None
    return {**call, "function": {**function, "arguments": arguments}}


def _text_of(part: Any, number: int) -> str:
    """The text of one part of a message's content."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind != "text" or not isinstance(part.get("text"), str):
        raise RequestError(
            f"message {number} has a part of type {kind!r}, where only text is possible; "
            'write parts as {"type": "text", "text": …}'
        )
    text: str = part["text"]
    return text


def _plain(value: Any, where: str) -> Any:
    """The value rebuilt from plain JSON types, so that a template gets no object with methods of its own."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, where) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, where) for item in value]
    raise RequestError(f"{where} may hold strings, numbers, lists and objects, not {type(value).__name__}")
