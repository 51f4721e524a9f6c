"""A workload as the steps that the engine will make of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from tandem.errors import BenchError


@dataclass(frozen=True, slots=True)
class Workload:
    """`batch` prompts of `prompt` tokens, submitted at once, each answered with `new` tokens; steps have at most `rows`
    rows.
    """

    batch: int = 8
    prompt: int = 128
    new: int = 64
    rows: int = 256

    def __post_init__(self) -> None:
        for name in ("batch", "prompt", "new", "rows"):
            if getattr(self, name) < 1:
                raise BenchError(f"{name}={getattr(self, name)} is not a workload; give 1 or more")
        if self.rows < self.batch:
            raise BenchError(f"steps of {self.rows} rows cannot decode {self.batch} sequences; give more rows")

    @property
    def context(self) -> int:
        """Positions of the longest sequence."""
        return self.prompt + self.new


@dataclass(frozen=True, slots=True)
class Part:
    """Sequences of a step that are alike: `sequences` of them, each with `rows` rows, up to position `length`."""

    sequences: int
    rows: int
    length: int


@dataclass(frozen=True, slots=True)
class StepShape:
    """What a step computes; samples: rows that the head sees."""

    parts: tuple[Part, ...]
    samples: int

    @property
    def rows(self) -> int:
        return sum(part.sequences * part.rows for part in self.parts)

    @property
    def sequences(self) -> int:
        return sum(part.sequences for part in self.parts)

    def split(self, pieces: int) -> list[StepShape]:
        """Micro-batches of equal rows, as the executor makes them: a prompt's chunk may be cut. The head's samples are
        the whole step's.
        """
        single = [Part(1, part.rows, part.length) for part in self.parts for _ in range(part.sequences)]
        pieces = max(1, min(pieces, self.rows))
        bounds = [self.rows * i // pieces for i in range(pieces + 1)]
        found: list[list[Part]] = [[] for _ in range(pieces)]
        first = 0
        for part in single:
            for piece, (start, stop) in enumerate(pairwise(bounds)):
                rows = min(stop, first + part.rows) - max(start, first)
                if rows > 0:
                    behind = max(0, first + part.rows - stop)
                    found[piece].append(Part(1, rows, part.length - behind))
            first += part.rows
        return [StepShape(_grouped(each), self.samples) for each in found]


def _grouped(parts: list[Part]) -> tuple[Part, ...]:
    grouped: list[Part] = []
    for part in parts:
        if grouped and (grouped[-1].rows, grouped[-1].length) == (part.rows, part.length):
            grouped[-1] = Part(grouped[-1].sequences + part.sequences, part.rows, part.length)
        else:
            grouped.append(part)
    return tuple(grouped)


def decode_step(workload: Workload, generated: float) -> StepShape:
    """The step that brings token number `generated` of every answer."""
    length = workload.prompt + max(1, round(generated))
    return StepShape((Part(workload.batch, 1, length),), workload.batch)


def prefill_steps(workload: Workload) -> Iterator[StepShape]:
    """The steps until the last prompt has brought its first token, as the scheduler makes them: who has read its prompt
    decodes, prompts share what is left of the rows.
    """
    computed = [0] * workload.batch
    generated = [0] * workload.batch
    while min(generated) == 0:
        budget = workload.rows - sum(1 for done in generated if done)
        parts, samples = [], 0
        for i in range(workload.batch):
            if generated[i]:
                if generated[i] < workload.new:
                    generated[i] += 1
                    samples += 1
                    parts.append(Part(1, 1, workload.prompt + generated[i] - 1))
                continue
            rows = min(budget, workload.prompt - computed[i])
            if rows == 0:
                continue
            budget -= rows
            computed[i] += rows
            parts.append(Part(1, rows, computed[i]))
            if computed[i] == workload.prompt:
                generated[i] = 1
                samples += 1
        yield StepShape(_grouped(parts), samples)
