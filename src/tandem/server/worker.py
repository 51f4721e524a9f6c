"""The engine's process: `python -m tandem.server.worker FD`, where FD is a socket to the server.

One thread: commands that have come are carried out between two steps, and what a step brought is sent as one frame. A
server that does not read for a while never holds up a step: what the socket does not take is kept. When the server is
gone, so is this process.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from tandem.engine.build import plan_engine
from tandem.engine.engine import Engine
from tandem.engine.step import Counters
from tandem.errors import RequestError, TandemError
from tandem.server import frames
from tandem.server.frames import Command, Event, Owned, Pages, Stats, Stepped, frame
from tandem.weights.open import open_checkpoint

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from tandem.engine.request import Request

# Between two looks at who owns which pages.
_LOOK_SECONDS = 0.1


class ServerGone(Exception):
    """Nobody is at the other end."""


class Link:
    """The socket as the engine's thread sees it: nothing here waits unless it is asked to."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._reader = frames.FrameReader()
        self._decoder = msgspec.msgpack.Decoder(Command)
        self._commands: deque[Command] = deque()
        self._unsent = bytearray()
        self._poll = select.poll()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll.register(self._bell, select.POLLIN)
        self._woken = False

    def send(self, event: Event) -> None:
        self._unsent += frame(event)
        self._flush()

    def commands(self, *, wait: bool) -> deque[Command]:
        """What has come and nobody has taken; with `wait`, at least one, unless `wake` was called."""
        self._exchange(0)
        while wait and not self._commands and not self._woken:
            self._exchange(None)
        self._woken = False
        return self._commands

    def next(self) -> Command:
        return self.commands(wait=True).popleft()

    def wake(self) -> None:
        """Ends a wait; may be called from any thread."""
        os.eventfd_write(self._bell, 1)

    def _exchange(self, timeout: float | None) -> None:
        self._poll.register(self._socket, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        for file, happened in self._poll.poll(timeout):
            if file == self._bell:
                os.eventfd_read(self._bell)
                self._woken = True
                continue
            if happened & select.POLLOUT:
                self._flush()
            if happened & ~select.POLLOUT:
                self._receive()

    def _receive(self) -> None:
        try:
            data = self._socket.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError:
            raise ServerGone from None
        if not data:
            raise ServerGone
        self._commands.extend(self._decoder.decode(body) for body in self._reader.feed(data))

    def _flush(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:
            raise ServerGone from None


class Worker:
    """Steps an engine for the server at the other end of a link."""

    def __init__(self, engine: Engine, link: Link) -> None:
        self._engine = engine
        self._link = link
        # Compiling a grammar may take as long as many steps, which go on meanwhile.
        self._compiler = ThreadPoolExecutor(1, "tandem-grammar")
        self._compiling: dict[str, Future[None]] = {}
        self._compiled: deque[Callable[[], None]] = deque()
        self._watched = False
        self._next_look = 0.0
        self._before = Counters()
        self._accepted: list[str] = []
        self._rejected: list[tuple[str, str]] = []

    def run(self) -> None:
        """Until the server is gone."""
        engine = self._engine
        while True:
            commands = self._link.commands(wait=engine.idle)
            while commands:
                self._obey(commands.popleft())
            while self._compiled:
                self._compiled.popleft()()
            began = time.time()
            deltas = engine.step()
            self._link.send(Stepped(deltas, self._accepted, self._rejected, self._stats(began), self._owned()))
            self._accepted, self._rejected = [], []

    def _obey(self, command: Command) -> None:
        if isinstance(command, frames.Submit):
            request = command.request
            if request.params.grammar is None:
                self._submit(request)
            else:
                self._compiling[request.id] = self._compiler.submit(self._compile, request)
        elif isinstance(command, frames.Cancel):
            if command.request_id in self._compiling:
                self._compiling.pop(command.request_id).cancel()
            else:
                self._engine.cancel(command.request_id, command.index)
        elif isinstance(command, frames.Watch):
            self._watched = command.on

    def _submit(self, request: Request, grammar: LLMatcher | None = None) -> None:
        try:
            self._engine.submit(request, grammar)
        except RequestError as error:
            self._rejected.append((request.id, str(error)))
        else:
            self._accepted.append(request.id)

    def _compile(self, request: Request) -> None:
        """On the compiler's thread; what comes of it is taken up between two steps."""
        try:
            grammar = self._engine.check(request)
        except Exception as error:
            # Whatever the compiler raises: nobody else hears of it on this thread, and the client must.
            reason = str(error) if isinstance(error, RequestError) else f"the grammar cannot be compiled: {error!r}"
            self._compiled.append(lambda: self._reject(request.id, reason))
        else:
            self._compiled.append(lambda: self._submit_compiled(request, grammar))
        self._link.wake()

    def _reject(self, request_id: str, reason: str) -> None:
        self._compiling.pop(request_id, None)
        self._rejected.append((request_id, reason))

    def _submit_compiled(self, request: Request, grammar: LLMatcher | None) -> None:
        if self._compiling.pop(request.id, None) is not None:
            self._submit(request, grammar)

    def _stats(self, began: float) -> Stats:
        now, before = replace(self._engine.counters), self._before
        self._before = now
        scheduler = self._engine.scheduler
        return Stats(
            began=began,
            host_seconds=now.host_seconds - before.host_seconds,
            wait_seconds=now.wait_seconds - before.wait_seconds,
            sample_seconds=now.sample_seconds - before.sample_seconds,
            rows=now.rows - before.rows,
            sampled=now.sampled - before.sampled,
            running=len(scheduler.running),
            waiting=scheduler.waiting,
            steps=now.steps,
            cached_tokens=now.cached_tokens,
            preemptions=now.preemptions,
            wasted_rows=now.wasted_rows,
            whole_rows=now.whole_rows,
            allocations=now.allocations,
            bytes_copied=now.bytes_copied,
            pages=[Pages(a.pages, a.used, a.cached, a.evictions) for a in self._engine.cache.allocators],
        )

    def _owned(self) -> list[Owned] | None:
        now = time.monotonic()
        if not self._watched or now < self._next_look:
            return None
        self._next_look = now + _LOOK_SECONDS
        return [
            Owned(
                sequence.request_id,
                sequence.index,
                sequence.computed,
                len(sequence.tokens),
                [
                    list(table[first:])
                    for table, first in zip(sequence.tables.tables, sequence.tables.first, strict=True)
                ],
            )
            for sequence in self._engine.scheduler.running
        ]


def build(start: frames.Start, link: Link) -> Engine:
    """Plans, waits until the server grants the memory, and loads. Raises TandemError."""
    planned = plan_engine(open_checkpoint(start.model), start.config)
    try:
        link.send(frames.Planned(planned.plan.by_memory()["host"]))
        command = link.next()
        assert isinstance(command, frames.Load), command
        engine = planned.load(start.eos_ids, progress=lambda done, total: link.send(frames.Loading(done, total)))
    except BaseException:
        planned.close()
        raise
    plan = planned.plan
    link.send(
        frames.Ready(
            context=plan.limits.context,
            sequences=plan.limits.sequences,
            vocab=planned.spec.vocab,
            plan=plan.to_json(),
            devices={device.info.name: device.info.description for device in planned.devices.values()},
        )
    )
    return engine


def main() -> None:
    # A Ctrl-C is the server's to handle: it lets running requests finish.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    link = Link(socket.socket(fileno=int(sys.argv[1])))
    try:
        start = link.next()
        assert isinstance(start, frames.Start), start
        try:
            engine = build(start, link)
        except TandemError as error:
            link.send(frames.Refused(type(error).__name__, str(error)))
            return
        except MemoryError:
            link.send(frames.Refused("MemoryPlanError", "the system refused memory that was planned; free some"))
            return
        try:
            Worker(engine, link).run()
        finally:
            engine.executor.close()
    except ServerGone:
        pass


if __name__ == "__main__":
    main()
