"""The executor: a model's blocks loaded where the placement says, linked into programs, run step by step."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from tandem._native import Timeline
from tandem.devices.base import (
    CandidateProgram,
    Device,
    Event,
    Float32Array,
    KernelTime,
    KVPool,
    ProfiledProgram,
    Program,
    StepBuffers,
)
from tandem.devices.batch import Batch
from tandem.devices.candidates import CandidateBuffers, candidate_shapes
from tandem.memory.arena import Arena
from tandem.memory.plan import MemoryPlan, step_buffer_bytes
from tandem.models.spec import ModelSpec
from tandem.pipeline.placement import Placement
from tandem.weights.tensor import Tensor


@dataclass(frozen=True, slots=True)
class ProgramTime:
    """One program of a profiled step. start: of time.perf_counter, in seconds, as the host saw it; kernels: in order,
    of devices that tell.
    """

    device: str
    start: float
    seconds: float
    kernels: list[KernelTime]


@dataclass(frozen=True, slots=True)
class StepTime:
    """A profiled step."""

    rows: int
    samples: int
    programs: list[ProgramTime]


@dataclass(frozen=True, slots=True)
class StepHandle:
    """A step on its way. candidates: where the head picks them; None where every row comes whole."""

    done: Event
    logits: Float32Array
    head: Program
    candidates: CandidateBuffers | None

    def wait(self) -> Float32Array:
        """Logits of the step's samples, [samples, vocab] float32; valid until the next step is submitted.

        Of a head that picks candidates only the rows that were asked for whole are there. Blocks without the GIL;
        raises DeviceError if the step failed.
        """
        self.done.wait()
        return self.logits

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
        self._devices = devices
        rows = plan.layout.max_rows
        layout = plan.layout
        picks = devices[placement.owners[-1]].info.candidates > 0
        arena = Arena(step_buffer_bytes(spec, layout, candidates=picks))
        buffers = StepBuffers(
            hidden=arena.take((rows, spec.hidden), np.float32),
            logits=arena.take((layout.max_samples, spec.vocab), np.float32),
            partials=np.zeros((0, rows, spec.hidden), dtype=np.float32),
            slots=arena.take((layout.max_sequences,), np.int32),
        )
        if picks:
            shapes = candidate_shapes(layout.max_samples, layout.max_sequences, spec.vocab)
            buffers.candidates = CandidateBuffers(**{name: arena.take(shapes[name], np.int32) for name in shapes})
        arena.seal()
        self._buffers = buffers
        self.pools: tuple[KVPool, ...] = tuple(
            devices[group.device].allocate_kv(group.group, group.pages) for group in plan.groups
        )
        blocks = []
        for index, (block, name) in enumerate(zip(spec.blocks, placement.owners, strict=True)):
            blocks.append(devices[name].load(block, weights(index)))
            if progress is not None:
                progress(index + 1, len(spec.blocks))
        self.programs: list[Program] = []
        segments = [stage[0] for stage in placement.stages()]
        for segment in segments:
            name, start, stop = segment.device, segment.parts[0].block, segment.parts[-1].block + 1
            pools = [pool for pool, group in zip(self.pools, plan.groups, strict=True) if group.device == name]
            program = devices[name].link(blocks[start:stop], rows=rows, buffers=buffers, kv=pools)
            self.programs.append(program)
        # One timeline per program: its values grow by one a step, whatever lane it is on.
        self._timelines = [Timeline() for _ in self.programs]
        self._owners = [segment.device for segment in segments]
        self._steps = 0
        # While it is a list, steps run a program at a time and are noted there.
        self.profile: list[StepTime] | None = None

    @property
    def threads(self) -> int:
        """Of the host, as many as the devices compute with: they are free between two steps."""
        return max(device.info.threads or 1 for device in self._devices.values())

    @property
    def candidates(self) -> CandidateBuffers | None:
        """Where to ask a head that picks candidates, before a step is submitted."""
        return self._buffers.candidates

    def submit(self, batch: Batch) -> StepHandle:
        """Queues the whole step: each program waits for the one before it. `batch` must stay untouched until done."""
        self._steps += 1
        wait: Sequence[Event] = ()
        times: list[ProgramTime] = []
        for program, timeline, owner in zip(self.programs, self._timelines, self._owners, strict=True):
            signal = Event(timeline, self._steps)
            if self.profile is None:
                program.submit(batch, wait, signal)
            else:
                times.append(_timed(program, batch, signal, owner))
            wait = (signal,)
        if self.profile is not None:
            self.profile.append(StepTime(batch.n_rows, batch.n_samples, times))
        logits = self._buffers.logits[: batch.n_samples]
        return StepHandle(wait[0], logits, self.programs[-1], self._buffers.candidates)

    def close(self) -> None:
        """Finishes what is queued and closes the devices."""
        for device in self._devices.values():
            device.close()


def _timed(program: Program, batch: Batch, signal: Event, owner: str) -> ProgramTime:
    """Runs a program by itself, and waits for it."""
    start = time.perf_counter()
    if isinstance(program, ProfiledProgram):
        kernels = program.profile(batch)
        signal.timeline.signal(signal.value)
    else:
        kernels = []
        program.submit(batch, (), signal)
        signal.wait()
    return ProgramTime(owner, start, time.perf_counter() - start, kernels)
