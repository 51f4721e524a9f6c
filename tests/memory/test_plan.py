"""The memory plan: exact sums, what fits, and what is said when it does not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from paths import SHARED
from tandem import _native
from tandem.devices.base import DeviceInfo, MemorySpace, ProgramPlan
from tandem.devices.batch import BatchLayout
from tandem.devices.cpu import CpuDevice
from tandem.devices.spec import AttentionSpec, EmbedSpec, FFNSpec, HeadSpec, NormSpec
from tandem.engine.masks import GrammarMasks
from tandem.errors import MemoryPlanError
from tandem.memory.plan import Limits, Planner, kv_groups, sequence_pages
from tandem.models.load import block_weights
from tandem.models.open import model_spec
from tandem.models.spec import ModelSpec
from tandem.pipeline.executor import Executor
from tandem.pipeline.placement import Placement, Share, on_one
from tandem.weights.open import open_checkpoint

MIB = 2**20


class Scale:
    """A device of which only sizes are asked: 1 MiB per block, 1 KiB of workspace per row."""

    def __init__(self, host_mapped: bool = True) -> None:
        self.info = DeviceInfo("scale", "scale", "", (MemorySpace("m", 0, 0, host_mapped),))

    def plan_weights(self, blocks: Sequence[Any]) -> int:
        return len(blocks) * MIB

    def plan_workspace(self, programs: Sequence[ProgramPlan], samples: int) -> int:
        return max(program.rows for program in programs) * 1024

    def plan_host(self, programs: Sequence[ProgramPlan], layout: BatchLayout) -> int:
        """Devices with memory of their own pass a batch through the host's."""
        return 0 if self.info.memory[0].host_mapped else layout.size * 4


def spec(layers: int = 4) -> ModelSpec:
    """Every second layer slides over 512 positions; hidden 64, vocabulary 1024, one KV head of 128."""
    norm = NormSpec(1e-6)
    blocks: list[Any] = [EmbedSpec(1024, 64)]
    for layer in range(layers):
        window = 512 if layer % 2 else None
        blocks.append(AttentionSpec(layer, 64, 2, 1, 128, 0.1, norm, None, window=window))
        blocks.append(FFNSpec(layer, 64, 128, "silu", norm))
    blocks.append(HeadSpec(1024, 64, norm))
    return ModelSpec("test", "test model", 8192, 1024, 64, tuple(blocks), tuple({} for _ in blocks))


def planner(placement: Sequence[str] | None = None, devices: Mapping[str, Any] | None = None) -> Planner:
    names = placement or ("a",) * len(spec().blocks)
    placed = Placement(tuple((Share(name),) for name in names))
    return Planner(spec(), placed.stages(), devices or {"a": Scale()}, lambda index: {})


def test_layers_of_equal_device_shape_and_window_share_a_group() -> None:
    groups = kv_groups(spec(), on_one(spec(), "a").stages(), "f16")
    assert [(group.layers, group.window) for _, group in groups] == [((0, 2), None), ((1, 3), 512)]
    halves = Placement(((Share("a"),),) * 5 + ((Share("b"),),) * 5)
    split = kv_groups(spec(), halves.stages(), "f16")
    assert [(device, group.layers) for device, group in split] == [
        ("a", (0,)), ("a", (1,)), ("b", (2,)), ("b", (3,)),
    ]  # fmt: skip
    assert [group.index for _, group in split] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("context", "window", "rows", "pages"),
    [(8192, None, 256, 512), (8192, 512, 256, 49), (300, 512, 256, 19), (8192, 5, 1, 2), (17, None, 1, 2)],
)
def test_pages_of_a_sequence(context: int, window: int | None, rows: int, pages: int) -> None:
    assert sequence_pages(context, window, rows) == pages


def test_the_plan_adds_up() -> None:
    plan = planner().plan(Limits(context=4096, sequences=8, rows=256), kv_positions=4096 * 2)
    full, sliding = plan.groups
    page = 2 * 2 * 128 * 16 * 2
    assert (full.pages, sliding.pages) == (512, 8 * 49)
    assert (full.bytes, sliding.bytes) == (512 * page, 8 * 49 * page)
    device = plan.devices[0]
    assert device.weights == 10 * MIB
    assert device.kv == full.bytes + sliding.bytes
    assert device.workspace == 256 * 1024
    samples = 8 + 256
    assert plan.layout.max_samples == samples
    slots = 4096  # whole memory pages
    assert plan.staging == 256 * 64 * 4 + samples * 1024 * 4 + slots + plan.layout.size * 4
    # A device that does not say has one thread.
    assert plan.sampler == _native.Sampler(1024, samples).bytes + GrammarMasks(1024, 8, 1).bytes
    assert plan.total == plan.staging + plan.sampler + device.total
    assert plan.kv_sequences == 2
    data = json.loads(json.dumps(plan.to_json()))
    assert data["total"] == plan.total and data["kv_groups"][1]["window"] == 512
    assert "KV holds 8,192 positions" in plan.table()


