"""The engine under test, loaded from a model's files, and what one of its steps has to read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tandem.bench.machine import measure_read_bandwidth
from tandem.engine.build import EngineConfig, plan_engine
from tandem.engine.engine import Engine
from tandem.memory.plan import MemoryPlan
from tandem.models.spec import ModelSpec
from tandem.weights.checkpoint import Checkpoint

# Reading more than this is no slower, and a GPU's model may not fit the host's memory.
_BEYOND_CACHES = 1 << 30


@dataclass(frozen=True, slots=True)
class Subject:
    """weight_bytes: what a step reads of the weights. read_bandwidth: bytes per second at which as many threads read
    as many bytes, measured before the model was loaded.
    """

    checkpoint: Checkpoint
    engine: Engine
    threads: int
    devices: tuple[str, ...]
    weight_bytes: int
    read_bandwidth: float

    @property
    def spec(self) -> ModelSpec:
        return self.engine.executor.spec

    @property
    def plan(self) -> MemoryPlan:
        return self.engine.executor.plan

    def kv_bytes(self, length: int) -> float:
        """KV bytes that a sequence reads to decode one token when it has `length` positions."""
        return sum(
            plan.group.page_bytes / plan.group.page_size * min(length, plan.group.window or length)
            for plan in self.plan.groups
        )

    def bandwidth_share(self, seconds: float, sequences: int, length: float) -> float:
        """Bytes that a decode step of `seconds` must read at least, over what the machine could have read meanwhile."""
        needed = self.weight_bytes + sequences * self.kv_bytes(round(length))
        return needed / seconds / self.read_bandwidth

    def to_json(self) -> dict[str, Any]:
        limits = self.plan.limits
        return {
            "model": {
                "name": self.spec.name,
                "file": self.checkpoint.path.name,
                "weight_bytes_per_step": self.weight_bytes,
            },
            "devices": list(self.devices),
            "threads": self.threads,
            "engine": {
                "context": limits.context,
                "max_sequences": limits.sequences,
                "rows": limits.rows,
                "kv_dtype": limits.kv_dtype,
                "kv_positions": self.plan.kv_positions,
                "planned_bytes": self.plan.total,
            },
            "read_bandwidth_bytes_per_s": self.read_bandwidth,
        }

    def __str__(self) -> str:
        return (
            f"{self.checkpoint.path.name}: {self.spec.name}, {self.weight_bytes / 1e6:,.1f} MB of weights read by a "
            f"step, {'; '.join(self.devices)}, {self.threads} threads; reading as many bytes again and again: "
            f"{self.read_bandwidth / 1e9:,.1f} GB/s"
        )


@contextmanager
def open_subject(checkpoint: Checkpoint, config: EngineConfig) -> Iterator[Subject]:
    """Loads a model for a benchmark. Raises what `plan_engine` and its `load` do."""
    planned = plan_engine(checkpoint, config)
    try:
        infos = [device.info for device in planned.devices.values()]
        threads = max(info.threads or 1 for info in infos)
        weights = step_weight_bytes(planned.spec, checkpoint)
        bandwidth = measure_read_bandwidth(min(weights, _BEYOND_CACHES), threads)
        engine = planned.load(())
    except BaseException:
        planned.close()
        raise
    try:
        yield Subject(checkpoint, engine, threads, tuple(info.description for info in infos), weights, bandwidth)
    finally:
        engine.executor.close()


def step_weight_bytes(spec: ModelSpec, checkpoint: Checkpoint) -> int:
    """Weight bytes that a step of few rows reads: all blocks but the embedding, of which each row reads one row."""
    names: Sequence[Mapping[str, str]] = spec.tensors[1:]
    return sum(checkpoint.tensors[name].nbytes for block in names for name in block.values())
