"""The sealed pool: in steady state a step allocates no array and copies no page."""

from __future__ import annotations

import pytest
from numpy_allocations import counted

from paths import SHARED
from tandem.engine.build import EngineConfig, plan_engine
from tandem.engine.request import Request
from tandem.engine.sampling_params import SamplingParams
from tandem.weights.open import open_checkpoint

MODEL = SHARED / "models" / "tandem-stories-22m"


@pytest.mark.parametrize(
    ("sequences", "temperature", "placement"),
    [(1, 0.0, "cpu"), (1, 1.0, "cpu"), (8, 0.0, "cpu"), (8, 1.0, "cpu"), (8, 0.0, "cpu,m=3"), (1, 0.0, "cpu,m=2")],
)
def test_a_steady_step_allocates_and_copies_nothing(sequences: int, temperature: float, placement: str) -> None:
    config = EngineConfig(threads=1, max_sequences=sequences, rows=32, context=512, placement=placement)
    engine = plan_engine(open_checkpoint(MODEL), config).load([])
    params = SamplingParams(max_tokens=100, temperature=temperature, ignore_eos=True, repetition_penalty=1.1)
    for k in range(sequences):
        engine.submit(Request(id=str(k), prompt=[100 + k, 200, 300], params=params))
    for _ in range(4):
        engine.step()
    with counted() as sizes:
        for _ in range(40):  # across page boundaries
            assert len(engine.step()) == sequences
    assert sizes == []
    assert engine.counters.bytes_copied == 0
    engine.executor.close()
