"""A workload's steps: those that the scheduler makes."""

from __future__ import annotations

import pytest
from engine.cpu_rig import *  # noqa: F403

from tandem.errors import BenchError
from tandem.pipeline.workload import Part, StepShape, Workload, prefill_steps


def test_prompts_share_the_rows_and_who_is_done_decodes() -> None:
    steps = list(prefill_steps(Workload(batch=3, prompt=6, new=4, rows=8)))
    assert [step.rows for step in steps] == [8, 8, 6]
