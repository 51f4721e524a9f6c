"""A thread that steps an engine while there is work, and hands each delta to whoever asked."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from tandem.engine.engine import Engine
from tandem.engine.request import Delta, Request
from tandem.errors import DeviceError

# Called on the engine's thread; it must not block and must not raise.
Sink = Callable[[Delta], object]


class EngineLoop:
    """Owns the engine: from now on only the loop's thread calls it. All methods may be called from any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._commands: deque[Callable[[], object]] = deque()
        self._sinks: dict[str, Sink] = {}
        self._wake = threading.Condition()
        self._closing = False
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._run, name="tandem-engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request, sink: Sink) -> None:
        """Queues a request; its deltas go to `sink`, the last one with `ended` set.

        Raises RequestError at once for a request that the engine would refuse, DeviceError when the engine is gone.
        """
        self._engine.check(request)
        self._command(lambda: self._submit(request, sink))

    def cancel(self, request_id: str, index: int | None = None) -> None:
        """Cancels a request, or one sample of it that has begun to answer; nothing happens if it has ended already, as
        all have once the engine is closed.
        """
        with suppress(DeviceError):
            self._command(lambda: self._engine.cancel(request_id, index))

    def close(self) -> None:
        """Cancels what is running, delivers the last deltas and ends the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _command(self, command: Callable[[], object]) -> None:
        with self._wake:
            if self._failure is not None or self._closing:
                raise DeviceError(self._failure or "the engine is closed")
            self._commands.append(command)
            self._wake.notify()

    def _submit(self, request: Request, sink: Sink) -> None:
        self._sinks[request.id] = sink
        self._engine.submit(request)

    def _run(self) -> None:
        try:
            while self._next_commands():
                self._deliver(self._engine.step())
            for request_id in list(self._sinks):
                self._engine.cancel(request_id)
            self._deliver(self._engine.step())
        except Exception as error:
            # A fault of the engine itself: nobody may wait for it for ever.
            with self._wake:
                self._failure = f"the engine stopped: {error!r}"
            for request_id, sink in self._sinks.items():
                sink(Delta(request_id=request_id, finish_reason="error", error=self._failure, ended=True))
            raise

    def _next_commands(self) -> bool:
        """Runs what has been asked for; waits when there is nothing to do. False when it is time to end."""
        with self._wake:
            while not self._commands and self._engine.idle and not self._closing:
                self._wake.wait()
            if self._closing:
                return False
            commands = list(self._commands)
            self._commands.clear()
        for command in commands:
            command()
        return True

    def _deliver(self, deltas: list[Delta]) -> None:
        for delta in deltas:
            self._sinks[delta.request_id](delta)
            if delta.ended:
                del self._sinks[delta.request_id]
