"""A stand-in for a server with OpenAI's API, as well and as badly behaved as a test wants."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class ServeStub:
    """Streams `pieces` pieces of text `interval` seconds apart, and then usage of twice as many tokens.

    behave: by the number of a request's prompt, which is its first word: "429", "break" (no end), "garbage", "error"
    (in the stream), "hang". chunked: whether answers come in chunks; else until the connection is closed.
    """

    def __init__(self, *, pieces: int = 4, interval: float = 0.0, chunked: bool = True) -> None:
        self.pieces, self.interval, self.chunked = pieces, interval, chunked
        self.behave: dict[int, str] = {}
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.running = self.most = 0
        self.lock = threading.Lock()
        stub = self

        class Handler(_Handler):
            serve = stub

        class Listening(ThreadingHTTPServer):
            request_queue_size = 64

        self._server = Listening(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    serve: ServeStub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        body = json.dumps({"object": "list", "data": [{"id": "stub-1"}, {"id": "stub-2"}]}).encode()
        self.send_response(200 if self.path == "/v1/models" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        serve = self.serve
        with serve.lock:
            serve.running += 1
            serve.most = max(serve.most, serve.running)
        whole = False
        try:
            whole = self._answer()
        finally:
            with serve.lock:
                serve.running -= 1
        # Whoever reads this may ask again at once, and is not to be counted twice.
        if whole:
            self._write(b"data: [DONE]\n\n")
            self._write(b"")

    def _answer(self) -> bool:
        """Whether it came to the end of a stream."""
        serve = self.serve
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        chat = self.path == "/v1/chat/completions"
        text = body["messages"][0]["content"] if chat else body["prompt"]
        number = int(text.partition(":")[0])
        with serve.lock:
            serve.bodies.append(body)
            serve.keys.append(self.headers.get("Authorization"))
        behaviour = serve.behave.get(number, "")
        if behaviour == "hang":
            time.sleep(1.5)
        if behaviour == "429":
            error = b'{"error": {"message": "the queue is full"}}'
            self.send_response(429)
            self.send_header("Content-Length", str(len(error)))
            self.end_headers()
            self.wfile.write(error)
            return False
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked") if serve.chunked else self.send_header("Connection", "close")
        self.end_headers()
        if chat:
            self._send({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        for at in range(serve.pieces):
            time.sleep(serve.interval)
            if behaviour and at == 1:
                if behaviour == "garbage":
                    self._write(b"data: {nonsense\n\n")
                elif behaviour == "error":
                    self._send({"error": {"message": "the device was lost"}})
                self.close_connection = True
                return False
            self._send({"choices": [{"index": 0, **({"delta": {"content": "ab"}} if chat else {"text": "ab"})}]})
        end = {"index": 0, "finish_reason": "stop", **({"delta": {}} if chat else {"text": ""})}
        self._send({"choices": [end]})
        usage = {"prompt_tokens": len(text.split()), "completion_tokens": 2 * serve.pieces}
        self._send({"choices": [], "usage": usage})
        return True

    def _send(self, event: dict[str, Any]) -> None:
        self._write(f"data: {json.dumps(event)}\r\n\r\n".encode())

    def _write(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data) if self.serve.chunked else data)
