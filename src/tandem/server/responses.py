"""`/v1/responses`: text and tools, without state: nothing is stored, so every request brings its whole conversation."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response as HttpResponse

from tandem.engine.output import CompletionChunk
from tandem.server.answers import Answer, AnswerPlan, FunctionName, NamedTool, ToolChoice, call_id, plan_answer
from tandem.server.call import Call
from tandem.server.errors import ApiError
from tandem.server.fields import Count, Object, ResponseFormat, SamplingFields, sampling_params
from tandem.server.http import JSON, EventStream, encode, read_body
from tandem.server.service import Service
from tandem.text.tools.parser import AnswerParser
from tandem.text.tools.parts import CallArguments, CallName, Content, Part


class NamedFunction(msgspec.Struct, tag="function", kw_only=True):
    """A tool that must be called."""

    name: Annotated[str, Meta(min_length=1)]


class TextFormat(msgspec.Struct, kw_only=True):
    """As chat's response_format, with the schema beside its type."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    description: str | None = None
    schema: Object = {}
    strict: bool | None = None


class TextOptions(msgspec.Struct, kw_only=True):
    format: TextFormat | None = None
    verbosity: str | None = None


class ResponsesRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """input: a text, or items: messages, function calls and their outputs. store: must not be true."""

    input: str | Annotated[list[Object], Meta(min_length=1)]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=1e6)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    tools: list[Object] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    stream: bool | None = None
    chat_template_kwargs: Object | None = None
    # Accepted for the clients that send them; they change nothing here.
    store: bool | None = None
    metadata: Object | None = None
    user: str | None = None
    truncation: Literal["disabled"] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    include: list[str] | None = None


class ResponseUsage(msgspec.Struct, kw_only=True):
    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens_details: dict[str, int]


class Response(msgspec.Struct, kw_only=True):
    """status: in_progress, completed, or incomplete where max_output_tokens ended it."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: str
    model: str
    output: list[Object]
    usage: ResponseUsage | None = None
    error: Object | None = None
    incomplete_details: Object | None = None
    instructions: str | None = None
    metadata: Object = {}
    tools: list[Object] = []
    tool_choice: Any = "auto"
    parallel_tool_calls: bool = True
    temperature: float | None = None
    top_p: float | None = None
    max_output_tokens: int | None = None
    store: Literal[False] = False


_decoder = msgspec.json.Decoder(ResponsesRequest)


async def responses(request: Request) -> HttpResponse:
    service = Service.of(request)
    body = await read_body(request, _decoder)
    if body.store:
        raise ApiError(400, "nothing is stored here: leave store out, or send false", param="store")
    messages = [
        *([{"role": "system", "content": body.instructions}] if body.instructions else []),
        *_messages(body.input),
    ]
    model = await service.model(body.model)
    plan = await plan_answer(
        model,
        messages,
        tools=[_tool(tool) for tool in body.tools or ()],
        tool_choice=_choice(body),
        parallel=body.parallel_tool_calls is not False,
        response_format=_format(body),
        variables=body.chat_template_kwargs,
    )
    fields = SamplingFields(temperature=body.temperature, top_p=body.top_p, seed=body.seed)
    params = sampling_params(
        model, fields, most=service.config.max_tokens, max_tokens=body.max_output_tokens, grammar=plan.grammar
    )
    call = await service.start(request, model, [plan.prompt], params)
    answer = Response(
        id=f"resp_{call.id}",
        created_at=int(time.time()),
        status="in_progress",
        model=model.name,
        output=[],
        instructions=body.instructions,
        metadata=body.metadata or {},
        tools=body.tools or [],
        tool_choice=msgspec.to_builtins(body.tool_choice) if body.tool_choice is not None else "auto",
        parallel_tool_calls=body.parallel_tool_calls is not False,
        temperature=params.temperature,
        top_p=params.top_p,
        max_output_tokens=body.max_output_tokens,
    )
    if body.stream:
        return EventStream(call, ResponseEvents(call, plan, answer))
    (output,) = await service.finish(request, call)
    (sample,) = output.outputs
    answer.output = _items(plan.parse(sample.text), call.id)
    _end(answer, call, sample.finish_reason)
    return JSON(answer)


def _messages(given: str | list[Object]) -> list[Object]:
    """Items as the messages of a chat. Raises ApiError."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    messages: list[Object] = []
    for number, item in enumerate(given):
        kind = item.get("type", "message")
        if kind == "message":
            messages.append({"role": _role(item.get("role")), "content": _content(item.get("content"), number)})
        elif kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            if messages and messages[-1].get("tool_calls"):
                messages[-1]["tool_calls"].append(call)
            else:
                messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        elif kind == "function_call_output":
            content = item.get("output")
            text = content if isinstance(content, str) else json.dumps(content)
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": text})
        elif kind != "reasoning":
            raise ApiError(400, f"input item {number} has the unknown type {kind!r:.80}", param="input")
    return messages


def _role(role: Any) -> Any:
    return "system" if role == "developer" else role


def _content(content: Any, number: int) -> Any:
    """Parts of type input_text and output_text are text; others stay, for the template to refuse."""
    if not isinstance(content, list):
        return content
    return [
        {"type": "text", "text": part.get("text")}
        if isinstance(part, dict) and part.get("type") in ("input_text", "output_text")
        else part
        for part in content
    ]


def _tool(tool: Object) -> Object:
    """A tool as chat has it: what describes the function one level deeper."""
    if tool.get("type") != "function" or "function" in tool:
        return tool
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _choice(body: ResponsesRequest) -> ToolChoice | None:
    choice = body.tool_choice
    return NamedTool(FunctionName(choice.name)) if isinstance(choice, NamedFunction) else choice


