"""Limits of bindings, what is planned against what is held, and steps that neither allocate nor copy weights."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from devices.runner import Runner
from devices.vulkan.conftest import Open
from devices.vulkan.support import bundled, prompts_for, relative_error, tiny, whole
from models.cases import CASES
from tandem.devices.base import KVGroupSpec, ProgramPlan
from tandem.devices.batch import HEADER, ROW_STRIDE, SAMPLE_STRIDE, Batch, BatchLayout
from tandem.devices.ref import RefDevice
from tandem.devices.vulkan import VulkanDevice
from tandem.devices.vulkan.matrices import split_rows
from tandem.devices.vulkan.memory import View
from tandem.devices.vulkan.staging import STAGING_BYTES
from tandem.errors import DeviceError
from tandem.memory.plan import Limits, Planner
from tandem.models.load import block_weights
from tandem.pipeline.executor import Executor
from tandem.pipeline.placement import on_one
from tandem.weights.tensor import Tensor, TensorType


def test_matrices_and_pages_cross_a_bindings_limit(opened: Open, ref: RefDevice) -> None:
    """Bindings of 256 KiB: every matrix is split by rows, and a layer's KV pages lie in several bindings."""
    device = opened(storage_range=256 << 10, integer_dot=True)
    spec, checkpoint = bundled()
    block = device.load(spec.blocks[2], block_weights(checkpoint, spec, 2))
    assert min(len(matrix.chunks) for each in block.matrices.values() for matrix in each) > 1
    prompts = prompts_for(spec, 40, 9)
    expected = Runner(spec, checkpoint, whole(spec, ref), context=128).forward(prompts)
    runner = Runner(spec, checkpoint, whole(spec, device), rows=48, context=128)
    pool = runner._pools[0][1]
    assert pool.chunk_pages < pool.pages
    for one, other in zip(runner.forward(prompts, chunk=16), expected, strict=True):
        assert relative_error(one, other) < 1e-4
    pool.copy_page(0, pool.pages - 1)


def test_a_matrix_is_split_where_a_grid_is_too_small(vulkan: VulkanDevice) -> None:
    """Lavapipe's grids have 65,535 workgroups in a dimension; Gemma's vocabulary takes one more. Cut between panels."""
    limits = replace(vulkan._context.gpu.limits, groups=(65_535, 65_535, 65_535))
    tensor = Tensor("output", TensorType.F32, (262_144, 1), np.zeros(4 * 262_144, np.uint8))
    assert list(split_rows(limits, [tensor])) == [(0, 262_128), (262_128, 16)]


def test_a_pool_that_no_binding_holds_is_refused(opened: Open) -> None:
    device = opened(storage_range=64 << 10)
    with pytest.raises(DeviceError, match="10,000 KV pages of 4,096 bytes a layer are more than 4 bindings"):
        device.allocate_kv(KVGroupSpec(0, (0,), 1, 64, None), 10_000)


def test_unsupported_kv_is_refused(vulkan: VulkanDevice) -> None:
    with pytest.raises(DeviceError, match="KV pages of q8_0 need heads of a multiple of 32 elements, not 48"):
        vulkan.allocate_kv(KVGroupSpec(0, (0,), 1, 48, None, dtype="q8_0"), 4)


