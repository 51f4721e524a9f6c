"""`serve`: the application under uvicorn, from the first signal to the last request."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from tandem.errors import ServerError
from tandem.server.app import create_app
from tandem.server.config import ServerConfig
from tandem.server.hub import ModelHub
from tandem.server.log import configure_logs
from tandem.server.service import Service


def serve(config: ServerConfig, sources: dict[str, str], *, started: Callable[[str], None], log_level: str) -> None:
    """Serves until SIGINT or SIGTERM. started: called with the server's address once it listens.

    Raises ServerError where it cannot listen, and what the first model cannot be loaded for.
    """
    listener = _listen(config.host, config.port)
    hub = ModelHub(sources, config)
    hub.check()
    app = create_app(config, hub)
    configure_logs(log_level)
    server = _Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(config.drain_timeout) + 5,
        ),
        lambda: app.state.service,
        config.drain_timeout,
    )
    started(_address(listener))
    server.run([listener])
    failure = app.state.service.failure
    if failure is not None:
        raise failure


class _Server(uvicorn.Server):
    """Told to end, it lets running requests finish until the deadline, then ends them with a reason."""

    def __init__(self, config: uvicorn.Config, service: Callable[[], Service], drain_timeout: float) -> None:
        super().__init__(config)
        self._service = service
        self._drain_timeout = drain_timeout

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._service().on_failure = self._stop

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Without uvicorn's last word, which is to die of the signal: ending as asked is no failure."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self) -> None:
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        service = self._service()
        service.drain()
        timer = asyncio.get_running_loop().call_later(self._drain_timeout, service.cut_off)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ServerError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        reason = {
            errno.EADDRINUSE: "another program listens there; stop it, or choose another --port",
            errno.EACCES: "ports below 1024 need root; choose another --port",
            errno.EADDRNOTAVAIL: "this machine has no such address; choose another --host",
        }.get(error.errno or 0, error.strerror or str(error))
        raise ServerError(f"cannot listen on {host} port {port}: {reason}") from None
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
