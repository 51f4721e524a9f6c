"""What a head shares with the host: logits, and where candidates are picked what was asked and answered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tandem.devices.base import StepBuffers
from tandem.devices.batch import Batch
from tandem.devices.candidates import ANSWER_HEAD
from tandem.devices.spec import HeadSpec
from tandem.devices.vulkan.check import Asked, check_asks
from tandem.devices.vulkan.dispatch import Dispatch
from tandem.devices.vulkan.memory import Memory, View
from tandem.devices.vulkan.sampling import SamplingPlaces, sampling_dispatches, whole_rows
from tandem.devices.vulkan.shared import SharedArray, SharedArrays
from tandem.devices.vulkan.workspace import Workspace


class Head:
    """One program's. Where the GPU shares the host's memory it works on the shared logits themselves; across a bus
    they stay in device memory, and rows that are wanted whole are copied.
    """

    def __init__(
        self, spec: HeadSpec, memory: Memory, workspace: Workspace, shared: SharedArrays, buffers: StepBuffers
    ) -> None:
        self._spec = spec
        self._memory = memory
        self._workspace = workspace
        self._shared = shared.get(buffers.logits)
        self._slots = shared.get(buffers.slots) if len(buffers.slots) else None
        self._slot_count = len(buffers.slots)
        # By the batches' turn.
        self._asked = buffers.candidates
        names = ("asks", "adjustments", "masks", "answers")
        self._exchanged: list[dict[str, SharedArray]] = [
            {name: shared.get(getattr(asked, name)) for name in names} for asked in self._asked
        ]
        self._apart = bool(self._asked) and workspace.logits is not None

    @property
    def logits(self) -> View:
        """Where the product goes."""
        apart = self._workspace.logits
        return apart if self._apart and apart else self._shared.view

    def dispatches(self, step: View, turn: int) -> Iterator[Dispatch]:
        """What follows the product, in steps of this turn."""
        if not self._asked:
            return
        places = SamplingPlaces(
            step=step,
            **{name: shared.view for name, shared in self._exchanged[turn].items()},
            slots=self._slots.view if self._slots else step,
            slot_count=self._slot_count,
            logits=self.logits,
            **{name: self._workspace.view(name) for name in ("places", "chosen", "masses")},
        )
        yield from sampling_dispatches(self._spec, places)
        if self._apart:
            yield whole_rows(self._spec, places, self._shared.view)

    def check(self, batch: Batch) -> Asked | None:
        """What is asked; None where every row comes whole. Raises DeviceError for asks that name what is not there."""
        if not self._asked:
            return None
        return check_asks(self._asked[batch.turn], batch, self._spec.vocab, self._slot_count)

    def ask(self, batch: Batch, asked: Asked | None) -> frozenset[str]:
        """Shows the GPU what is asked, and tells what there is: grids are launched only `when` there is some."""
        if asked is None:
            return frozenset()
        exchanged = self._exchanged[batch.turn]
        for name, rows in (("asks", batch.n_samples), ("adjustments", asked.adjustments), ("masks", asked.masks)):
            exchanged[name].push(0, rows)
        wants = {"asked": asked.candidates, "adjusted": asked.adjustments, "whole": asked.whole}
        return frozenset(name for name, wanted in wants.items() if wanted)

    def pull(self, batch: Batch, asked: Asked | None) -> None:
        """Shows the host what came of it: answers, or whole rows."""
        samples = batch.n_samples
        if asked is None:
            self._shared.pull(0, samples)
            return
        if asked.candidates:
            self._exchanged[batch.turn]["answers"].pull(0, samples, ANSWER_HEAD + 2 * asked.most)
        if self._slots is not None and asked.fills_slots:
            self._slots.pull(0, self._slot_count)
        if asked.whole:
            buffers = self._asked[batch.turn]
            buffers.answers[:samples, 0] = buffers.asks[:samples, 0]
            self._bring(np.flatnonzero(buffers.asks[:samples, 0] == 0).tolist())

    def fetch(self, samples: Sequence[int]) -> None:
        """Brings whole rows of the last step."""
        if self._apart:
            row = 4 * self._spec.vocab
            source, target = self.logits, self._shared.view
            self._memory.copy([(source.part(i * row, row), target.part(i * row, row)) for i in samples])
            self._memory.counters.copied += row * len(samples)
        self._bring(samples)

    def _bring(self, samples: Sequence[int]) -> None:
        for sample in samples:
            self._shared.pull(sample, 1)
        self._memory.counters.whole_rows += len(samples)
