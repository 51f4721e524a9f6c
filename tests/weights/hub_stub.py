"""A stand-in for huggingface.co on 127.0.0.1: the few requests that downloading a model makes."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubStub:
    """Serves `repositories`: files by repository name.

    gated, broken: repositories whose files ask for a licence, or whose every answer is HTTP 500.
    interrupt: files whose first transfer breaks off half-way. ranges: the Range headers that were received.
    """

    def __init__(self, repositories: dict[str, dict[str, bytes]]) -> None:
        self.repositories = repositories
        self.gated: set[str] = set()
        self.broken: set[str] = set()
        self.interrupt: set[str] = set()
        self.ranges: list[str] = []
        stub = self

        class Handler(_Handler):
            hub = stub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: HubStub

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/[^/]+|/tree/[^/]+)?", path):
            self._api(match[1], (match[2] or "").startswith("/tree"))
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            self._file(match[1], match[2])
        else:
            self._json(404, {"error": "no such page"})

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _api(self, repository: str, tree: bool) -> None:
        files = self.hub.repositories.get(repository)
        if repository in self.hub.broken:
            self._json(500, {"error": "out of order"})
        elif files is None:
            self._json(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif tree:
            self._json(200, [{"type": "file", "path": f, "size": len(d), "oid": _etag(d)} for f, d in files.items()])
        else:
            siblings = [{"rfilename": name} for name in files]
            self._json(200, {"id": repository, "sha": COMMIT, "siblings": siblings})

    def _file(self, repository: str, name: str) -> None:
        data = self.hub.repositories.get(repository, {}).get(name)
        if repository in self.hub.gated:
            self._json(403, {"error": "Access is restricted"}, {"X-Error-Code": "GatedRepo"})
            return
        if data is None:
            self._json(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
            return
        start = 0
        if wanted := self.headers.get("Range"):
            self.hub.ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{_etag(data)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "GET":
            if name in self.hub.interrupt:
                self.hub.interrupt.discard(name)
                data = data[: len(data) // 2]
            self.wfile.write(data[start:])

    def _json(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
