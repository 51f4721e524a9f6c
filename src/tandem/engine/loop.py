"""A thread that steps an engine while there is work, and hands each delta to whoever asked."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from tandem.engine.engine import Engine
from tandem.engine.request import Delta, Request
from tandem.errors import DeviceError, TandemError

if TYPE_CHECKING:
    from llguidance import LLMatcher

# Called on the engine's thread; it must not block. One that raises gets nothing more, and its request is cancelled.
Sink = Callable[[Delta], object]


class EngineLoop:
    """Owns the engine and its devices: from now on only the loop's thread calls it, and closes them when it ends.

    All methods may be called from any thread, of this process: a fork does not copy the thread.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._commands: deque[Callable[[], object]] = deque()
        self._sinks: dict[str, Sink] = {}
        self._wake = threading.Condition()
        self._closing = False
        self._failure: str | None = None
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._run, name="tandem-engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request, sink: Sink) -> None:
        """Queues a request; its deltas go to `sink`, the last one with `ended` set.

        Raises RequestError at once for a request that the engine would refuse, DeviceError when the engine is gone.
        """
        grammar = self._engine.check(request)
        self._command(lambda: self._submit(request, grammar, sink))

    def cancel(self, request_id: str, index: int | None = None) -> None:
        """Cancels a request, or one sample of it that has begun to answer; nothing happens if it has ended already, as
        all have once the engine is closed.
        """
        with suppress(DeviceError):
            self._command(lambda: self._engine.cancel(request_id, index))

    def close(self) -> None:
        """Cancels what is running, delivers the last deltas, closes the devices and ends the thread."""
        if os.getpid() != self._process:
            return
        with self._wake:
            self._closing = True
            self._wake.notify()
        # The garbage collector may call this from a thread that it happens to run on: then the thread ends by itself.
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def check_process(self) -> None:
        """Raises DeviceError in a process that was forked from the one with the engine's thread."""
        if os.getpid() != self._process:
            raise DeviceError(
                "this model was loaded before the process forked, and its threads stayed in the parent process; "
                "load the model in the process that uses it"
            )

    def _command(self, command: Callable[[], object]) -> None:
        self.check_process()  # first: the fork may have copied a lock that is held
        with self._wake:
            if self._failure is not None or self._closing:
                raise DeviceError(self._failure or "the engine is closed")
            self._commands.append(command)
            self._wake.notify()

    def _submit(self, request: Request, grammar: LLMatcher | None, sink: Sink) -> None:
        """A request that fails here fails alone."""
        try:
            if self._failure is not None:
                raise DeviceError(self._failure)
            self._engine.submit(request, grammar)
        except Exception as error:
            reason = str(error) if isinstance(error, TandemError) else f"the request failed: {error!r}"
            with suppress(Exception):
                sink(Delta(request_id=request.id, finish_reason="error", error=reason, ended=True))
        else:
            self._sinks[request.id] = sink

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
                with suppress(Exception):
                    sink(Delta(request_id=request_id, finish_reason="error", error=self._failure, ended=True))
            with suppress(Exception):
                self._run_commands()
            raise
        finally:
            self._engine.executor.close()

    def _next_commands(self) -> bool:
        """Runs what has been asked for; waits when there is nothing to do. False when it is time to end."""
        with self._wake:
            while not self._commands and self._engine.idle and not self._closing:
                self._wake.wait()
            closing = self._closing
        self._run_commands()
        return not closing

    def _run_commands(self) -> None:
        for _ in range(len(self._commands)):
            self._commands.popleft()()

    def _deliver(self, deltas: list[Delta]) -> None:
        for delta in deltas:
            try:
                self._sinks[delta.request_id](delta)
            except Exception as error:
                self._sinks[delta.request_id] = _ignore
                self._engine.cancel(delta.request_id)
                # Told as any other exception that a thread of its own would have ended with.
                threading.excepthook(
                    threading.ExceptHookArgs((type(error), error, error.__traceback__, threading.current_thread()))
                )
            if delta.ended:
                del self._sinks[delta.request_id]


def _ignore(delta: Delta) -> None:
    pass
