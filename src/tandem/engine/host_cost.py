"""What the host takes between two steps: scheduling, filling the batch, sampling, and moving sequences on."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from tandem.devices.spec import AttentionSpec, FFNSpec
from tandem.engine.build import EngineConfig, plan_engine
from tandem.engine.engine import Engine
from tandem.engine.request import Request
from tandem.engine.sampling_params import SamplingParams
from tandem.models.spec import ModelSpec
from tandem.pipeline.profile import Curve
from tandem.weights.checkpoint import Checkpoint

_BATCHES = (1, 8, 32)
_STEPS, _WARM_STEPS = 12, 3


def measure_host(checkpoint: Checkpoint, spec: ModelSpec, device: str, threads: int | None = None) -> Curve:
    """Seconds a step by sequences that each sample a token greedily, on a model of one layer whose head is on `device`.

    Raises what `plan_engine` and its `load` do.
    """
    layer = [next(i for i, b in enumerate(spec.blocks) if isinstance(b, kind)) for kind in (AttentionSpec, FFNSpec)]
    kept = [0, *layer, len(spec.blocks) - 1]
    part = replace(spec, blocks=tuple(spec.blocks[i] for i in kept), tensors=tuple(spec.tensors[i] for i in kept))
    context = min(spec.context, 64)
    most = max(_BATCHES)
    config = EngineConfig(
        placement=device, threads=threads, max_sequences=most, rows=most, context=context, full_sequences=most,
        prefix_cache=False,
    )  # fmt: skip
    engine = plan_engine(checkpoint, config, part).load(())
    try:
        return Curve(tuple(map(float, _BATCHES)), tuple(_host_seconds(engine, batch) for batch in _BATCHES))
    finally:
        engine.executor.close()


def _host_seconds(engine: Engine, batch: int) -> float:
    # Of one step after another: what a device would wait for, were it not given the next step ahead.
    engine.run_ahead = False
    random = np.random.default_rng(0)
    params = SamplingParams(temperature=0.0, max_tokens=_STEPS + _WARM_STEPS + 2, ignore_eos=True)
    for i in range(batch):
        engine.submit(Request(id=str(i), prompt=random.integers(engine.vocab, size=2).tolist(), params=params))
    for _ in range(_WARM_STEPS):
        engine.step()
    seconds = []
    for _ in range(_STEPS):
        waited, start = engine.counters.wait_seconds, time.perf_counter()
        engine.step()
        seconds.append(time.perf_counter() - start - (engine.counters.wait_seconds - waited))
    while not engine.idle:
        engine.step()
    return min(seconds)
