"""The executor: a model's blocks loaded where the placement says, linked into programs, run step by step.

A step's programs are queued in one go, stage after stage, and in each stage micro-batch after micro-batch. A program
waits for those of its micro-batch in the stage before; so lanes work side by side wherever they wait for different
ones: two micro-batches on two devices take turns, slices of a block run at once.

A step may be queued while the one before it is on its way (the two have batches of different turns). It begins where
that has ended: its first programs lie behind the other's head on their lane, or wait for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from tandem._native import Timeline
from tandem.devices.base import (
    CandidateProgram,
    Device,
    Event,
    Float32Array,
    KernelTime,
    KVPool,
    LosableDevice,
    ProfiledProgram,
    Program,
    StepBuffers,
)
from tandem.devices.batch import Batch
from tandem.devices.candidates import CandidateBuffers, candidate_shapes
from tandem.devices.segment import Part, Segment
from tandem.errors import DeviceError
from tandem.memory.arena import Arena
from tandem.memory.plan import MemoryPlan, host_threads, step_buffer_bytes
from tandem.models.spec import ModelSpec
from tandem.pipeline.micro_batches import MicroBatches
from tandem.pipeline.placement import Placement
from tandem.pipeline.timing import PipelineTimes, ProgramTime, StepTime
from tandem.weights.tensor import Tensor


@dataclass(frozen=True, slots=True)
class Link:
    """One program of a step. micro_batch: whose it is; their number for a head that runs once for all. after: the
    programs that it waits for, by number. timeline: grows by one with each step that it is in.
    """

    device: str
    stage: int
    micro_batch: int
    blocks: tuple[int, ...]
    program: Program
    after: tuple[int, ...]
    timeline: Timeline = field(default_factory=Timeline)


@dataclass(frozen=True, slots=True)
class StepHandle:
    """A step on its way. events: of all its programs, the head's last. candidates: what this step asks a head that
    picks them; None where every row comes whole.
    """

    events: Sequence[Event]
    logits: Float32Array
    head: Program
    candidates: CandidateBuffers | None
    ended: Callable[[], None]
    residual: Callable[[], Float32Array]

    def wait(self) -> Float32Array:
        """Logits of the step's samples, [samples, vocab] float32; valid until the next step begins.

        Of a head that picks candidates only the rows that were asked for whole are there. Blocks without the GIL;
        raises DeviceError if the step failed, once nothing of it runs any more.
        """
        try:
            self.events[-1].wait()
        except DeviceError:
            for event in self.events:
                with suppress(DeviceError):
                    event.wait()
            raise
        self.ended()
        return self.logits

    def hidden(self) -> Float32Array:
        """The residual stream that leaves the last block, [rows, hidden] float32 in the order of the batch's rows; once
        the step has ended, and until the next one begins.
        """
        return self.residual()

    def fetch(self, samples: Sequence[int]) -> Float32Array:
        """Logits, in which these samples' rows are there, too, though candidates were asked for. Raises DeviceError."""
        if self.candidates is not None:
            asks = self.candidates.asks
            late = [sample for sample in samples if asks[sample, 0]]
            if late:
                cast(CandidateProgram, self.head).fetch(late)
        return self.logits


