"""A step on its way through the engine, and what the engine counts over all of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from tandem.engine.batch_builder import BatchBuilder
from tandem.engine.sampling import UInt32Array
from tandem.engine.scheduler import Schedule
from tandem.pipeline.executor import StepHandle
from tandem.pipeline.timing import PipelineTimes


@dataclass(slots=True)
class Counters:
    """Totals since the engine was made.

    allocations: of 4 KiB and more by native code, in steps. bytes_copied: KV pages copied on write. Both stand still
    while a set of sequences decodes.
    host_seconds: Python in the step loop. sample_seconds: the sampler. wait_seconds: from handing a step to the
    devices, which begin while the call still returns, to its end.
    whole_rows: logits rows that came whole from a device that picks candidates.
    pipeline: how long each lane was busy, and what handing over between them took.
    """

    steps: int = 0
    rows: int = 0
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


@dataclass(slots=True)
class Step:
    """A step on its way: what was scheduled, the batch that carries it, and the executor's handle; when it was handed
    to the devices, and the count of allocations before; by sampled row, the mask of the tokens that its grammar allows.

    The engine has one, so one is in flight at a time: the next one needs the tokens that this one samples.
    """

    schedule: Schedule
    builder: BatchBuilder
    handle: StepHandle | None = None
    submitted: float = 0.0
    allocations: int = 0
    masks: list[UInt32Array | None] | None = None
