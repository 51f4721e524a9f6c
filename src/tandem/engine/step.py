"""A step on its way through the engine, and what the engine counts over all of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from tandem.devices.candidates import CandidateBuffers
from tandem.engine.batch_builder import BatchBuilder
from tandem.engine.sampling import SamplingState, UInt32Array
from tandem.engine.scheduler import Schedule
from tandem.pipeline.executor import StepHandle
from tandem.pipeline.timing import PipelineTimes


@dataclass(slots=True)
class Counters:
    """Totals since the engine was made, of the steps that have come back.

    wasted_rows: computed for sequences that had ended when their step came back, from tokens guessed wrongly, or again.
    allocations: of 4 KiB and more by native code, in steps. bytes_copied: KV pages copied on write. Both stand still
    while a set of sequences decodes.
    The engine's thread is in one of three: host_seconds: Python in the step loop. sample_seconds: the sampler.
    wait_seconds: waiting for the devices, and handing a step to them while they have no other, since they begin while
    the call still returns. While another step runs ahead, the first two do not hold the devices up.
    whole_rows: logits rows that came whole from a device that picks candidates.
    pipeline: how long each lane was busy, and what handing over between them took.
    """

    steps: int = 0
    rows: int = 0
    wasted_rows: int = 0
    sampled: int = 0
    cached_tokens: int = 0
    preemptions: int = 0
    allocations: int = 0
    bytes_copied: int = 0
    whole_rows: int = 0
    host_seconds: float = 0.0
    sample_seconds: float = 0.0
    wait_seconds: float = 0.0
    pipeline: PipelineTimes = field(default_factory=PipelineTimes)


@dataclass(slots=True, eq=False)
class Step:
    """A step on its way: what was scheduled, the batch that carries it, and the executor's handle; where to ask a head
    that picks candidates; by sampled row, the sequence's state and the mask of the tokens that its grammar allows.

    There is one for each step that may be in flight. leads: the next step can be submitted while this one is in flight,
    as every one of its sequences needs nothing of it but a token that the device puts into its slot.
    """

    schedule: Schedule
    builder: BatchBuilder
    candidates: CandidateBuffers | None
    states: list[SamplingState] = field(default_factory=list)
    handle: StepHandle | None = None
    masks: list[UInt32Array | None] | None = None
    leads: bool = False
