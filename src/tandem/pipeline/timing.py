"""When programs ran on their lanes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tandem.devices.base import KernelTime


@dataclass(frozen=True, slots=True)
class ProgramTime:
    """One program of a step. start: of time.perf_counter, in seconds, as its lane saw it; kernels: in order, where they
    were timed. blocks: of the model, by number. after: the programs of the step that it waited for, by number.
    """

    device: str
    start: float
    seconds: float
    kernels: list[KernelTime] = field(default_factory=list)
    stage: int = 0
    micro_batch: int = 0
    blocks: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    @property
    def end(self) -> float:
        return self.start + self.seconds


@dataclass(frozen=True, slots=True)
class StepTime:
    """A step and its programs, in the order in which each lane ran its own."""

    rows: int
    samples: int
    programs: list[ProgramTime]


@dataclass(slots=True)
class LaneTimes:
    """Totals of a lane. busy: seconds in programs. hand_overs: programs that began with what another lane handed on,
    while their lane had nothing else to do; hand_over_seconds: from the end of what they waited for to their begin.
    """

    busy_seconds: float = 0.0
    hand_overs: int = 0
    hand_over_seconds: float = 0.0


@dataclass(slots=True)
class PipelineTimes:
    """Totals since an executor was made. seconds: of steps, from the begin of the first program to the end of the last;
    what a lane was not busy of them it was idle.
    """

    seconds: float = 0.0
    lanes: dict[str, LaneTimes] = field(default_factory=dict)

    def copy(self) -> PipelineTimes:
        lanes = {
            name: LaneTimes(lane.busy_seconds, lane.hand_overs, lane.hand_over_seconds)
            for name, lane in self.lanes.items()
        }
        return PipelineTimes(self.seconds, lanes)

    def since(self, before: PipelineTimes) -> PipelineTimes:
        """What was added after the copy `before` was made."""
        lanes = {}
        for name, lane in self.lanes.items():
            was = before.lanes.get(name, LaneTimes())
            lanes[name] = LaneTimes(
                lane.busy_seconds - was.busy_seconds,
                lane.hand_overs - was.hand_overs,
                lane.hand_over_seconds - was.hand_over_seconds,
            )
        return PipelineTimes(self.seconds - before.seconds, lanes)

    def add(self, programs: Sequence[ProgramTime]) -> None:
        """Another step's programs, in the order in which each lane ran its own."""
        if not programs:
            return
        idle_since: dict[str, float] = {}
        for program in programs:
            lane = self.lanes.setdefault(program.device, LaneTimes())
            lane.busy_seconds += program.seconds
            others = [programs[i].end for i in program.after if programs[i].device != program.device]
            if others:
                ready = max(programs[i].end for i in program.after)
                if max(others) == ready >= idle_since.get(program.device, ready):
                    lane.hand_overs += 1
                    lane.hand_over_seconds += program.start - ready
            idle_since[program.device] = program.end
        self.seconds += max(program.end for program in programs) - min(program.start for program in programs)