@pytest.mark.parametrize("masked", [False, True], ids=["unified", "discrete"])
def test_copied_pages_hold_what_the_source_holds(masked: bool, opened: Open) -> None:
    device = opened(unified=masked)
    pool = device.allocate_kv(KVGroupSpec(0, (2, 5), 1, 32, None, dtype="f32"), 6)
    memory = device._machine.memory
    page = np.arange(pool.page_bytes // 4, dtype=np.float32)
    for layer in (2, 5):
        memory.write(pool._page(layer, 1), [page + layer])
    pool.copy_page(1, 4)
    for layer in (2, 5):
        np.testing.assert_array_equal(memory.read(pool._page(layer, 4)).view(np.float32), page + layer)
        assert not memory.read(pool._page(layer, 3)).any()
    with pytest.raises(ValueError, match="page 6 is not one of the pool's pages 0 to 5"):
        pool.copy_page(0, 6)


# What decides where things lie: the memory's kind, and whether host arrays can be imported.
KINDS = [
    pytest.param({}, id="unified"),
    pytest.param({"external_host_memory": True}, id="unified-no-import"),
    pytest.param({"unified": True}, id="discrete"),
    pytest.param({"unified": True, "external_host_memory": True}, id="discrete-no-import"),
]


@pytest.mark.parametrize("hidden", KINDS)
def test_all_that_is_taken_was_planned(hidden: dict[str, bool], opened: Open) -> None:
    """Weights, pages, scratch, staging, mirrors and step data: to the byte, and by whose memory it is."""
    device = opened(**hidden)
    spec, checkpoint = bundled()
    placement = on_one(spec, "vulkan:0")

    def weights(index: int) -> Mapping[str, Tensor]:
        return block_weights(checkpoint, spec, index)

    plan = Planner(spec, placement.stages(), {"vulkan:0": device}, weights).plan(Limits(64, 2, 32), 128)
    executor = Executor(spec, plan, placement, {"vulkan:0": device}, weights)
    batch = Batch(plan.layout)
    batch.sequences[0, :4] = (0, 1, 1, 0)
    batch.sequences[0, 4:] = (0, 0) * plan.layout.kv_groups
    batch.set_counts(rows=1, sequences=1, samples=1)
    executor.submit(batch).wait()
    planned = plan.devices[0]
    assert device.counters.allocated == planned.total
    if hidden.get("unified"):
        assert device.counters.host_allocated == planned.host > STAGING_BYTES


def test_a_steady_step_allocates_nothing_and_copies_its_step_buffer_only(vulkan: VulkanDevice) -> None:
    spec, checkpoint = bundled()
    runner = Runner(spec, checkpoint, whole(spec, vulkan), rows=16, sequences=2, context=64)
    sequence = runner.start()
    runner.step([(sequence, [1, 2, 3])])
    runner.step([(sequence, [4])])
    before = (vulkan.counters.allocations, vulkan.counters.copied)
    for token in range(5):
        runner.step([(sequence, [token])])
    after = (vulkan.counters.allocations, vulkan.counters.copied)
    assert after[0] == before[0]
    layout: BatchLayout = runner._batch.layout
    used = HEADER + ROW_STRIDE + layout.sequence_stride + SAMPLE_STRIDE
    assert 5 * 4 * used < after[1] - before[1] < 5 * (4 * layout.size + 1024)


def test_unloaded_blocks_give_their_memory_back(vulkan: VulkanDevice) -> None:
    spec, checkpoint = bundled()
    memory = vulkan._machine.memory
    before = len(memory._live)
    block = vulkan.load(spec.blocks[2], block_weights(checkpoint, spec, 2))
    assert len(memory._live) > before
    del block
    assert len(memory._live) == before


def test_two_models_do_not_share_what_only_had_the_same_address(
    vulkan: VulkanDevice, ref: RefDevice, tmp_path: Path
) -> None:
    for case in CASES[:3]:
        spec, checkpoint = tiny(case, tmp_path)
        results = [
            Runner(spec, checkpoint, whole(spec, device), rows=24, context=48).forward([[1, 2, 3]])[0]
            for device in (ref, vulkan)
        ]
        assert relative_error(results[1], results[0]) < 1e-5


@pytest.mark.parametrize("masked", [False, True], ids=["unified", "discrete"])
def test_dropped_programs_pools_and_blocks_give_everything_back(masked: bool, opened: Open) -> None:
    """What stays is the device's: scratch, step data, staging."""
    device = opened(unified=masked, external_host_memory=masked)
    spec, checkpoint = bundled()
    memory = device._machine.memory
    held = []
    for _ in range(3):
        runner = Runner(spec, checkpoint, whole(spec, device), rows=8, sequences=1, context=32)
        runner.forward([[1, 2, 3]])
        del runner
        gc.collect()
        held.append(len(memory._live))
    assert held[0] == held[1] == held[2]


@pytest.mark.parametrize("hidden", KINDS)
def test_programs_share_what_they_hand_on(hidden: dict[str, bool], opened: Open, ref: RefDevice) -> None:
    """Blocks that alternate between devices: one residual stream and one scratch space, however many programs."""
    device = opened(**hidden)
    spec, checkpoint = bundled()
    placement = [((device, ref)[index % 2], range(index, index + 1)) for index in range(len(spec.blocks))]
    runner = Runner(spec, checkpoint, placement, rows=8, sequences=1, context=32)
    runner.forward([[1, 2, 3]])
    specs = [spec.blocks[i] for i in range(0, len(spec.blocks), 2)]
    weights = device.plan_weights(
        [(spec.blocks[i], block_weights(checkpoint, spec, i), None) for i in range(0, len(spec.blocks), 2)]
    )
    pools = sum(pool.bytes for owner, pool in runner._pools.values() if owner is device)
    programs = [ProgramPlan((spec,), 8) for spec in specs]
    own = weights + device.plan_workspace(programs, 8) + pools
    assert device.counters.allocated == own + device.plan_host(programs, runner._batch.layout)


def test_scratch_that_grows_gives_the_smaller_back(opened: Open, ref: RefDevice) -> None:
    """A program that is linked later and needs more; the earlier one goes on with what there is now."""
    device = opened(unified=True)
    spec, checkpoint = bundled()
    small = Runner(spec, checkpoint, whole(spec, device), rows=4, sequences=1, context=32)
    before = small.forward([[1, 2, 3]])[0]
    Runner(spec, checkpoint, whole(spec, device), rows=32, sequences=1, context=32).forward([[1, 2, 3]])
    buffers = device._machine.workspace._buffers.values()
    assert sum(buffer.size for buffer in buffers) == device.plan_workspace([ProgramPlan(spec.blocks, 32)], 32)
    np.testing.assert_array_equal(small.forward([[1, 2, 3]])[0], before)


@pytest.mark.parametrize("masked", [False, True], ids=["unified", "discrete"])
def test_large_data_arrives_whole(masked: bool, opened: Open) -> None:
    """More than the staging ring holds, from several threads."""
    device = opened(unified=masked)
    memory = device._machine.memory
    data = np.random.default_rng(0).integers(0, 256, STAGING_BYTES + 5_000_000, dtype=np.uint8)
    buffer = memory.device(data.nbytes, clear=False)
    memory.write(buffer.all(), [data])
    np.testing.assert_array_equal(memory.read(View(buffer, 0, data.nbytes)), data)
