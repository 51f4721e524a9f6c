"""What a head shares with the host: logits, and where candidates are picked what was asked and answered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tandem.devices.base import StepBuffers
from tandem.devices.batch import Batch
from tandem.devices.candidates import ANSWER_HEAD, TAKES_SLOT
from tandem.devices.spec import HeadSpec
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
        self._asked = buffers.candidates
        self._exchanged: dict[str, SharedArray] = {}
        if self._asked is not None:
            names = ("asks", "adjustments", "masks", "answers")
            self._exchanged = {name: shared.get(getattr(self._asked, name)) for name in names}
        self._apart = self._asked is not None and workspace.logits is not None

    @property
    def logits(self) -> View:
        """Where the product goes."""
        apart = self._workspace.logits
        return apart if self._apart and apart else self._shared.view

    def dispatches(self, step: View) -> Iterator[Dispatch]:
        """What follows the product."""
        if self._asked is None:
            return
        places = SamplingPlaces(
            step=step,
            **{name: shared.view for name, shared in self._exchanged.items()},
            slots=self._slots.view if self._slots else step,
            slot_count=self._slot_count,
            logits=self.logits,
            **{name: self._workspace.view(name) for name in ("places", "chosen", "masses")},
        )
        yield from sampling_dispatches(self._spec, places)
        if self._apart:
            yield whole_rows(self._spec, places, self._shared.view)

    def ask(self, batch: Batch) -> frozenset[str]:
        """Shows the GPU what is asked, and tells what there is: grids are launched only `when` there is some."""
        if self._asked is None:
            return frozenset()
        samples = batch.n_samples
        asks = self._asked.asks[:samples]
        adjustments, masks = self._asked.used(samples)
        whole = int(np.count_nonzero(asks[:, 0] == 0))
        for name, rows in (("asks", samples), ("adjustments", adjustments), ("masks", masks)):
            self._exchanged[name].push(0, rows)
        wants = {"asked": whole < samples, "adjusted": adjustments > 0, "whole": whole > 0}
        return frozenset(name for name, wanted in wants.items() if wanted)

    def pull(self, batch: Batch) -> None:
        """Shows the host what came of it: answers, or whole rows."""
        samples = batch.n_samples
        if self._asked is None:
            self._shared.pull(0, samples)
            return
        asks = self._asked.asks[:samples]
        if np.any(asks[:, 0]):
            self._exchanged["answers"].pull(0, samples, ANSWER_HEAD + 2 * int(asks[:, 0].max()))
        if self._slots is not None and np.any(asks[:, 1] & TAKES_SLOT):
            self._slots.pull(0, self._slot_count)
        self._asked.answers[:samples, 0] = asks[:, 0]
        self._bring(np.flatnonzero(asks[:, 0] == 0).tolist())

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
