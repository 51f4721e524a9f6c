"""The executor on real devices: mixed placements agree, failures are reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from paths import SHARED
from tandem.devices.base import Event
from tandem.devices.batch import Batch
from tandem.errors import DeviceError
from tandem.memory.plan import Limits, Planner
from tandem.models.load import block_weights
from tandem.models.open import model_spec
from tandem.pipeline.devices import open_device
from tandem.pipeline.executor import Executor
from tandem.pipeline.notation import parse_placement
from tandem.pipeline.timing import ProgramTime
from tandem.weights.open import open_checkpoint

MODEL = SHARED / "data" / "models" / "TinyStories-656K"


def build(placement_text: str, kinds: Mapping[str, str] | None = None) -> Executor:
    """kinds: of devices that the placement names otherwise."""
    checkpoint = open_checkpoint(MODEL)
    spec = model_spec(checkpoint)

    def weights(index: int) -> Any:
        return block_weights(checkpoint, spec, index)

    placement = parse_placement(placement_text, spec, weights)
    devices = {name: open_device((kinds or {}).get(name, name), threads=1) for name in placement.names}

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


def logits_of(placement: str, kinds: Mapping[str, str] | None = None) -> np.ndarray:
    executor = build(placement, kinds)
    try:
        return executor.submit(prompt_batch(executor, list(range(3, 15)))).wait().copy()
    finally:
        executor.close()


def test_mixed_placements_agree() -> None:
    reference = logits_of("ref")
    assert reference.shape == (12, 2048)
    for placement in (
        "cpu",
        "attn=cpu,ffn=ref",
        "attn=ref,ffn=cpu,head=ref,m=2",
        "first=ref,rest=cpu,layers=1,m=3",
        "ffn=cpu+ref,ratio=0.4",
        "ffn=ref+cpu,ratio=0.8,attn=cpu,m=2",
        "attn=cpu+ref,heads=0.5,ffn=cpu,m=2",
        "attn=cpu+ref,heads=0.2,ffn=ref+cpu,ratio=0.3,head=cpu,m=4",
    ):
        logits = logits_of(placement)
        error = np.linalg.norm(logits - reference) / np.linalg.norm(reference)
        assert error < 5e-3, placement


def test_slices_give_the_same_bits_in_whatever_order_they_end_and_with_any_micro_batches() -> None:
    kinds = {"a": "cpu", "b": "cpu"}
    for shared in ("ffn=a+b,ratio=0.4", "attn=b+a,heads=0.3,ffn=a", "attn=a+b,heads=0.5,ffn=b+a,ratio=0.7"):
        alone = logits_of(shared, kinds)
        for more in ("", ",m=2", ",m=3"):
            for _ in range(3):
                assert np.array_equal(logits_of(shared + more, kinds), alone), shared + more


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


@pytest.mark.parametrize(
    "placement",
    [
        "cpu",
        "ref",
        "attn=cpu,ffn=ref",
        "attn=ref,ffn=cpu",
        "attn=ref,ffn=cpu,m=3",
        "ffn=cpu+ref,ratio=0.5,m=2",
        "cpu,m=2",
    ],
)
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


class Failing:
    """A program that fails when asked to, once all that it waits for is there."""

    def __init__(self, program: Any) -> None:
        self.program = program
        self.rows = program.rows
        self.reason: str | None = None

    def submit(self, batch: Batch, wait: Sequence[Event] = (), signal: Event | None = None) -> None:
        if self.reason is None:
            self.program.submit(batch, wait, signal)
            return
        assert signal is not None
        for event in wait:
            event.wait()
        signal.timeline.fail(signal.value, self.reason)


@pytest.mark.parametrize(
    "placement", ["attn=cpu,ffn=ref,m=2", "ffn=cpu+ref,ratio=0.5,m=3", "first=cpu,rest=ref,layers=1"]
)
def test_whichever_program_fails_its_step_fails_with_the_reason_and_nothing_runs_on(placement: str) -> None:
    executor = build(placement)
    try:
        good = prompt_batch(executor, list(range(3, 15)))
        expected = executor.submit(good).wait().copy()
        for index, link in enumerate(executor._links):
            failing = Failing(link.program)
            executor._links[index] = replace(link, program=failing)
            failing.reason = f"program {index} had enough"
            handle = executor.submit(good)
            with pytest.raises(DeviceError, match=failing.reason):
                handle.wait()
            assert all(event.timeline.value >= event.value for event in handle.events)
            failing.reason = None
            assert np.array_equal(executor.submit(good).wait(), expected)
    finally:
        executor.close()


def test_a_profile_tells_when_each_program_ran_and_lanes_add_up() -> None:
    executor = build("ffn=cpu+ref,ratio=0.5,attn=ref,m=2")
    try:
        batch = prompt_batch(executor, list(range(3, 15)))
        executor.submit(batch).wait()
        before = executor.times.copy()
        executor.profile = []
        executor.submit(batch).wait()
        (step,) = executor.profile
        executor.profile = None
        assert (step.rows, step.samples, len(step.programs)) == (12, 12, len(executor.programs))
        for program in step.programs:
            assert program.seconds > 0 and program.blocks
            assert all(step.programs[i].end <= program.start for i in program.after)
            assert {step.programs[i].micro_batch for i in program.after} <= {0, 1}
        by_lane: dict[str, list[ProgramTime]] = {}
        for program in step.programs:
            by_lane.setdefault(program.device, []).append(program)
        for programs in by_lane.values():
            assert all(first.end <= second.start for first, second in pairwise(programs))
        times = executor.times.since(before)
        assert set(times.lanes) == {"cpu", "ref"}
        for name, lane in times.lanes.items():
            assert lane.busy_seconds == pytest.approx(sum(program.seconds for program in by_lane[name]))
            assert 0 < lane.busy_seconds <= times.seconds
        # A lane that always has something to do is never handed anything while it is idle.
        assert sum(lane.hand_overs for lane in times.lanes.values()) > 0
        assert sum(lane.hand_over_seconds for lane in times.lanes.values()) > 0
    finally:
        executor.close()


def test_fewer_rows_than_micro_batches() -> None:
    """A step of one row has one micro-batch, and the others' programs rest."""
    whole, split = (build(f"attn=a,ffn=b,m={m}", {"a": "cpu", "b": "cpu"}) for m in (1, 4))
    try:
        for tokens in ([5], [5, 6], [5, 6, 7]):
            expected = whole.submit(prompt_batch(whole, tokens)).wait()
            assert np.array_equal(split.submit(prompt_batch(split, tokens)).wait(), expected)
    finally:
        whole.close()
        split.close()


@pytest.mark.parametrize(
    "placement",
    ["cpu,m=3", "attn=cpu,ffn=ref,m=2", "ffn=cpu+ref,ratio=0.3,m=2", "attn=ref+cpu,heads=0.5,ffn=cpu+ref,ratio=0.6"],
)
def test_devices_hold_what_was_planned(placement: str) -> None:
    executor = build(placement)
    try:
        for plan in executor.plan.devices:
            blocks = [block for (name, _), block in executor._blocks.items() if name == plan.device]
            if plan.device == "ref":
                assert sum(block.bytes for block in blocks) == plan.weights
            else:
                # A matrix that blocks share is there once.
                matrices = {id(packed): packed.matrix.bytes for block in blocks for packed in block.matrices.values()}
                vectors = sum(vector.nbytes for block in blocks for vector in block.vectors.values())
                assert sum(matrices.values()) + vectors == plan.weights
                assert sum(getattr(pool, "bytes", 0) for pool in executor.pools) == plan.kv
                assert executor._devices["cpu"]._lane.scratch_bytes == plan.workspace  # type: ignore[attr-defined]
    finally:
        executor.close()
