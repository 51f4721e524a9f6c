"""Between HTTP and calls: bodies in, JSON and event streams out, clients that leave."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from tandem.engine.output import CompletionChunk
from tandem.server.call import Call
from tandem.server.errors import ApiError, ClientGone

_T = TypeVar("_T")

_json = msgspec.json.Encoder()
encode = _json.encode
DONE = b"data: [DONE]\n\n"
# Seconds that a client gets to read the error that ends a call which took too long.
_GRACE = 10.0


class JSON(Response):
    """A msgspec struct as the answer."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return encode(content)


async def read_body(request: Request, decoder: msgspec.json.Decoder[_T]) -> _T:
    """The request's JSON.

    Raises ApiError: 415 for another type of content, 400 for what is no JSON, 422 for JSON that the API does not take.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise ApiError(415, "the body must be JSON: send it with the header Content-Type: application/json")
    try:
        return decoder.decode(await request.body())
    except ClientDisconnect:
        raise ClientGone from None
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `")
        raise ApiError(422, str(error), param=path.rstrip("`").removeprefix("$.") or None, code=_code(reason)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"the body is not valid JSON: {error}", code="invalid_json") from None


def _code(reason: str) -> str:
    if "missing required field" in reason:
        return "missing_required_parameter"
    return "unknown_parameter" if "unknown field" in reason else "invalid_value"


async def _watch(receive: Receive, gone: Callable[[], object]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    gone()


@contextmanager
def noticing_disconnect(receive: Receive, call: Call) -> Any:
    """While it lasts, a client that leaves fails the call."""
    watcher = asyncio.create_task(_watch(receive, lambda: call.fail(ClientGone())))
    try:
        yield
    finally:
        watcher.cancel()


class ChunkEncoder(Protocol):
    """What the events of one kind of stream look like."""

    def begin(self) -> bytes:
        """Events before the first token."""
        ...

    def chunks(self, chunks: list[tuple[int, CompletionChunk]]) -> bytes:
        """Events for what a step brought; they go out in one write."""
        ...

    def end(self) -> bytes:
        """Events after the last token."""
        ...

    def error(self, error: ApiError) -> bytes:
        """Events for a call that broke off."""
        ...


class EventStream(Response):
    """A call that has started, as server-sent events. Closes the call."""

    media_type = "text/event-stream"

    def __init__(self, call: Call, encoder: ChunkEncoder) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._call = call
        self._encoder = encoder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            # A client that has stopped reading holds up `send`; the end of its time must not wait for that.
            with noticing_disconnect(receive, self._call), suppress(TimeoutError):
                async with asyncio.timeout_at(self._call.deadline + _GRACE):
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                    await self._send(send)
        finally:
            self._call.close()

    async def _send(self, send: Send) -> None:
        encoder = self._encoder
        try:
            if begin := encoder.begin():
                await send(_part(begin))
            async for chunks in self._call.chunks():
                if events := encoder.chunks(chunks):
                    await send(_part(events))
            last = encoder.end()
        except ClientGone:
            return
        except ApiError as error:
            last = encoder.error(error)
        await send(_part(last))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _part(body: bytes) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": True}


def error_events(error: ApiError) -> bytes:
    """An error in the middle of a stream, as OpenAI's clients understand it, and the stream's end."""
    return b"data: " + encode(error.body) + b"\n\n" + DONE
