"""A small HTTP/1.1 client for measurements: one connection a request, bodies of JSON, answers read as they come.

It does little by itself, so that what the client costs is known and small beside what it measures.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from tandem.errors import BenchError

_LONGEST_LINE = 1 << 22


class ServerFailure(Exception):
    """What went wrong with one request; `kind` is what such failures are counted under."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(detail or kind)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Server:
    """Where a server is. path: what stands before `/v1` in the paths of its API."""

    host: str
    port: int
    secure: bool
    path: str
    key: str | None = None

    @classmethod
    def at(cls, url: str, key: str | None = None) -> Server:
        """Of an address such as http://127.0.0.1:8000, with or without `/v1`. Raises BenchError for any other text."""
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = 0
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise BenchError(f"{url!r} is no address of a server; write it like http://127.0.0.1:8000")
        secure = parts.scheme == "https"
        path = parts.path.rstrip("/").removesuffix("/v1")
        return cls(parts.hostname, port or (443 if secure else 80), secure, path, key)

    async def stream(self, method: str, path: str, body: bytes = b"") -> AsyncIterator[bytes]:
        """The lines of the answer's body, without their ends, as they come.

        Raises ServerFailure for an answer that is not 2xx, that is no HTTP or breaks off, and for no connection.
        """
        try:
            context = ssl.create_default_context() if self.secure else None
            reader, writer = await asyncio.open_connection(self.host, self.port, ssl=context, limit=_LONGEST_LINE)
        except OSError as error:
            raise ServerFailure("no connection", str(error)) from None
        try:
            writer.write(self._request(method, path, body))
            await writer.drain()
            status, headers = await _head(reader)
            lines = _lines(
                _chunks(reader) if headers.get("transfer-encoding") == "chunked" else _plain(reader, headers)
            )
            if status // 100 != 2:
                text = b" ".join([line async for line in lines]).decode(errors="replace")
                raise ServerFailure(f"HTTP {status}", text[:500])
            async for line in lines:
                yield line
        except (OSError, EOFError) as error:
            raise ServerFailure("broken off", str(error)) from None
        except ValueError as error:
            raise ServerFailure("no HTTP", str(error)) from None
        finally:
            writer.close()

    def _request(self, method: str, path: str, body: bytes) -> bytes:
        head = [
            f"{method} {self.path}{path} HTTP/1.1",
            f"Host: {self.host}:{self.port}",
            "Connection: close",
            "Accept: text/event-stream, application/json",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
        ]
        if self.key:
            head.append(f"Authorization: Bearer {self.key}")
        return "\r\n".join([*head, "", ""]).encode() + body


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Status and headers, their names in lower case."""
    first = (await reader.readuntil(b"\r\n")).split(None, 2)
    if len(first) < 2 or not first[0].startswith(b"HTTP/1."):
        raise ValueError(f"the answer begins with {first[:1]!r:.80}")
    headers = {}
    while line := (await reader.readuntil(b"\r\n")).strip():
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip().lower()
    return int(first[1]), headers


async def _plain(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncIterator[bytes]:
    length = headers.get("content-length")
    if length is not None:
        yield await reader.readexactly(int(length))
        return
    while data := await reader.read(1 << 16):
        yield data


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        yield (await reader.readexactly(size + 2))[:-2]


async def _lines(data: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    rest = b""
    async for piece in data:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line.rstrip(b"\r")
    if rest:
        yield rest
