"""An engine's process as the server sees it: started, spoken to, and missed when it is gone."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import cast

import msgspec

import tandem.errors
from tandem.errors import TandemError
from tandem.server import frames
from tandem.server.frames import Command, Event, FrameReader, Stepped, frame

# What an engine that has lost its server takes to notice and to end.
_END_SECONDS = 10.0


class EngineDied(Exception):
    """The process ended without being asked to; the message says how."""


class EngineProcess(asyncio.Protocol):
    """One `tandem.server.worker`.

    on_step: called with each step's event, on the event loop. `ended` is done when the process is gone; its result says
    how it ended.
    """

    def __init__(self, on_step: Callable[[Stepped], None]) -> None:
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._on_step = on_step
        self._reader = FrameReader()
        self._decoder = msgspec.msgpack.Decoder(Event)
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._transport: asyncio.Transport | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def start(
        self,
        start: frames.Start,
        grant: Callable[[int], Awaitable[None]],
        progress: Callable[[int, int], None],
    ) -> frames.Ready:
        """Spawns the process and loads the model. grant: awaited with the host bytes that the plan takes; it raises to
        refuse them. progress: called with (blocks loaded, blocks).

        Raises what the engine refused with (a TandemError), what `grant` raised, or EngineDied.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            # A session of its own: what a terminal sends to its processes is for the server to handle.
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tandem.server.worker", str(theirs.fileno()),
                pass_fds=(theirs.fileno(),), stdin=asyncio.subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        self._watcher = asyncio.create_task(self._watch(self._process))
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=ours)
        self.send(start)
        try:
            while True:
                event = await self._events.get()
                if isinstance(event, frames.Planned):
                    await grant(event.host_bytes)
                    self.send(frames.Load())
                elif isinstance(event, frames.Loading):
                    progress(event.done, event.total)
                elif isinstance(event, frames.Ready):
                    return event
                elif isinstance(event, frames.Refused):
                    raise refusal(event)
                elif event is None:
                    raise EngineDied(await self.ended)
        except BaseException:
            await asyncio.shield(self.stop())
            raise

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def send(self, command: Command) -> None:
        """Queues a command; one to a process that is gone is lost, as everything it had is."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame(command))

    async def stop(self) -> None:
        """Ends the process, whatever it is doing, and waits for that."""
        if self._transport is not None:
            self._transport.close()
        try:
            await asyncio.wait_for(asyncio.shield(self.ended), _END_SECONDS)
        except TimeoutError:
            if self._process is not None:
                self._process.kill()
            await self.ended

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own are none

    def data_received(self, data: bytes) -> None:
        for body in self._reader.feed(data):
            event = self._decoder.decode(body)
            if isinstance(event, Stepped):
                self._on_step(event)
            else:
                self._events.put_nowait(event)

    def connection_lost(self, error: Exception | None) -> None:
        self._events.put_nowait(None)

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        status = await process.wait()
        if self._transport is not None:
            self._transport.close()
        self.ended.set_result(
            f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        )


def refusal(refused: frames.Refused) -> TandemError:
    """The exception that an engine's process ended with."""
    kind = getattr(tandem.errors, refused.kind, TandemError)
    error: TandemError = kind(refused.message)
    return error
