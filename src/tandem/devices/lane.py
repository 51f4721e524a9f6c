"""A lane: one thread that runs what is submitted, in order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue

from tandem.devices.base import Event
from tandem.errors import DeviceError

Job = tuple[Callable[[], None], tuple[Event, ...], Event | None]


class Lane:
    """A failing run fails its signal's timeline; if it has none, the next run that has one reports it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._unreported: str | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=f"tandem-{name}", daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        return self._closed

    def submit(self, work: Callable[[], None], wait: Sequence[Event], signal: Event | None) -> None:
        """Queues `work`, to start once every event of `wait` is reached."""
        if self._closed:
            raise DeviceError(f"{self._name}: the device is closed")
        self._jobs.put((work, tuple(wait), signal))

    def close(self) -> None:
        """Finishes what is queued, then ends the thread."""
        if not self._closed:
            self._closed = True
            self._jobs.put(None)
            self._thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            work, wait, signal = job
            try:
                if self._unreported is not None:
                    raise DeviceError(self._unreported)
                for event in wait:
                    event.wait()
                if signal is not None:
                    signal.timeline.begin()
                work()
            # Whatever went wrong must reach the one who waits; this thread has nobody else to tell.
            except Exception as error:
                message = str(error) if isinstance(error, DeviceError) else f"{self._name}: {error!r}"
                self._unreported = message if signal is None else None
                if signal is not None:
                    signal.timeline.fail(signal.value, message)
            else:
                if signal is not None:
                    signal.timeline.signal(signal.value)
            # While this thread sleeps it must not keep alive what the run worked with.
            del job, work, wait, signal