def _format(body: ResponsesRequest) -> ResponseFormat | None:
    given = None if body.text is None else body.text.format
    if given is None:
        return None
    return msgspec.convert(
        {"type": given.type, "json_schema": {"schema": given.schema} if given.type == "json_schema" else None},
        ResponseFormat,
    )


def _items(answer: Answer, call_number: str) -> list[Object]:
    items: list[Object] = []
    if answer.reasoning is not None:
        items.append(_reasoning_item(call_number, answer.reasoning))
    if answer.content is not None:
        items.append(_message_item(call_number, answer.content))
    for call in answer.calls:
        items.append(_call_item(call.id, call.function.name, call.function.arguments))
    return items


def _message_item(number: str, text: str | None, status: str = "completed") -> Object:
    content = [] if text is None else [_text_part(text)]
    return {"type": "message", "id": f"msg_{number}", "status": status, "role": "assistant", "content": content}


def _text_part(text: str) -> Object:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _reasoning_item(number: str, text: str) -> Object:
    content = [{"type": "reasoning_text", "text": text}] if text else []
    return {"type": "reasoning", "id": f"rs_{number}", "summary": [], "content": content}


def _call_item(number: str, name: str, arguments: str, status: str = "completed") -> Object:
    return {
        "type": "function_call", "id": f"fc_{number}", "call_id": number, "name": name, "arguments": arguments,
        "status": status,
    }  # fmt: skip


def _end(answer: Response, call: Call, reason: str | None) -> None:
    answer.status = "incomplete" if reason == "length" else "completed"
    answer.incomplete_details = {"reason": "max_output_tokens"} if reason == "length" else None
    answer.usage = ResponseUsage(
        input_tokens=call.prompt_tokens,
        output_tokens=call.completion_tokens,
        total_tokens=call.prompt_tokens + call.completion_tokens,
        input_tokens_details={"cached_tokens": call.cached_tokens},
        output_tokens_details={"reasoning_tokens": 0},
    )


class ResponseEvents:
    """The events of a response's life: items are added, grow by deltas, and are done."""

    def __init__(self, call: Call, plan: AnswerPlan, answer: Response) -> None:
        self._call = call
        self._answer = answer
        self._parser: AnswerParser = plan.parser()
        self._number = 0
        self._open: Object | None = None
        self._text = ""
        self._reason: str | None = None

    def begin(self) -> bytes:
        answer = msgspec.to_builtins(self._answer)
        return self._event("response.created", response=answer) + self._event("response.in_progress", response=answer)

    def chunks(self, chunks: list[tuple[int, CompletionChunk]]) -> bytes:
        events = []
        for _, chunk in chunks:
            parts = self._parser.push(chunk.text)
            if chunk.finish_reason is not None:
                self._reason = chunk.finish_reason
                parts += self._parser.finish()
            events += [self._part(part) for part in parts]
        return b"".join(events)

    def end(self) -> bytes:
        events = b"" if self._open or self._answer.output else self._part(Content(""))
        events += self._close()
        _end(self._answer, self._call, self._reason)
        return events + self._event(f"response.{self._answer.status}", response=msgspec.to_builtins(self._answer))

    def error(self, error: ApiError) -> bytes:
        return self._event("error", code=error.code, message=error.message, param=error.param)

    def _event(self, kind: str, **fields: Any) -> bytes:
        event = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), encode(event))

    def _part(self, part: Part) -> bytes:
        if isinstance(part, CallName):
            return self._close() + self._add(_call_item(call_id(), part.name, "", "in_progress"))
        if isinstance(part, CallArguments):
            return self._grow("response.function_call_arguments.delta", part.text)
        kind = "message" if isinstance(part, Content) else "reasoning"
        events = b""
        if self._open is None or self._open["type"] != kind:
            number = f"{self._call.id}{len(self._answer.output)}"
            item = _message_item(number, None, "in_progress") if kind == "message" else _reasoning_item(number, "")
            events = self._close() + self._add(item)
            if kind == "message":
                events += self._event("response.content_part.added", **self._at(), content_index=0, part=_text_part(""))
        if kind == "message":
            return events + self._grow("response.output_text.delta", part.text, content_index=0, logprobs=[])
        return events + self._grow("response.reasoning_text.delta", part.text, content_index=0)

    def _at(self) -> Object:
        assert self._open is not None
        return {"item_id": self._open["id"], "output_index": len(self._answer.output)}

    def _add(self, item: Object) -> bytes:
        self._open, self._text = item, ""
        return self._event("response.output_item.added", output_index=len(self._answer.output), item=item)

    def _grow(self, kind: str, text: str, **more: Any) -> bytes:
        self._text += text
        return self._event(kind, **self._at(), delta=text, **more)

    def _close(self) -> bytes:
        """The open item is done."""
        item, text = self._open, self._text
        if item is None:
            return b""
        events = b""
        if item["type"] == "message":
            part = _text_part(text)
            events += self._event("response.output_text.done", **self._at(), content_index=0, text=text, logprobs=[])
            events += self._event("response.content_part.done", **self._at(), content_index=0, part=part)
            item = {**item, "status": "completed", "content": [part]}
        elif item["type"] == "reasoning":
            events += self._event("response.reasoning_text.done", **self._at(), content_index=0, text=text)
            item = {**item, "content": [{"type": "reasoning_text", "text": text}]}
        else:
            done = {"arguments": text, "name": item["name"]}
            events += self._event("response.function_call_arguments.done", **self._at(), **done)
            item = {**item, "status": "completed", "arguments": text}
        events += self._event("response.output_item.done", output_index=len(self._answer.output), item=item)
        self._answer.output.append(item)
        self._open = None
        return events
