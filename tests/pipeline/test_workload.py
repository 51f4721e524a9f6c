"""A workload's steps: those that the engine makes of it."""

from __future__ import annotations

import pytest

from paths import SHARED
from tandem.bench.placing import loaded, run_workload, workload_config
from tandem.engine.build import EngineConfig
from tandem.errors import BenchError
from tandem.models.open import model_spec
from tandem.pipeline.workload import Part, StepShape, Workload, decode_step, prefill_steps
from tandem.weights.open import open_checkpoint

MODEL = SHARED / "data" / "models" / "TinyStories-656K"


@pytest.mark.parametrize("batch, prompt, new, rows", [(3, 6, 4, 8), (4, 5, 3, 64), (1, 20, 2, 7)])
def test_steps_are_those_of_the_scheduler(batch: int, prompt: int, new: int, rows: int) -> None:
    workload = Workload(batch, prompt, new, rows)
    checkpoint = open_checkpoint(MODEL)
    config = workload_config(workload, model_spec(checkpoint), EngineConfig(placement="cpu", threads=1))
    with loaded(checkpoint, config) as engine:
        engine.executor.profile = []
        run_workload(engine, workload)
        ran = [(step.rows, step.samples) for step in engine.executor.profile]
    expected = [(step.rows, step.samples) for step in prefill_steps(workload)]
    assert ran[: len(expected)] == expected
    # Then everybody decodes; who began early ends early.
    assert sum(samples for _, samples in ran) == batch * new
    assert all(rows == samples <= batch for rows, samples in ran[len(expected) :])


def test_micro_batches_have_equal_rows_and_cut_a_prompt_where_they_must() -> None:
    step = StepShape((Part(2, 1, 40), Part(1, 6, 6)), 2)
    first, second = step.split(2)
    assert first.parts == (Part(2, 1, 40), Part(1, 2, 2))
    assert second.parts == (Part(1, 4, 6),)
    assert [piece.rows for piece in decode_step(Workload(batch=7), 1).split(3)] == [2, 2, 3]
    assert [piece.rows for piece in decode_step(Workload(batch=2), 1).split(4)] == [1, 1]


def test_what_is_no_workload_is_refused() -> None:
    with pytest.raises(BenchError, match="new=0"):
        Workload(new=0)
    with pytest.raises(BenchError, match="cannot decode 300"):
        Workload(batch=300)
