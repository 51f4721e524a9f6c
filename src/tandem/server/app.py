"""The FastAPI application: routes, errors, and the OpenAPI document made from the structs that validate."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from tandem.server.chat import ChatCompletion, ChatRequest, chat_completions
from tandem.server.completions import Completion, CompletionRequest, completions
from tandem.server.config import ServerConfig
from tandem.server.embeddings import EmbeddingRequest, Embeddings, embeddings
from tandem.server.errors import ApiError
from tandem.server.http import JSON
from tandem.server.hub import ModelHub
from tandem.server.live import PAGE, live, page
from tandem.server.middleware import Gate
from tandem.server.openapi import BODY_ERRORS, Route, add_routes
from tandem.server.responses import Response as ModelResponse
from tandem.server.responses import ResponsesRequest, responses
from tandem.server.service import Service
from tandem.server.status import (
    Health,
    ModelCard,
    ModelList,
    Readiness,
    health,
    list_models,
    metrics,
    ready,
    show_model,
)
from tandem.server.tokens import Detokenized, DetokenizeRequest, TokenizeRequest, Tokens, detokenize, tokenize


def create_app(config: ServerConfig, hub: ModelHub) -> FastAPI:
    """The application for these models; the first is loaded when it starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service = app.state.service = Service(config, hub)
        await service.open()
        try:
            yield
        finally:
            await service.close()

    app = FastAPI(title="Tandem", version=_version(), lifespan=lifespan)
    app.add_middleware(Gate, config=config)
    if config.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Request-Id"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected)
    add_routes(app, ROUTES)
    for path in PAGE:
        app.add_api_route(path, page, include_in_schema=False)
    return app


ROUTES = [
    Route("POST", "/v1/chat/completions", chat_completions, ChatRequest, ChatCompletion, BODY_ERRORS, stream=True),
    Route("POST", "/v1/completions", completions, CompletionRequest, Completion, BODY_ERRORS, stream=True),
    Route("POST", "/v1/embeddings", embeddings, EmbeddingRequest, Embeddings, BODY_ERRORS),
    Route("POST", "/v1/responses", responses, ResponsesRequest, ModelResponse, BODY_ERRORS, stream=True),
    Route("GET", "/v1/models", list_models, answer=ModelList),
    Route("GET", "/v1/models/{model}", show_model, answer=ModelCard, errors=(404,)),
    Route("POST", "/tokenize", tokenize, TokenizeRequest, Tokens, BODY_ERRORS),
    Route("POST", "/detokenize", detokenize, DetokenizeRequest, Detokenized, BODY_ERRORS),
    Route("GET", "/live", live),
    Route("GET", "/health", health, answer=Health),
    Route("GET", "/ready", ready, answer=Readiness, errors=(503,)),
    Route("GET", "/metrics", metrics),
]


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSON(error.body, error.status, error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    """What the router says: no such path, no such method."""
    assert isinstance(error, HTTPException)
    path, method = request.url.path, request.method
    said = {404: f"there is nothing at {path!r:.200}", 405: f"{path} does not take {method}"}
    failure = ApiError(error.status_code, said.get(error.status_code, str(error.detail)))
    return JSON(failure.body, failure.status, {**failure.headers, **(error.headers or {})})


async def _unexpected(request: Request, error: Exception) -> Response:
    failure = ApiError(500, f"unexpected {type(error).__name__}; the server's log says more")
    return JSON(failure.body, failure.status)


def _version() -> str:
    try:
        return version("tandem-llm")
    except PackageNotFoundError:
        return "0"
