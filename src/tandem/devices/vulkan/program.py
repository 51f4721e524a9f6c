"""A program: linked blocks that replay. What changes from step to step is one small buffer.

A step that waits for no other device is submitted to the GPU by the caller, behind what runs there, so that the GPU
goes from one step to the next by itself; the lane waits for its end. Steps in flight have different turns: each turn
has step data, asks and answers of its own, and recordings that name them. All else that a step touches, the next one
touches after it, as each command buffer begins with a barrier.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import numpy as np

from tandem._native import Timeline, copy_batch
from tandem.devices.base import Event, KernelTime, StepBuffers
from tandem.devices.batch import Batch, BatchLayout
from tandem.devices.lane import Lane
from tandem.devices.spec import CombineSpec, EmbedSpec, HeadSpec
from tandem.devices.vulkan.blocks import VulkanBlock
from tandem.devices.vulkan.check import Asked, BatchCheck
from tandem.devices.vulkan.context import Context
from tandem.devices.vulkan.dispatch import Dispatch, Table, grids
from tandem.devices.vulkan.head import Head
from tandem.devices.vulkan.kv import VulkanKVPool
from tandem.devices.vulkan.memory import Buffer, Memory, View, rounded
from tandem.devices.vulkan.operations import copy_rows, program_dispatches
from tandem.devices.vulkan.pipelines import Pipelines
from tandem.devices.vulkan.products import Kernels
from tandem.devices.vulkan.profile import Costs, Timestamps, variant
from tandem.devices.vulkan.projections import Places
from tandem.devices.vulkan.recording import GROUPS_BYTES, Recording
from tandem.devices.vulkan.shared import SharedArrays
from tandem.devices.vulkan.tiles import bucket_of
from tandem.devices.vulkan.workspace import Workspace

_TABLE_ENTRIES = 64


@dataclass(slots=True)
class StepData:
    """The batch's bytes and the table of workgroup counts, one host-visible buffer for the steps of a turn.

    flying: the number of the submission that reads it, until the lane has seen its end.
    """

    buffer: Buffer
    batch: View
    table: View
    flying: int | None = None


class StepKind(NamedTuple):
    """What a recording is made for: buckets of rows and samples, the batch's turn, and whether no sequence has two
    rows.
    """

    rows: int
    samples: int
    turn: int
    single: bool


@dataclass(frozen=True, slots=True)
class Checked:
    """A batch that may be seen by the GPU. pages: entries of its page tables that the program may read."""

    batch: Batch
    pages: int
    asked: Asked | None


@dataclass(slots=True)
class Machine:
    """What the programs of a device share. They run one at a time, so they share step data, too: by batch layout and
    turn. left: runs that the lane was given and that submit by themselves; done: how many of them have.
    """

    context: Context
    memory: Memory
    pipelines: Pipelines
    workspace: Workspace
    shared: SharedArrays
    lane: Lane
    kernels: Kernels
    steps: dict[BatchLayout, list[StepData]] = field(default_factory=dict)
    left: int = 0
    done: int = 0

    def step_data(self, layout: BatchLayout) -> list[StepData]:
        """Of all turns; made at the first step of a batch layout."""
        if layout not in self.steps:
            batch_bytes = rounded(layout.size * 4)
            self.steps[layout] = []
            for _ in range(layout.turns):
                buffer = self.memory.host(_turn_bytes(layout), near=True)
                table = View(buffer, batch_bytes, _TABLE_ENTRIES * GROUPS_BYTES)
                self.steps[layout].append(StepData(buffer, View(buffer, 0, batch_bytes), table))
        return self.steps[layout]


def step_data_bytes(layout: BatchLayout) -> int:
    """Bytes of the step data for batches of this layout, all turns together."""
    return layout.turns * _turn_bytes(layout)


def _turn_bytes(layout: BatchLayout) -> int:
    return rounded(rounded(layout.size * 4) + _TABLE_ENTRIES * GROUPS_BYTES)


class VulkanProgram:
    """`rows` is the largest batch it takes."""

    def __init__(
        self,
        machine: Machine,
        blocks: tuple[VulkanBlock, ...],
        rows: int,
        buffers: StepBuffers,
        pools: Mapping[int, VulkanKVPool],
    ) -> None:
        self.rows = rows
        self._machine = machine
        self._blocks = blocks
        self._pools = pools
        self._steps: list[StepData] = []
        self._recordings: dict[StepKind, tuple[Recording, Table]] = {}
        works = [block.work for block in blocks]
        self._vocab = next((work.vocab for work in works if isinstance(work, EmbedSpec)), None)
        head = next((work for work in works if isinstance(work, HeadSpec)), None)
        self._slot_count = len(buffers.slots)
        samples = len(buffers.logits) if head else 0
        groups = list({id(pool): pool for pool in pools.values()}.values())
        self._bounds = BatchCheck(rows, samples, self._vocab, self._slot_count, groups)
        self._width = buffers.hidden.shape[1]
        self._partial_rows = buffers.partials.shape[1]
        machine.workspace.reserve(works, rows, samples)
        self._generation = machine.workspace.generation
        shared = machine.shared
        self._head = Head(head, machine.memory, machine.workspace, shared, buffers) if head else None
        self._slots = shared.get(buffers.slots) if self._vocab is not None and self._slot_count else None
        # The program's own slices, and those that it adds up.
        self._written = [block.slice.index for block in blocks if block.slice is not None]
        self._added = max((work.slices for work in works if isinstance(work, CombineSpec)), default=0)
        self._partials = shared.get(buffers.partials) if self._written or self._added else None
        self._hidden = shared.get(buffers.hidden)
        self._reads_hidden = not isinstance(works[0], EmbedSpec)
        self._writes_hidden = not all(block.slice is not None or isinstance(block.work, HeadSpec) for block in blocks)

    def submit(self, batch: Batch, wait: Sequence[Event] = (), signal: Event | None = None) -> None:
        machine, events = self._machine, tuple(wait)
        work: Callable[[], None]
        if events or machine.lane.closed or machine.left != machine.done or not self._free(batch):
            machine.left += 1
            work = lambda: self._run(batch, events, signal)  # noqa: E731
        else:
            work = self._start(batch)
        machine.lane.submit(work, (), signal)

    def profile(self, batch: Batch) -> list[KernelTime]:
        """See ProfiledProgram: a timestamp after every dispatch."""
        times: list[KernelTime] = []
        done = Event(Timeline(), 1)
        self._machine.lane.submit(lambda: times.extend(self._run_timed(batch)), (), done)
        done.wait()
        return times

    def fetch(self, samples: Sequence[int]) -> None:
        """See CandidateProgram."""
        done = Event(Timeline(), 1)
        head = self._head
        assert head is not None
        self._machine.lane.submit(lambda: head.fetch(samples), (), done)
        done.wait()

    def _check(self, batch: Batch) -> Checked:
        """Raises DeviceError for a batch that the GPU must not see."""
        return Checked(batch, self._bounds.pages(batch), self._head.check(batch) if self._head else None)

    def _run_timed(self, batch: Batch) -> list[KernelTime]:
        checked = self._check(batch)
        machine, step = self._machine, self._step_data(batch)
        dispatches = self._dispatches(self._kind(batch), step)
        found = grids(dispatches)
        timestamps = Timestamps(machine.context, len(dispatches))
        try:
            recording = Recording(machine.context, machine.pipelines, dispatches, found, step.table, timestamps.queries)
            self._fill(step, checked, Table(found))
            self._push(batch)
            machine.context.run(recording.commands)
            self._pull(checked)
            costs = Costs(self._blocks, self._pools, batch)
            return [
                KernelTime(each.shader, variant(each), each.block, took, *costs.of(each))
                for each, took in zip(dispatches, timestamps.read(), strict=True)
            ]
        finally:
            timestamps.close()

    def _free(self, batch: Batch) -> bool:
        """Whether nothing that the host writes for this step is still read by one before it."""
        return self._step_data(batch).flying is None and not self._copies_in(batch)

    def _start(self, batch: Batch) -> Callable[[], None]:
        """Submits a step, behind what runs; returns what the lane has left to do, which raises what went wrong."""
        try:
            checked, step = self._check(batch), self._step_data(batch)
            recording, table = self._recording(self._kind(batch), step)
            self._fill(step, checked, table)
            step.flying = submitted = self._machine.context.queue.submit(recording.commands)
        except Exception as error:
            return partial(_raise, error)

        def finish() -> None:
            try:
                self._machine.context.finish(submitted)
            finally:
                step.flying = None
            self._pull(checked)

        return finish

    def _run(self, batch: Batch, events: tuple[Event, ...], signal: Event | None) -> None:
        """One step. What need not wait for `events` is done before: where the step's arrays are mapped, submitting."""
        try:
            self._submit_and_wait(batch, events, signal)
        finally:
            self._machine.done += 1

    def _submit_and_wait(self, batch: Batch, events: tuple[Event, ...], signal: Event | None) -> None:
        queue = self._machine.context.queue
        submitted = None
        try:
            checked, step = self._check(batch), self._step_data(batch)
            recording, table = self._recording(self._kind(batch), step)
            self._fill(step, checked, table)
            if events and not self._copies_in(batch):
                submitted = queue.submit(recording.commands, held=True)
        finally:
            # Also when this step fails: who comes after it must find nobody at work on what it shares.
            try:
                for event in events:
                    event.wait()
            finally:
                if signal is not None:
                    signal.timeline.begin()
                if submitted is not None:
                    queue.release()
        if submitted is None:
            self._push(batch)
            submitted = queue.submit(recording.commands)
        self._machine.context.finish(submitted)
        self._pull(checked)

    def _copies_in(self, batch: Batch) -> bool:
        """Whether a step begins with copies of what other devices have written."""
        read = [self._hidden] if self._reads_hidden else []
        read += [self._partials] if self._partials is not None and self._added else []
        return not all(shared.imported for shared in read) or self._copies_slots(batch)

    def _copies_slots(self, batch: Batch) -> bool:
        mirrored = self._slots is not None and not self._slots.imported
        return mirrored and bool(np.any(batch.rows[: batch.n_rows, 2] < 0))

    def _push(self, batch: Batch) -> None:
        if self._slots is not None and self._copies_slots(batch):
            self._slots.push(0, self._slot_count)
        if self._reads_hidden:
            self._hidden.push(0, batch.n_rows)
        if self._partials is not None and self._added:
            self._partials.push(0, self._added)

    def _pull(self, checked: Checked) -> None:
        if self._writes_hidden:
            self._hidden.pull(0, checked.batch.n_rows)
        if self._head is not None:
            self._head.pull(checked.batch, checked.asked)
        if self._partials is not None:
            for index in self._written:
                self._partials.pull(index, 1)

    def _step_data(self, batch: Batch) -> StepData:
        steps = self._machine.step_data(batch.layout)
        generation = self._machine.workspace.generation
        if steps is not self._steps or generation != self._generation:
            self._steps, self._generation = steps, generation
            self._recordings.clear()
        return steps[batch.turn]

    def _kind(self, batch: Batch) -> StepKind:
        samples = bucket_of(batch.n_samples) if self._head else 1
        single = bool(self._pools) and bool(np.all(batch.sequences[: batch.n_sequences, 1] <= 1))
        return StepKind(bucket_of(batch.n_rows), samples, batch.turn, single)

    def _recording(self, key: StepKind, step: StepData) -> tuple[Recording, Table]:
        if key not in self._recordings:
            dispatches = self._dispatches(key, step)
            found = grids(dispatches)
            if len(found) > _TABLE_ENTRIES:
                raise AssertionError(f"{len(found)} kinds of grids")
            machine = self._machine
            recording = Recording(machine.context, machine.pipelines, dispatches, found, step.table)
            self._recordings[key] = (recording, Table(found))
        return self._recordings[key]

    def _dispatches(self, kind: StepKind, step: StepData) -> list[Dispatch]:
        resident = self._machine.workspace.resident
        hidden = resident or self._hidden.view
        nowhere = step.batch
        places = Places(
            workspace=self._machine.workspace,
            step=step.batch,
            hidden=hidden,
            logits=self._head.logits if self._head else nowhere,
            partials=self._partials.view if self._partials else nowhere,
            slots=self._slots.view if self._slots else nowhere,
            slot_count=self._slot_count,
            rows=self._partial_rows,
            batch_rows=self.rows,
            row_bucket=kind.rows,
            sample_bucket=kind.samples,
            single=kind.single,
            kernels=self._machine.kernels,
        )
        dispatches = []
        if resident and self._reads_hidden:
            dispatches.append(copy_rows(places, self._hidden.view, hidden, self._width))
        dispatches += program_dispatches(self._blocks, places, self._pools)
        if self._head is not None:
            sampling = self._head.dispatches(step.batch, kind.turn)
            dispatches += [replace(each, block="sampling") for each in sampling]
        if resident and self._writes_hidden:
            dispatches.append(copy_rows(places, hidden, self._hidden.view, self._width))
        return dispatches

    def _fill(self, step: StepData, checked: Checked, table: Table) -> None:
        mapped, batch = step.buffer.mapped, checked.batch
        assert mapped is not None
        copied = copy_batch(batch.data, mapped, checked.pages)
        wants: frozenset[str] = frozenset()
        if self._head is not None:
            wants = self._head.ask(batch, checked.asked)
        groups = table.groups(batch, wants)
        start = step.table.offset
        mapped[start : start + groups.nbytes] = groups
        self._machine.memory.counters.copied += copied + groups.nbytes


def _raise(error: Exception) -> None:
    raise error
