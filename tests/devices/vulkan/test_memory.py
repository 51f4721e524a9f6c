"""Limits of bindings, what is planned against what is held, and steps that neither allocate nor copy weights."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from devices.runner import Runner, aligned_zeros
from devices.vulkan.conftest import Open
from devices.vulkan.support import bundled, prompts_for, relative_error, tiny, whole
from models.cases import CASES
from tandem.devices.base import KVGroupSpec, StepBuffers
from tandem.devices.batch import BatchLayout
from tandem.devices.ref import RefDevice
from tandem.devices.vulkan import VulkanDevice
from tandem.devices.vulkan.matrices import split_rows
from tandem.errors import DeviceError
from tandem.models.load import block_weights
from tandem.weights.tensor import Tensor, TensorType


def test_matrices_and_pages_cross_a_bindings_limit(opened: Open, ref: RefDevice) -> None:
    """Bindings of 256 KiB: every matrix is split by rows, and a layer's KV pages lie in several bindings."""
    device = opened(storage_range=256 << 10, integer_dot=True)
    spec, checkpoint = bundled()
    block = device.load(spec.blocks[2], block_weights(checkpoint, spec, 2))
    assert min(len(matrix.chunks) for matrix in block.matrices.values()) > 1
    prompts = prompts_for(spec, 40, 9)
    expected = Runner(spec, checkpoint, whole(spec, ref), context=128).forward(prompts)
    runner = Runner(spec, checkpoint, whole(spec, device), rows=48, context=128)
    pool = runner._pools[0][1]
    assert pool.chunk_pages < pool.pages
    for one, other in zip(runner.forward(prompts, chunk=16), expected, strict=True):
        assert relative_error(one, other) < 1e-4
    pool.copy_page(0, pool.pages - 1)


def test_a_matrix_is_split_where_a_grid_is_too_small(vulkan: VulkanDevice) -> None:
    """Lavapipe's grids have 65,535 workgroups in a dimension; Gemma's vocabulary takes one more."""
    limits = replace(vulkan._context.gpu.limits, groups=(65_535, 65_535, 65_535))
    tensor = Tensor("output", TensorType.F32, (262_144, 1), np.zeros(4 * 262_144, np.uint8))
    assert list(split_rows(limits, tensor)) == [(0, 262_140), (262_140, 4)]


def test_a_pool_that_no_binding_holds_is_refused(opened: Open) -> None:
    device = opened(storage_range=64 << 10)
    with pytest.raises(DeviceError, match="10,000 KV pages of 4,096 bytes a layer are more than 4 bindings"):
        device.allocate_kv(KVGroupSpec(0, (0,), 1, 64, None), 10_000)


def test_unsupported_kv_is_refused(vulkan: VulkanDevice) -> None:
    with pytest.raises(DeviceError, match="KV pages of q8_0 are not supported; choose f16 or f32"):
        vulkan.allocate_kv(KVGroupSpec(0, (0,), 1, 64, None, dtype="q8_0"), 4)


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


def test_weights_and_workspace_are_planned_exactly(opened: Open) -> None:
    device = opened()
    spec, checkpoint = bundled()
    given = [block_weights(checkpoint, spec, index) for index in range(len(spec.blocks))]
    blocks = [device.load(block, weights) for block, weights in zip(spec.blocks, given, strict=True)]
    planned = device.plan_weights([(b, w, None) for b, w in zip(spec.blocks, given, strict=True)])
    assert planned == device.counters.allocated
    pools = [
        device.allocate_kv(KVGroupSpec(each.layer, (each.layer,), each.kv_heads, each.head_dim, each.window), 4)
        for each in spec.attention
    ]
    held = device.counters.allocated
    buffers = StepBuffers(aligned_zeros((32, spec.hidden)), aligned_zeros((2, spec.vocab)), aligned_zeros((0, 32, 1)))
    device.link(blocks, rows=32, buffers=buffers, kv=pools)
    assert device.counters.allocated - held == device.plan_workspace(spec.blocks, 32)


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
    assert 5 * 4 * layout.size <= after[1] - before[1] < 5 * (4 * layout.size + 1024)


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


def test_programs_share_what_they_hand_on(opened: Open, ref: RefDevice) -> None:
    """Blocks that alternate between devices: one residual stream and one scratch space, however many programs."""
    device = opened(external_host_memory=True)
    spec, checkpoint = bundled()
    placement = [((device, ref)[index % 2], range(index, index + 1)) for index in range(len(spec.blocks))]
    runner = Runner(spec, checkpoint, placement, rows=8, sequences=1, context=32)
    weights = device.plan_weights(
        [(spec.blocks[i], block_weights(checkpoint, spec, i), None) for i in range(0, len(spec.blocks), 2)]
    )
    workspace = device.plan_workspace([spec.blocks[i] for i in range(0, len(spec.blocks), 2)], 8)
    pools = sum(pool.bytes for owner, pool in runner._pools.values() if owner is device)
    mirrors = runner.buffers.hidden.nbytes + (runner.buffers.logits.nbytes if len(spec.blocks) % 2 else 0)
    assert device.counters.allocated == weights + workspace + pools + mirrors