def test_the_pools_take_what_the_budget_leaves() -> None:
    limits = Limits(context=4096, sequences=8, rows=256)
    plans = planner()
    for budget in (40 * MIB, 60 * MIB, 100 * MIB):
        plan = plans.fit(limits, {"host": budget})
        more = plans.plan(limits, plan.kv_positions + 16)
        assert plan.total <= budget
        assert more.total > budget or plan.kv_positions == 4096 * 8
    assert plans.fit(limits, {"host": 1 << 40}).kv_positions == 4096 * 8
    assert plans.fit(limits, {"host": 1 << 40}, at_most=5000).kv_positions == 5000


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    limits = Limits(context=8192, sequences=16, rows=256)
    plans = planner()
    with pytest.raises(MemoryPlanError) as refusal:
        plans.fit(limits, {"host": 50 * MIB}, full_sequences=16)
    text = str(refusal.value)
    assert "16 sequences of 8,192 positions" in text and "50.0 MiB" in text
    context = plans.largest_context(limits, {"host": 50 * MIB}, 16, 8192)
    sequences = plans.largest_sequences(limits, {"host": 50 * MIB}, 16)
    assert f"a context of {context:,} or {sequences} sequences of this context" in text
    fitting = Limits(context, 16, 256)
    assert plans.fit(fitting, {"host": 50 * MIB}, full_sequences=16).total <= 50 * MIB
    with pytest.raises(MemoryPlanError):
        plans.fit(Limits(context + 1, 16, 256), {"host": 50 * MIB}, full_sequences=16)


def test_nothing_fits_into_less_than_the_weights() -> None:
    with pytest.raises(MemoryPlanError, match="no context and no number of sequences would fit"):
        planner().fit(Limits(4096, 8, 256), {"host": 5 * MIB})


def test_devices_with_memory_of_their_own_are_counted_apart() -> None:
    devices = {"a": Scale(), "gpu": Scale(host_mapped=False)}
    plan = planner(("a",) * 5 + ("gpu",) * 5, devices).plan(Limits(1024, 4, 64), 4096)
    shared, own = plan.devices
    assert own.host == plan.layout.size * 4 and shared.host == 0
    host = plan.staging + plan.sampler + shared.total + own.host
    assert plan.by_memory() == {"host": host, "a": shared.total, "gpu": own.total - own.host}
    assert plan.total == plan.staging + plan.sampler + shared.total + own.total
    assert "on the host" in plan.table()


def test_lanes_of_one_gpu_share_its_memory() -> None:
    devices = {"gpu": Scale(host_mapped=False), "gpu/1": Scale(host_mapped=False)}
    plan = planner(("gpu",) * 5 + ("gpu/1",) * 5, devices).plan(Limits(1024, 4, 64), 4096)
    assert plan.by_memory()["gpu"] == sum(device.own for device in plan.devices)
    assert set(plan.by_memory()) == {"host", "gpu"}


def test_a_device_that_reaches_a_part_of_the_hosts_memory_is_kept_within_it() -> None:
    limits = Limits(context=4096, sequences=8, rows=256)
    budget = {"host": 1 << 40, "a": 40 * MIB}
    plan = planner().fit(limits, budget)
    assert plan.devices[0].total <= 40 * MIB < planner().plan(limits, plan.kv_positions + 16).devices[0].total
    with pytest.raises(MemoryPlanError, match=r"of a memory where 5\.0 MiB may be used"):
        planner().fit(limits, {"host": 1 << 40, "a": 5 * MIB})


def test_pools_take_the_bytes_that_were_planned() -> None:
    checkpoint = open_checkpoint(SHARED / "models" / "tandem-stories-22m")
    model = model_spec(checkpoint)
    device = CpuDevice(threads=1)
    placement = on_one(model, "cpu")

    def weights(index: int) -> Any:
        return block_weights(checkpoint, model, index)

    plan = Planner(model, placement.stages(), {"cpu": device}, weights).plan(Limits(512, 4, 64), 2048)
    executor = Executor(model, plan, placement, {"cpu": device}, weights)
    try:
        assert [pool.bytes for pool in executor.pools] == [group.bytes for group in plan.groups]  # type: ignore[attr-defined]
    finally:
        executor.close()
