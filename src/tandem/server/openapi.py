"""The OpenAPI document: FastAPI's, with schemas from the structs that validate and answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.responses import Response

from tandem.server.errors import ErrorResponse

_REFERENCE = "#/components/schemas/{name}"


@dataclass(frozen=True, slots=True)
class Route:
    """body, answer: the structs of request and answer; None is no body, and plain text. errors: statuses that
    it may end with besides those that all have. stream: the answer may also be server-sent events.
    """

    method: str
    path: str
    handler: Callable[..., Awaitable[Response]]
    body: type | None = None
    answer: type | None = None
    errors: tuple[int, ...] = ()
    stream: bool = False


# What a body can be wrong with, and a model can be in the way of.
BODY_ERRORS = (400, 404, 413, 415, 422, 429, 500, 503, 504)
_ALWAYS = (400, 401, 403)
_MEANINGS = {
    400: "The request is not acceptable.",
    401: "The API key is missing or wrong.",
    403: "The server is not called by this name.",
    404: "There is no such model.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    422: "The body is not as this page says.",
    429: "The queue is full; come again after Retry-After seconds.",
    500: "The engine failed.",
    503: "The model is not there now.",
    504: "The request took too long.",
}


def add_routes(app: FastAPI, routes: list[Route]) -> None:
    """Adds routes, and makes the app's document tell of them."""
    structs = [ErrorResponse, *(struct for route in routes for struct in (route.body, route.answer) if struct)]
    references, components = msgspec.json.schema_components(structs, ref_template=_REFERENCE)
    schema = dict(zip(structs, references, strict=True))
    for route in routes:
        content: dict[str, Any] = {}
        if route.answer is not None:
            content["application/json"] = {"schema": schema[route.answer]}
        if route.stream:
            content["text/event-stream"] = {}
        if not content:
            content["text/plain"] = {"schema": {"type": "string"}}
        responses: dict[int | str, dict[str, Any]] = {200: {"description": "The answer.", "content": content}}
        for status in sorted({*_ALWAYS, *route.errors}):
            error = {"application/json": {"schema": schema[ErrorResponse]}}
            responses[status] = {"description": _MEANINGS[status], "content": error}
        extra: dict[str, Any] = {}
        if route.body is not None:
            extra["requestBody"] = {
                "required": True,
                "content": {"application/json": {"schema": schema[route.body]}},
            }
        app.add_api_route(
            route.path,
            route.handler,
            methods=[route.method],
            response_class=Response,
            responses=responses,
            openapi_extra=extra,
        )

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, routes=app.routes)
            made.setdefault("components", {})["schemas"] = components
            made["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            for operations in made["paths"].values():
                for operation in operations.values():
                    operation["responses"] = {
                        status: response
                        for status, response in operation["responses"].items()
                        if "ValidationError" not in str(response)
                    }
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
