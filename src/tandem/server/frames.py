"""What crosses the socket between the server and an engine's process: length-prefixed msgpack frames.

The server sends commands, the engine sends events; all that a step brought is one event. Token ids and numbers only:
text stays in the server.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import msgspec

from tandem.engine.build import EngineConfig
from tandem.engine.request import Delta, Request

_LENGTH = struct.Struct("<I")


class Start(msgspec.Struct, tag=True):
    """The first command: plan this model. The engine answers with Planned or Refused."""

    model: str
    config: EngineConfig
    eos_ids: list[int]


class Load(msgspec.Struct, tag=True):
    """The plan is granted: load. Answered with Loading, and in the end Ready or Refused."""


class Submit(msgspec.Struct, tag=True):
    request: Request


class Cancel(msgspec.Struct, tag=True):
    """Ends a request, or one sample of it."""

    request_id: str
    index: int | None = None


class Watch(msgspec.Struct, tag=True):
    """From now on events say which sequence owns which pages, or no longer."""

    on: bool


Command = Start | Load | Submit | Cancel | Watch


class Planned(msgspec.Struct, tag=True):
    """host_bytes: what the engine will take of the host's memory."""

    host_bytes: int


class Refused(msgspec.Struct, tag=True):
    """The model cannot be had: the name of the class from tandem.errors, and its sentence."""

    kind: str
    message: str


class Loading(msgspec.Struct, tag=True):
    done: int
    total: int


class Ready(msgspec.Struct, tag=True):
    """plan: MemoryPlan.to_json(). devices: name to description."""

    context: int
    sequences: int
    vocab: int
    plan: dict[str, Any]
    devices: dict[str, str]


class Pages(msgspec.Struct, array_like=True, gc=False):
    """A KV group's pages. evictions: since the start."""

    total: int
    used: int
    cached: int
    evictions: int


class Owned(msgspec.Struct, array_like=True):
    """A running sequence: positions computed of those it has, and its pages, one list per KV group."""

    request_id: str
    index: int
    computed: int
    length: int
    pages: list[list[int]]


class Stats(msgspec.Struct, array_like=True):
    """The engine after a step. began: time.time(). The seconds are this step's: host is Python's, wait the devices',
    sample the sampler's; rows and sampled count the step's batch. The rest are totals since the start.
    """

    began: float
    host_seconds: float
    wait_seconds: float
    sample_seconds: float
    rows: int
    sampled: int
    running: int
    waiting: int
    steps: int
    cached_tokens: int
    preemptions: int
    wasted_rows: int
    whole_rows: int
    allocations: int
    bytes_copied: int
    pages: list[Pages]


class Stepped(msgspec.Struct, tag=True, omit_defaults=True):
    """What happened since the last frame. rejected: (request id, why) of requests that the engine does not accept."""

    deltas: list[Delta] = []
    accepted: list[str] = []
    rejected: list[tuple[str, str]] = []
    stats: Stats | None = None
    owned: list[Owned] | None = None


Event = Planned | Refused | Loading | Ready | Stepped

_encoder = msgspec.msgpack.Encoder()


def frame(message: Command | Event) -> bytes:
    """A message as it goes over the socket."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


class FrameReader:
    """Cuts a stream of bytes into the bodies of frames."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The frames that are whole now."""
        held = self._held
        held += data
        at = 0
        while len(held) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(held, at)
            end = at + _LENGTH.size + length
            if len(held) < end:
                break
            yield bytes(memoryview(held)[at + _LENGTH.size : end])
            at = end
        del held[:at]
