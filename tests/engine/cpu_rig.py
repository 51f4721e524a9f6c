"""An engine on the CPU device with a real model, and the logits that each sampled token came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from rig import Driver

from tandem.devices.base import Device
from tandem.engine.build import EngineConfig, plan_engine
from tandem.engine.sampling import Float32Array, SamplingState
from tandem.memory.plan import Planner
from tandem.models.load import block_weights
from tandem.pipeline.placement import Placement
from tandem.weights.open import open_checkpoint


class CpuRig(Driver):
    """kv_positions: the size of the KV pools. logits: a digest of the row of logits, bit for bit, behind the token of a
    (seed, sample index, position); requests with seeds of their own are told apart.
    """

    def __init__(
        self,
        model: Path,
        config: EngineConfig,
        *,
        kv_positions: int | None = None,
        eos: int = 1,
        placement: Placement | None = None,
        devices: Mapping[str, Device] | None = None,
    ) -> None:
        """placement, devices: instead of the configuration's."""
        checkpoint = open_checkpoint(model)
        planned = plan_engine(checkpoint, config)
        if placement is not None and devices is not None:
            planned.close()
            planned = replace(planned, placement=placement, devices=devices)
        if kv_positions is not None:
            spec = planned.spec
            planner = Planner(
                spec,
                planned.placement.stages(),
                planned.devices,
                lambda i: block_weights(checkpoint, spec, i),
                micro_batches=planned.placement.micro_batches,
            )
            planned = replace(planned, plan=planner.plan(planned.plan.limits, kv_positions))
        super().__init__(planned.load([eos]))
        self.logits: dict[tuple[int, int, int], bytes] = {}
        self._sample = self.engine._sampler.sample
        self.engine._sampler.sample = self._recorded  # type: ignore[method-assign, assignment]

    def _recorded(self, logits: Float32Array, states: Sequence[SamplingState], **options: Any) -> Any:
        for row, state in enumerate(states):
            key = (state.seed, state.sample_index, state.position)
            assert key not in self.logits, "a token is sampled twice"
            self.logits[key] = blake2b(logits[row].tobytes(), digest_size=8).digest()
        return self._sample(logits, states, **options)

    def close(self) -> None:
        self.engine.executor.close()
