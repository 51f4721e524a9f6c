"""`/v1/chat/completions`."""

from __future__ import annotations

import time
from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from tandem.engine.output import CompletionChunk, Logprobs
from tandem.server.answers import AnswerPlan, ToolCall, ToolChoice, delta, plan_answer
from tandem.server.call import Call
from tandem.server.errors import ApiError
from tandem.server.fields import Count, Message, Object, SamplingFields, TopLogprobs, Usage, sampling_params, usage_of
from tandem.server.http import DONE, JSON, EventStream, encode, error_events, read_body
from tandem.server.service import Service
from tandem.text.tokenizer import Tokenizer


class ChatRequest(SamplingFields, kw_only=True, forbid_unknown_fields=True):
    """A conversation to answer. chat_template_kwargs: variables of the model's chat template, such as enable_thinking.
    max_completion_tokens goes before max_tokens; without both, an answer may fill the context.
    """

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    tools: list[Object] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: Object | None = None


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(msgspec.Struct):
    content: list[TokenLogprob]
    refusal: None = None


class ChatMessage(msgspec.Struct, omit_defaults=True):
    role: Literal["assistant"]
    content: str | None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    refusal: None = None


class ChatChoice(msgspec.Struct):
    index: int
    message: ChatMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


async def chat_completions(request: Request) -> Response:
    service = Service.of(request)
    body = await read_body(request, _decoder)
    model = await service.model(body.model)
    plan = await plan_answer(
        model,
        body.messages,
        tools=body.tools,
        tool_choice=body.tool_choice,
        parallel=body.parallel_tool_calls is not False,
        response_format=body.response_format,
        variables=body.chat_template_kwargs,
    )
    params = sampling_params(
        model,
        body,
        most=service.config.max_tokens,
        max_tokens=body.max_completion_tokens or body.max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        grammar=plan.grammar,
    )
    call = await service.start(request, model, [plan.prompt], params, cache_salt=body.cache_salt)
    if body.stream:
        return EventStream(call, ChatEvents(call, plan, usage=body.usage_wanted))
    (output,) = await service.finish(request, call)
    choices = []
    for sample in output.outputs:
        answer = plan.parse(sample.text)
        message = ChatMessage("assistant", answer.content, answer.reasoning, answer.calls or None)
        logprobs = _logprobs(sample.logprobs, params.logprobs, model.tokenizer)
        choices.append(ChatChoice(sample.index, message, logprobs, _reason(sample.finish_reason, bool(answer.calls))))
    return JSON(
        ChatCompletion(
            id=chat_id(call), created=int(time.time()), model=model.name, choices=choices, usage=usage_of(call)
        )
    )


_decoder = msgspec.json.Decoder(ChatRequest)


def _reason(reason: str | None, called: bool) -> Literal["stop", "length", "tool_calls"]:
    if reason == "length":
        return "length"
    return "tool_calls" if called else "stop"


def chat_id(call: Call) -> str:
    return f"chatcmpl-{call.id}"


class ChatEvents:
    """`chat.completion.chunk`s. What does not change is encoded once."""

    def __init__(self, call: Call, plan: AnswerPlan, *, usage: bool) -> None:
        self._call = call
        self._usage = usage
        self._tokenizer = call.model.tokenizer
        n = call.params.n
        self._parsers = None if plan.plain else [plan.parser() for _ in range(n)]
        head = {
            "id": chat_id(call),
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": call.model.name,
        }
        self._head = b"data: " + encode(head)[:-1] + b',"choices":['
        self._tail = b'],"usage":null}\n\n' if usage else b"]}\n\n"

    def begin(self) -> bytes:
        first = encode({"role": "assistant", "content": ""})
        return b"".join(self._event(index, first) for index in range(self._call.params.n))

    def chunks(self, chunks: list[tuple[int, CompletionChunk]]) -> bytes:
        return b"".join(event for _, chunk in chunks for event in self._events(chunk))

    def _events(self, chunk: CompletionChunk) -> list[bytes]:
        reason, called = chunk.finish_reason, False
        if self._parsers is None:
            deltas = [b'{"content":%b}' % encode(chunk.text)] if chunk.text else []
        else:
            parser = self._parsers[chunk.index]
            parts = parser.push(chunk.text)
            if reason is not None:
                parts += parser.finish()
            deltas = [encode(delta(part)) for part in parts]
            called = parser.calls > 0
        if chunk.logprobs is None:
            events = [self._event(chunk.index, each) for each in deltas]
        else:
            scores = encode(_logprobs(chunk.logprobs, self._call.params.logprobs, self._tokenizer))
            first, *others = deltas or [b'{"content":""}']
            events = [self._event(chunk.index, first, scores), *(self._event(chunk.index, each) for each in others)]
        if reason is not None:
            events.append(self._event(chunk.index, b"{}", reason=b'"%b"' % _reason(reason, called).encode()))
        return events

    def _event(self, index: int, delta: bytes, logprobs: bytes = b"null", reason: bytes = b"null") -> bytes:
        return b'%b{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":%b}%b' % (
            self._head, index, delta, logprobs, reason, self._tail
        )  # fmt: skip

    def end(self) -> bytes:
        usage = self._head + b'],"usage":' + encode(usage_of(self._call)) + b"}\n\n" if self._usage else b""
        return usage + DONE

    def error(self, error: ApiError) -> bytes:
        return error_events(error)


def _logprobs(positions: list[Logprobs] | None, top: int | None, tokenizer: Tokenizer) -> ChoiceLogprobs | None:
    """One entry per token: itself, and the likeliest, best first."""
    if positions is None or top is None:
        return None
    content = []
    for position in positions:
        entries = [
            (logprob.rank, TopLogprob(logprob.decoded_token, logprob.logprob, list(tokenizer.token_bytes(token))))
            for token, logprob in position.items()
        ]
        likeliest = [entry for rank, entry in sorted(entries, key=lambda pair: pair[0]) if rank <= top]
        own = entries[0][1]
        content.append(TokenLogprob(own.token, own.logprob, own.bytes, likeliest))
    return ChoiceLogprobs(content)
