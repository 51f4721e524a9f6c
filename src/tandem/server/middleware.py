"""What every request passes before any route: an id, the key, the size of its body; then the line in the log."""

from __future__ import annotations

import hmac
import ipaddress
import logging
import re
import secrets
import time
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tandem.server.config import ServerConfig
from tandem.server.errors import ApiError
from tandem.server.http import JSON
from tandem.server.live import PAGE

_log = logging.getLogger("tandem.server.access")

# A client's own id is taken if it is harmless in a header and in a log.
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# Paths that say nothing about anybody; the page is only a page, and asks for the key itself.
_OPEN = ("/health", "/ready", *PAGE)


class Gate:
    """Pure ASGI: nothing here is in the way of a stream."""

    def __init__(self, app: ASGIApp, config: ServerConfig) -> None:
        self._app = app
        self._keys = tuple(key.encode() for key in config.api_keys)
        self._hosts = frozenset(("localhost", *config.allowed_hosts))
        self._max_body = config.max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else secrets.token_hex(12)
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        status = 0
        received = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        async def receiving() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_body:
                raise self._too_large()
            return message

        try:
            self._check(scope, headers)
            await self._app(scope, receiving, sending)
        except ApiError as error:
            if status:
                raise
            await JSON(error.body, error.status, error.headers)(scope, receive, sending)
        finally:
            self._note(scope, request_id, status, time.perf_counter() - began)

    def _check(self, scope: Scope, headers: Headers) -> None:
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self._max_body:
            raise self._too_large()
        if not self._keys:
            host = headers.get("host", "localhost")
            if not self._is_ours(host):
                raise ApiError(
                    403,
                    f"this server is not called {host!r:.200}; if it is, start it with --allowed-host or an API key",
                )
        elif scope["path"] not in _OPEN and scope["method"] != "OPTIONS":
            scheme, _, key = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not _is_one_of(key.strip().encode(), self._keys):
                raise ApiError(
                    401, "the API key is missing or wrong: send it as Authorization: Bearer KEY", code="invalid_api_key"
                )

    def _is_ours(self, host: str) -> bool:
        name = re.sub(r":\d*$", "", host).lower()
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return name in self._hosts or name.endswith(".localhost")
        return True

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than {self._max_body:,} bytes, which is this server's limit")

    @staticmethod
    def _note(scope: Scope, request_id: str, status: int, seconds: float) -> None:
        facts = {
            "request_id": request_id,
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "ms": round(seconds * 1e3, 1),
        }
        call = scope["state"].get("call")
        if call is not None:
            facts |= call.facts()
        # By route: paths that somebody makes up would grow without bound.
        route = getattr(scope.get("route"), "path", "other")
        scope["app"].state.service.metrics.responses.labels(route, str(status)).inc()
        _log.info("request", extra=facts)


def _is_one_of(key: bytes, keys: Iterable[bytes]) -> bool:
    """Takes as long for every key of a length."""
    found = False
    for known in keys:
        found |= hmac.compare_digest(key, known)
    return found
