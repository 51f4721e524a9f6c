"""Picking candidates, as dispatches behind a head's product: rows of logits to answers, as candidates.py has them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tandem._native import MAX_CANDIDATES, MAX_DRAWN
from tandem.devices.spec import HeadSpec
from tandem.devices.vulkan.dispatch import LANES, ROW_LANES, Dispatch, Grid, Use, push
from tandem.devices.vulkan.memory import View

# Logits that one workgroup picks from, and workgroups that share a row's adjustments or its copy.
CHUNK = 4096
_SHARE = 16
# Bytes of a chunk's masses: in all, twice, and before each drawn token.
_MASSES = 8 * (2 + MAX_DRAWN)


@dataclass(frozen=True, slots=True)
class SamplingPlaces:
    """Buffers of the step that the host shares, and scratch: as `scratch_bytes` names it."""

    step: View
    asks: View
    adjustments: View
    masks: View
    answers: View
    slots: View
    slot_count: int
    logits: View
    places: View
    chosen: View
    masses: View


def scratch_bytes(spec: HeadSpec, samples: int) -> dict[str, int]:
    """Bytes of each scratch buffer, for steps of up to `samples` rows."""
    chunks = _chunks(spec)
    return {
        "places": samples * chunks * MAX_CANDIDATES * 8,
        "chosen": samples * MAX_CANDIDATES * 8,
        "masses": samples * chunks * _MASSES,
    }


def sampling_dispatches(spec: HeadSpec, at: SamplingPlaces) -> Iterator[Dispatch]:
    """Adjust the logits, pick in two rounds, weigh, answer, and undo the adjustments."""
    chunks, each = _chunks(spec), Grid(1, sampled=True, when="asked")
    by_chunk = Grid(chunks, sampled=True, when="asked")
    shape = push(spec.vocab, CHUNK, chunks)
    common = (Use(0, at.step), Use(1, at.asks))
    yield _adjust(spec, at, undo=False)
    first = (*common, Use(2, at.logits), Use(3, at.masks), Use(4, at.places, "write"))
    yield Dispatch("select", (ROW_LANES, 0), first, shape, by_chunk)
    second = (*common, Use(2, at.places), Use(3, at.masks), Use(4, at.chosen, "write"))
    yield Dispatch("select", (ROW_LANES, 1), second, shape, each)
    weighed = (*common, Use(2, at.logits), Use(3, at.masks), Use(4, at.chosen), Use(5, at.masses, "write"))
    yield Dispatch("mass", (LANES,), weighed, shape, by_chunk)
    told = (Use(4, at.answers, "write"), Use(5, at.slots, "write"), Use(6, at.logits))
    answered = (*common, Use(2, at.chosen), Use(3, at.masses), *told)
    yield Dispatch("answer", (LANES,), answered, push(spec.vocab, chunks, at.slot_count), each)
    yield _adjust(spec, at, undo=True)


def whole_rows(spec: HeadSpec, at: SamplingPlaces, target: View) -> Dispatch:
    """Copies the rows that are wanted whole to where the host sees them."""
    uses = (Use(0, at.step), Use(1, at.asks), Use(2, at.logits), Use(3, target, "write"))
    return Dispatch("rows", (LANES,), uses, push(spec.vocab), Grid(_SHARE, sampled=True, when="whole"))


def _adjust(spec: HeadSpec, at: SamplingPlaces, *, undo: bool) -> Dispatch:
    uses = (Use(0, at.step), Use(1, at.asks), Use(2, at.adjustments, "both"), Use(3, at.logits, "both"))
    grid = Grid(_SHARE, sampled=True, when="adjusted")
    return Dispatch("adjust", (LANES, int(undo)), uses, push(spec.vocab), grid)


def _chunks(spec: HeadSpec) -> int:
    return -(-spec.vocab // CHUNK)
