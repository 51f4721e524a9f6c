"""What there is, and how it is: `/v1/models`, `/health`, `/ready`, `/metrics`."""

from __future__ import annotations

from typing import Literal

import msgspec
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from starlette.requests import Request
from starlette.responses import Response

from tandem.server.errors import ApiError
from tandem.server.http import JSON
from tandem.server.model import ServedModel
from tandem.server.service import Service


class ModelCard(msgspec.Struct, kw_only=True):
    """state: unloaded, loading, ready, restarting or failed. max_model_len: its context, once it is loaded."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["tandem"] = "tandem"
    state: str
    max_model_len: int | None


class ModelList(msgspec.Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(msgspec.Struct):
    status: Literal["ok"] = "ok"


class Readiness(msgspec.Struct):
    """models: their states by name."""

    models: dict[str, str]


def _card(model: ServedModel) -> ModelCard:
    context = None if model.ready is None else model.ready.context
    return ModelCard(id=model.name, created=model.created, state=model.state, max_model_len=context)


async def list_models(request: Request) -> Response:
    return JSON(ModelList(data=[_card(model) for model in Service.of(request).hub.models.values()]))


async def show_model(request: Request, model: str) -> Response:
    return JSON(_card(Service.of(request).hub.find(model)))


async def health(request: Request) -> Response:
    """The server answers."""
    return JSON(Health())


async def ready(request: Request) -> Response:
    """200 when requests are taken and the first model is loaded, else 503."""
    service = Service.of(request)
    first = service.hub.find(None)
    if service.ending or first.state != "ready":
        why = "the server is shutting down" if service.ending else f"{first.name} is {first.state}"
        raise ApiError(503, why, code="not_ready", retry_after=1)
    return JSON(Readiness({model.name: model.state for model in service.hub.models.values()}))


async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    return Response(generate_latest(Service.of(request).metrics.registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)
