"""`/tokenize` and `/detokenize`, with vLLM's names."""

from __future__ import annotations

import asyncio
from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from tandem.server.errors import ApiError
from tandem.server.fields import Message, Object, TokenId
from tandem.server.http import JSON, read_body
from tandem.server.service import Service


class TokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Either a prompt, or messages for the model's chat template."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1)] | None = None
    tools: list[Object] | None = None
    add_generation_prompt: bool = True
    chat_template_kwargs: Object | None = None
    return_token_strs: bool | None = None


class Tokens(msgspec.Struct, kw_only=True):
    """max_model_len: positions of the model's context here."""

    tokens: list[int]
    count: int
    max_model_len: int
    token_strs: list[str] | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    model: str | None = None
    tokens: list[TokenId]


class Detokenized(msgspec.Struct):
    prompt: str


_tokenize = msgspec.json.Decoder(TokenizeRequest)
_detokenize = msgspec.json.Decoder(DetokenizeRequest)


async def tokenize(request: Request) -> Response:
    service = Service.of(request)
    body = await read_body(request, _tokenize)
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "give either a prompt or messages", param="prompt")
    model = await service.model(body.model)
    if body.messages is not None:
        _, tokens = await service.render(
            model,
            body.messages,
            tools=body.tools,
            add_generation_prompt=body.add_generation_prompt,
            variables=body.chat_template_kwargs,
        )
    else:
        _, tokens = await service.encode(model, body.prompt or "")
    texts = [model.tokenizer.token_text(token) for token in tokens] if body.return_token_strs else None
    return JSON(Tokens(tokens=tokens, count=len(tokens), max_model_len=model.context, token_strs=texts))


async def detokenize(request: Request) -> Response:
    service = Service.of(request)
    body = await read_body(request, _detokenize)
    model = await service.model(body.model)
    return JSON(Detokenized(await asyncio.to_thread(model.tokenizer.decode, body.tokens)))
