"""A server as a process of its own, and the plainest client."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COMMAND = [sys.executable, "-c", "from tandem.cli import main; main()"]


class Server:
    """`tandem serve` with these arguments, on a free port; its log is kept."""

    def __init__(self, *arguments: str, env: dict[str, str] | None = None) -> None:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}
        environment["PYTHONPATH"] = os.pathsep.join(str(Path(p).resolve()) for p in sys.path if p)
        self.process = subprocess.Popen(
            [*COMMAND, "serve", "--port", "0", *arguments],
            stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, text=True,
        )  # fmt: skip
        assert self.process.stderr is not None
        first = self.process.stderr.readline()
        found = re.search(r"http://([^:]+):(\d+)", first)
        assert found, first + self.process.stderr.read()
        self.host, self.port = found[1], int(found[2])
        self.url = found[0]
        self.log: list[str] = []
        self._reader = threading.Thread(target=lambda: self.log.extend(self.process.stderr), daemon=True)
        self._reader.start()

    def wait_ready(self, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while self.get("/ready")[0] != 200:
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.05)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.host, self.port, timeout=60)

    def request(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, http.client.HTTPMessage]:
        """Status, body (parsed where it is JSON), headers. A body that is not bytes is sent as JSON."""
        connection = self.connect()
        try:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            kind = {} if data is None else {"Content-Type": "application/json"}
            connection.request(method, path, data, {**kind, **(headers or {})})
            answer = connection.getresponse()
            content = answer.read()
            if "json" in answer.headers.get("Content-Type", ""):
                return answer.status, json.loads(content), answer.headers
            return answer.status, content.decode(), answer.headers
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> tuple[int, Any]:
        return self.request("GET", path, headers=headers)[:2]

    def post(self, path: str, body: object, **headers: str) -> tuple[int, Any]:
        return self.request("POST", path, body, headers)[:2]

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[Any]:
        """The events of a stream; the last one is the text `[DONE]`."""
        connection = self.connect()
        try:
            connection.request("POST", path, json.dumps({**body, "stream": True}), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            for line in answer:
                if line.startswith(b"data: "):
                    data = line[6:].strip().decode()
                    yield data if data == "[DONE]" else json.loads(data)
        finally:
            connection.close()

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels."""
        total = 0.0
        for line in self.get("/metrics")[1].splitlines():
            if re.match(rf"{name}(\{{|\s)", line) and all(f'{key}="{value}"' in line for key, value in labels.items()):
                total += float(line.rpartition(" ")[2])
        return total

    @property
    def engine(self) -> int:
        """The process id of the engine, the server's only child."""
        tasks = Path(f"/proc/{self.process.pid}/task")
        (child,) = [int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()]
        return child

    def stop(self, seconds: float = 30) -> int:
        """Ends the server as Ctrl-C does; its exit status."""
        if self.process.poll() is None:
            self.process.terminate()
        status = self.process.wait(seconds)
        self._reader.join(seconds)
        return status
