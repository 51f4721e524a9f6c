"""`/v1/embeddings`."""

from __future__ import annotations

import base64
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from tandem.engine.sampling_params import SamplingParams
from tandem.server.completions import split_prompts
from tandem.server.errors import ApiError
from tandem.server.fields import TokenId
from tandem.server.http import JSON, read_body
from tandem.server.service import Service


class EmbeddingRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """input: a text, a list of token ids, or a list of either. pooling: of the hidden states behind the final norm the
    mean, or the last token's. dimensions: so many of the first, scaled to length 1 again.
    """

    input: str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1)]
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    pooling: Literal["mean", "last"] = "mean"
    normalize: bool = True
    user: str | None = None


class Embedding(msgspec.Struct, kw_only=True):
    """embedding: numbers, or float32 in little-endian order as base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class Embeddings(msgspec.Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


_decoder = msgspec.json.Decoder(EmbeddingRequest)


async def embeddings(request: Request) -> Response:
    service = Service.of(request)
    body = await read_body(request, _decoder)
    model = await service.model(body.model)
    prompts = [await service.encode(model, prompt) for prompt in split_prompts(body.input, "input")]
    call = await service.start(request, model, prompts, SamplingParams(), pooling=body.pooling)
    await service.finish(request, call)
    data = []
    for generation in call.generations:
        vector = np.frombuffer(generation.embedding, dtype="<f4")
        if body.dimensions is not None and body.dimensions > len(vector):
            raise ApiError(
                400, f"{model.name} has {len(vector):,} dimensions, not {body.dimensions:,}", param="dimensions"
            )
        vector = vector[: body.dimensions]
        if body.normalize:
            length = np.linalg.norm(vector.astype(np.float64))
            vector = (vector / np.float32(length or 1)).astype("<f4")
        shown = base64.b64encode(vector.tobytes()).decode() if body.encoding_format == "base64" else vector.tolist()
        data.append(Embedding(index=generation.number, embedding=shown))
    usage = EmbeddingUsage(call.prompt_tokens, call.prompt_tokens)
    return JSON(Embeddings(data=data, model=model.name, usage=usage))