class Executor:
    """Owns the loaded blocks, the KV pools (in the order of their group index) and the buffers that programs share.

    `weights(i)` gives block i's tensors; they are let go as soon as the block is loaded.
    """

    def __init__(
        self,
        spec: ModelSpec,
        plan: MemoryPlan,
        placement: Placement,
        devices: Mapping[str, Device],
        weights: Callable[[int], Mapping[str, Tensor]],
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.spec = spec
        self.plan = plan
        self.placement = placement
        self._devices = devices
        self._micro_batches = placement.micro_batches
        self._buffers = self._take_buffers()
        self.pools: tuple[KVPool, ...] = tuple(
            devices[group.device].allocate_kv(group.group, group.pages) for group in plan.groups
        )
        stages = placement.stages()
        self._blocks: dict[tuple[str, Part], Any] = {}
        for segment in (segment for stage in stages for segment in stage):
            for part in segment.parts:
                loadable = part.loadable(spec.blocks[part.block], weights(part.block))
                self._blocks[segment.device, part] = devices[segment.device].load(*loadable)
                del loadable
                if progress is not None:
                    progress(part.block + 1, len(spec.blocks))
        self._links: list[Link] = []
        before: list[tuple[int, ...]] = [()] * self._micro_batches
        for number, stage in enumerate(stages):
            if self._micro_batches > 1 and number == len(stages) - 1:
                after = tuple(index for each in before for index in each)
                self._link(stage[0], number, self._micro_batches, after)
                break
            for at in range(self._micro_batches):
                before[at] = tuple(self._link(segment, number, at, before[at]) for segment in stage)
        # By turn; none where a step is one batch.
        self._splits: list[MicroBatches] = []
        if self._micro_batches > 1:
            page_size = plan.groups[0].group.page_size
            self._splits = [
                MicroBatches(plan.layout, self._micro_batches, plan.micro_rows, page_size, turn)
                for turn in range(plan.layout.turns)
            ]
        self._steps = 0
        self._head_end: Event | None = None
        # Of all steps that have ended well.
        self.times = PipelineTimes()
        # While it is a list, steps are noted there.
        self.profile: list[StepTime] | None = None
        # For a profile with kernels: programs run one after another, those that can tell with their kernels timed.
        self.time_kernels = False

    @property
    def programs(self) -> list[Program]:
        return [link.program for link in self._links]

    @property
    def threads(self) -> int:
        """Of the host, between two steps."""
        return host_threads(self._devices.values())

    @property
    def lost(self) -> frozenset[str]:
        """Devices that have gone away."""
        return frozenset(
            name for name, device in self._devices.items() if isinstance(device, LosableDevice) and device.lost
        )

    @property
    def candidates(self) -> tuple[CandidateBuffers, ...]:
        """Where to ask a head that picks candidates, by the batch's turn, before a step is submitted; else empty."""
        return self._buffers[-1].candidates

    def submit(self, batch: Batch) -> StepHandle:
        """Queues the whole step. `batch` must stay untouched until done; its rows lie in the order of its sequences."""
        self._steps += 1
        batches, used = [batch], 1
        split = self._splits[batch.turn] if self._splits else None
        if split is not None:
            used = split.split(batch)
            batches = [*split.batches, split.head]
        head, before = self._links[-1], self._head_end
        in_flight = before is not None and before.timeline.value < before.value
        # Of each program; None of those whose micro-batch has no rows.
        events: list[Event | None] = []
        ran: list[ProgramTime] = []
        for link in self._links:
            if used <= link.micro_batch < self._micro_batches:
                events.append(None)
                continue
            signal = Event(link.timeline, self._steps)
            if self.time_kernels:
                ran.append(_timed(link, batches[link.micro_batch], signal))
            else:
                wait = [event for i in link.after if (event := events[i]) is not None]
                if in_flight and not link.after and link.device != head.device:
                    assert before is not None
                    wait.append(before)
                link.program.submit(batches[link.micro_batch], wait, signal)
            events.append(signal)
        self._head_end = events[-1]

        rows, samples = batch.n_rows, batch.n_samples

        def ended() -> None:
            if not ran:
                ran.extend(self._ran(events))
                self.times.add(ran)
            if self.profile is not None:
                self.profile.append(StepTime(rows, samples, ran))

        def residual() -> Float32Array:
            hidden = self._buffers[-1].hidden
            return hidden[:rows] if split is None else split.join(hidden)

        going = [event for event in events if event is not None]
        logits = self._buffers[-1].logits[: batch.n_samples]
        asked = self.candidates[batch.turn] if self.candidates else None
        return StepHandle(going, logits, head.program, asked, ended, residual)

    def close(self) -> None:
        """Finishes what is queued, closes the devices, and lets go of blocks and pages."""
        for device in self._devices.values():
            device.close()
        self._links.clear()
        self._blocks.clear()
        self.pools = ()

    def _take_buffers(self) -> list[StepBuffers]:
        """Each micro-batch's, and the head's where it stands alone: one residual stream, of which each has its rows."""
        spec, plan, count = self.spec, self.plan, self._micro_batches
        layout, slices = plan.layout, self.placement.slices
        picks = self._devices[self.placement.owners[-1]].info.candidates > 0
        arena = Arena(step_buffer_bytes(spec, layout, candidates=picks, micro_batches=count, slices=slices))
        hidden = arena.take((layout.max_rows, spec.hidden), np.float32)
        logits = arena.take((layout.max_samples, spec.vocab), np.float32)
        slots = arena.take((layout.max_sequences,), np.int32)
        shapes = candidate_shapes(layout.max_samples, layout.max_sequences, spec.vocab) if picks else {}
        candidates = tuple(
            CandidateBuffers(**{name: arena.take(shapes[name], np.int32) for name in shapes})
            for _ in range(layout.turns if picks else 0)
        )

        def buffers(first: int, rows: int, partials: Float32Array) -> StepBuffers:
            return StepBuffers(hidden[first : first + rows], logits, partials, slots, candidates)

        none = np.zeros((0, layout.max_rows, spec.hidden), dtype=np.float32)
        taken = []
        for at in range(count):
            shape = (slices, plan.micro_rows, spec.hidden)
            partials = arena.take(shape, np.float32) if slices else none[:, : plan.micro_rows]
            taken.append(buffers(at * plan.micro_rows, plan.micro_rows, partials))
        if count > 1:
            taken.append(buffers(0, layout.max_rows, none))
        arena.seal()
        return taken

    def _link(
        self,
        segment: Segment,
        stage: int,
        micro_batch: int,
        after: tuple[int, ...],
    ) -> int:
        """Links a segment for a micro-batch; the number of the program."""
        name, buffers = segment.device, self._buffers[micro_batch]
        loaded = [self._blocks[name, part] for part in segment.parts]
        pools = [pool for pool, group in zip(self.pools, self.plan.groups, strict=True) if group.device == name]
        program = self._devices[name].link(loaded, rows=len(buffers.hidden), buffers=buffers, kv=pools)
        numbers = tuple(part.block for part in segment.parts)
        self._links.append(Link(name, stage, micro_batch, numbers, program, after))
        return len(self._links) - 1

    def _ran(self, events: Sequence[Event | None]) -> list[ProgramTime]:
        """When the programs of a step ran: those that have an event."""
        numbers: dict[int, int] = {}
        programs = []
        for index, (link, event) in enumerate(zip(self._links, events, strict=True)):
            if event is None:
                continue
            numbers[index] = len(numbers)
            start, end = link.timeline.run(event.value)
            after = tuple(numbers[i] for i in link.after if i in numbers)
            programs.append(
                ProgramTime(link.device, start, end - start, [], link.stage, link.micro_batch, link.blocks, after)
            )
        return programs


def _timed(link: Link, batch: Batch, signal: Event) -> ProgramTime:
    """Runs a program by itself, and waits for it. Raises DeviceError where it fails."""
    start = time.perf_counter()
    kernels: list[KernelTime] = []
    if isinstance(link.program, ProfiledProgram):
        kernels = link.program.profile(batch)
        signal.timeline.signal(signal.value)
    else:
        link.program.submit(batch, (), signal)
        signal.wait()
    seconds = time.perf_counter() - start
    return ProgramTime(link.device, start, seconds, kernels, link.stage, link.micro_batch, link.blocks)
