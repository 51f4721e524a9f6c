"""The executor on real devices: mixed placements agree, failures are reported."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from paths import SHARED
from tandem.devices.batch import Batch
from tandem.errors import DeviceError
from tandem.memory.plan import Limits, Planner
from tandem.models.load import block_weights
from tandem.models.open import model_spec
from tandem.pipeline.devices import open_device
from tandem.pipeline.executor import Executor
from tandem.pipeline.notation import parse_placement
from tandem.weights.open import open_checkpoint

MODEL = SHARED / "data" / "models" / "TinyStories-656K"


def build(placement_text: str) -> Executor:
    checkpoint = open_checkpoint(MODEL)
    spec = model_spec(checkpoint)
    placement = parse_placement(placement_text, spec)
    devices = {name: open_device(name, threads=1) for name in placement.names}

    def weights(index: int) -> Any:
        return block_weights(checkpoint, spec, index)

    plan = Planner(spec, placement.stages(), devices, weights, micro_batches=placement.micro_batches).plan(
        Limits(64, 2, 16), 128
    )
    return Executor(spec, plan, placement, devices, weights)


def prompt_batch(executor: Executor, tokens: list[int]) -> Batch:
    """One sequence, all rows at once, every row sampled; physical pages in falling order."""
    batch = Batch(executor.plan.layout)
    n, pages = len(tokens), -(-len(tokens) // 16)
    batch.rows[:n] = [(0, position, token, 0) for position, token in enumerate(tokens)]
    batch.sequences[0, :4] = (0, n, n, 0)
    for group in range(len(executor.pools)):
        batch.sequences[0, 4 + 2 * group :][:2] = (group * pages, 0)
        batch.pages[group * pages : (group + 1) * pages] = range(pages, 0, -1)
    batch.samples[:n, 0] = range(n)
    batch.set_counts(n, 1, n)
    return batch


def logits_of(placement: str) -> np.ndarray:
    executor = build(placement)
    try:
        return executor.submit(prompt_batch(executor, list(range(3, 15)))).wait().copy()
    finally:
        executor.close()


def test_mixed_placements_agree() -> None:
    reference = logits_of("ref")
    assert reference.shape == (12, 2048)
    for placement in ("cpu", "attn=cpu,ffn=ref", "attn=ref,ffn=cpu,head=ref"):
        logits = logits_of(placement)
        error = np.linalg.norm(logits - reference) / np.linalg.norm(reference)
        assert error < 5e-3, placement


def test_one_device_means_one_program_and_one_group_of_equal_layers() -> None:
    executor = build("cpu")
    try:
        assert len(executor.programs) == 1
        assert len(executor.pools) == 1
    finally:
        executor.close()
    mixed = build("attn=cpu,ffn=ref")
    try:
        assert len(mixed.programs) == 4
    finally:
        mixed.close()


@pytest.mark.parametrize("placement", ["cpu", "ref", "attn=cpu,ffn=ref", "attn=ref,ffn=cpu"])
def test_a_step_that_fails_says_why_and_the_next_one_runs(placement: str) -> None:
    executor = build(placement)
    try:
        bad = prompt_batch(executor, [1, 2, 100_000])
        with pytest.raises(DeviceError, match="100000"):
            executor.submit(bad).wait()
        good = prompt_batch(executor, list(range(3, 15)))
        assert np.isfinite(executor.submit(good).wait()).all()
    finally:
        executor.close()
