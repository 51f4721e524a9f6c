"""The live page at `/`, and `/live`, which feeds it: the engine at work, ten times a second."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse

from tandem.server import frames
from tandem.server.http import encode
from tandem.server.model import ServedModel
from tandem.server.service import Service

_FILES = Path(__file__).parent / "page"
PAGE = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js"}
_PERIOD = 0.1
# Steps that one look brings at most; older ones are dropped.
_MOST_STEPS = 500
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


async def page(request: Request) -> Response:
    return FileResponse(_FILES / PAGE[request.url.path], headers=_HEADERS)


async def live(request: Request) -> Response:
    """Server-sent events: what the engine of a model (`?model=`, else the first) does."""
    service = Service.of(request)
    model = service.hub.find(request.query_params.get("model"))
    return StreamingResponse(
        _feed(service, model), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
    )


async def _feed(service: Service, model: ServedModel) -> AsyncIterator[bytes]:
    steps: list[list[float]] = []
    owned: list[frames.Owned] = []

    def watch(stepped: frames.Stepped) -> None:
        stats = stepped.stats
        if stats is not None and stats.rows:
            times = (stats.began, stats.host_seconds, stats.wait_seconds, stats.sample_seconds)
            steps.append([*times, stats.rows, stats.sampled])
            del steps[:-_MOST_STEPS]
        if stepped.owned is not None:
            owned[:] = stepped.owned

    model.watch(watch, True)
    try:
        while not service.ending:
            if model.idle:
                owned.clear()
            yield b"data: " + encode(_look(model, steps, owned)) + b"\n\n"
            steps.clear()
            await asyncio.sleep(_PERIOD)
    finally:
        model.watch(watch, False)


def _look(model: ServedModel, steps: list[list[float]], owned: list[frames.Owned]) -> dict[str, Any]:
    """What has happened since the last one, and how things are."""
    stats, ready = model.stats, model.ready
    return {
        "model": model.name,
        "state": model.state,
        "plan": None if ready is None else ready.plan,
        "devices": [] if ready is None else list(ready.devices),
        "running": stats.running if stats else 0,
        "waiting": stats.waiting if stats else 0,
        "preemptions": stats.preemptions if stats else 0,
        "cached_tokens": stats.cached_tokens if stats else 0,
        "pages": [] if stats is None else [[pages.total, pages.used, pages.cached] for pages in stats.pages],
        "steps": steps,
        # The name of an owner is its place on the page: request ids are nobody else's business.
        "owned": [[sequence.computed, sequence.length, sequence.pages] for sequence in owned],
    }
