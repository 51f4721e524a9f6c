"""What a GPU must never see: a batch whose rows, pages or samples point outside what a program was linked with.

The looking is done by the native module, as it is part of every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tandem import _native
from tandem.devices.batch import Batch
from tandem.devices.candidates import CandidateBuffers
from tandem.devices.vulkan.kv import VulkanKVPool
from tandem.errors import DeviceError


class BatchCheck:
    """For one program: its rows, its head's samples (0 without one), its embedding's vocabulary, and its pools."""

    def __init__(self, rows: int, samples: int, vocab: int | None, slots: int, pools: Sequence[VulkanKVPool]) -> None:
        groups = [(pool.group.index, pool.group.window or 0, pool.group.page_size, pool.pages) for pool in pools]
        vocab = -1 if vocab is None else vocab
        self._bounds = _native.BatchBounds("vulkan", rows, samples, vocab, slots, groups)

    def pages(self, batch: Batch) -> int:
        """How many entries of its page tables the program may read. Raises DeviceError, naming what is wrong."""
        try:
            return self._bounds.check(batch.data)
        except ValueError as error:
            raise DeviceError(str(error)) from None


class Asked(NamedTuple):
    """What the asks of a batch's samples come to: rows that ask for candidates, `most` of them at most; rows that are
    wanted whole; how many adjustments and masks are in use; whether a token goes to its slot.
    """

    candidates: int
    whole: int
    adjustments: int
    masks: int
    most: int
    fills_slots: bool


def check_asks(asked: CandidateBuffers, batch: Batch, vocab: int, slots: int) -> Asked:
    """Raises DeviceError for asks that name what is not there."""
    try:
        found = _native.check_asks(batch.data, asked.asks, asked.adjustments, len(asked.masks), vocab, slots)
    except ValueError as error:
        raise DeviceError(str(error)) from None
    return Asked(*found)
