"""`/v1/completions`."""

from __future__ import annotations

import time
from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from tandem.engine.output import CompletionChunk, Logprobs, RequestOutput
from tandem.engine.prompt import Prompt
from tandem.errors import RequestError
from tandem.server.call import Call, Encoded
from tandem.server.errors import ApiError, bad_request
from tandem.server.fields import Count, SamplingFields, TokenId, TopLogprobs, Usage, sampling_params, usage_of
from tandem.server.http import DONE, JSON, EventStream, encode, error_events, read_body
from tandem.server.service import Service
from tandem.text.tokenizer import Tokenizer

_USUAL_TOKENS = 16
_MOST_PROMPTS = 128


class CompletionRequest(SamplingFields, kw_only=True, forbid_unknown_fields=True):
    """Texts to continue. prompt: a text, a list of token ids, or a list of either. max_tokens: 16 unless given.
    echo: the answer begins with the prompt.
    """

    prompt: str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1)]
    max_tokens: Count | None = None
    logprobs: TopLogprobs | None = None
    echo: bool | None = None


class CompletionLogprobs(msgspec.Struct):
    """One entry per token; null where there is none before the first token of a prompt that is echoed."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class Completion(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


_decoder = msgspec.json.Decoder(CompletionRequest)


async def completions(request: Request) -> Response:
    service = Service.of(request)
    body = await read_body(request, _decoder)
    if body.echo and body.stream and body.logprobs is not None:
        raise ApiError(400, "echo with logprobs cannot be streamed; leave one of the three out", param="echo")
    model = await service.model(body.model)
    try:
        grammar = None if body.response_format is None else body.response_format.grammar()
    except RequestError as error:
        raise bad_request(error, "response_format") from None
    prompts = [await service.encode(model, prompt) for prompt in split_prompts(body.prompt, "prompt")]
    params = sampling_params(
        model,
        body,
        most=service.config.max_tokens,
        max_tokens=body.max_tokens or _USUAL_TOKENS,
        logprobs=body.logprobs,
        grammar=grammar,
        prompt_logprobs=body.logprobs if body.echo else None,
    )
    call = await service.start(request, model, prompts, params, cache_salt=body.cache_salt)
    echoes = [_echo(prompt, model.tokenizer) if body.echo else "" for prompt in prompts]
    if body.stream:
        return EventStream(call, CompletionEvents(call, echoes, usage=body.usage_wanted))
    outputs = await service.finish(request, call)
    choices = [
        choice
        for number, (output, echo) in enumerate(zip(outputs, echoes, strict=True))
        for choice in _choices(output, number * params.n, echo, model.tokenizer)
    ]
    return JSON(
        Completion(id=_id(call), created=int(time.time()), model=model.name, choices=choices, usage=usage_of(call))
    )


def split_prompts(given: str | list[str | int | list[int]], param: str) -> list[Prompt]:
    """The prompts of a request: one text or list of token ids, or a list of them. Raises ApiError."""
    if isinstance(given, str):
        return [given]
    kinds = {type(item) for item in given}
    if kinds == {int}:
        return [given]  # type: ignore[list-item]
    if len(kinds) > 1 or len(given) > _MOST_PROMPTS:
        wrong = "mixes texts, tokens and lists" if len(kinds) > 1 else f"has more than {_MOST_PROMPTS} entries"
        raise ApiError(400, f"{param} {wrong}; give a text, a list of token ids, or a list of either", param=param)
    return given  # type: ignore[return-value]


def _id(call: Call) -> str:
    return f"cmpl-{call.id}"


def _echo(prompt: Encoded, tokenizer: Tokenizer) -> str:
    text, tokens = prompt
    return tokenizer.decode(tokens, skip_special=True) if text is None else text


def _choices(output: RequestOutput, first: int, echo: str, tokenizer: Tokenizer) -> list[CompletionChoice]:
    before: list[tuple[int, Logprobs | None]] = []
    if output.prompt_logprobs is not None:
        before = list(zip(output.prompt_token_ids, output.prompt_logprobs, strict=True))
    return [
        CompletionChoice(
            first + sample.index,
            echo + sample.text,
            None
            if sample.logprobs is None
            else completion_logprobs([*before, *zip(sample.token_ids, sample.logprobs, strict=True)], 0, tokenizer),
            "length" if sample.finish_reason == "length" else "stop",
        )
        for sample in output.outputs
    ]


def completion_logprobs(
    positions: list[tuple[int, Logprobs | None]], offset: int, tokenizer: Tokenizer
) -> CompletionLogprobs:
    """offset: characters of text before the first position."""
    result = CompletionLogprobs([], [], [], [])
    for token, logprobs in positions:
        text = tokenizer.token_text(token)
        result.tokens.append(text)
        result.text_offset.append(offset)
        offset += len(text)
        result.token_logprobs.append(None if logprobs is None else logprobs[token].logprob)
        top = None if logprobs is None else {entry.decoded_token: entry.logprob for entry in logprobs.values()}
        result.top_logprobs.append(top)
    return result


class CompletionEvents:
    """`text_completion` chunks. What does not change is encoded once."""

    def __init__(self, call: Call, echoes: list[str], *, usage: bool) -> None:
        self._call = call
        self._echoes = echoes
        self._usage = usage
        self._tokenizer = call.model.tokenizer
        self._offsets = [len(echo) for echo in echoes for _ in range(call.params.n)]
        head = {"id": _id(call), "object": "text_completion", "created": int(time.time()), "model": call.model.name}
        self._head = b"data: " + encode(head)[:-1] + b',"choices":['
        self._tail = b'],"usage":null}\n\n' if usage else b"]}\n\n"

    def begin(self) -> bytes:
        n = self._call.params.n
        return b"".join(
            self._event(number * n + index, echo, b"null", None)
            for number, echo in enumerate(self._echoes)
            if echo
            for index in range(n)
        )

    def chunks(self, chunks: list[tuple[int, CompletionChunk]]) -> bytes:
        n = self._call.params.n
        events = []
        for number, chunk in chunks:
            if not chunk.text and chunk.finish_reason is None and chunk.logprobs is None:
                continue
            index = number * n + chunk.index
            logprobs = b"null"
            if chunk.logprobs is not None:
                positions: list[tuple[int, Logprobs | None]] = [*zip(chunk.token_ids, chunk.logprobs, strict=True)]
                logprobs = encode(completion_logprobs(positions, self._offsets[index], self._tokenizer))
            self._offsets[index] += len(chunk.text)
            events.append(self._event(index, chunk.text, logprobs, chunk.finish_reason))
        return b"".join(events)

    def end(self) -> bytes:
        usage = self._head + b'],"usage":' + encode(usage_of(self._call)) + b"}\n\n" if self._usage else b""
        return usage + DONE

    def error(self, error: ApiError) -> bytes:
        return error_events(error)

    def _event(self, index: int, text: str, logprobs: bytes, reason: str | None) -> bytes:
        ended = b"null" if reason is None else b'"length"' if reason == "length" else b'"stop"'
        return b'%b{"index":%d,"text":%b,"logprobs":%b,"finish_reason":%b}%b' % (
            self._head, index, encode(text), logprobs, ended, self._tail
        )  # fmt: skip
