"""What cannot work says so in one sentence: batches that point outside, devices that are not there, broken drivers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from devices.runner import Runner, aligned_zeros
from devices.vulkan.conftest import Open
from devices.vulkan.support import bundled, whole
from tandem._native import Timeline
from tandem.devices.base import Event, KVGroupSpec, ProgramPlan, StepBuffers
from tandem.devices.batch import Batch, BatchLayout
from tandem.devices.spec import FFNSpec, HeadSpec, NormSpec
from tandem.devices.vulkan import VulkanDevice, memory, queue
from tandem.devices.vulkan.binding import constants as vk
from tandem.devices.vulkan.binding import loader
from tandem.devices.vulkan.binding.loader import VulkanError
from tandem.devices.vulkan.instance import Instance
from tandem.errors import DeviceError
from tandem.models.load import block_weights
from tandem.pipeline.devices import open_device


def test_a_bad_batch_fails_its_step_and_leaves_the_lane_working(vulkan: VulkanDevice) -> None:
    spec, checkpoint = bundled()
    runner = Runner(spec, checkpoint, whole(spec, vulkan), rows=16, sequences=2, context=32)
    before = runner.forward([[5, 6, 7]])[0]
    with pytest.raises(DeviceError, match=r"row 0 has token 8192, the vocabulary has 8192"):
        runner.step([(runner.start(), [spec.vocab])])
    np.testing.assert_array_equal(runner.forward([[5, 6, 7]])[0], before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batch: batch.pages.__setitem__(0, 2), "names page 2 of a pool with 2"),
        (lambda batch: batch.sequences.__setitem__((0, 5), 1), "does not cover what the sequence attends to"),
        (lambda batch: batch.rows.__setitem__((0, 1), 3), "do not end at its length"),
        (lambda batch: batch.rows.__setitem__((0, 0), 1), "a row names a sequence outside the batch's 1"),
        (lambda batch: batch.set_counts(2, 1, 0), "a sequence has not as many rows as it says"),
        (lambda batch: batch.set_counts(9, 1, 0), "a batch of 9 rows, for a program linked for 4"),
    ],
)
def test_batches_that_point_outside(change: object, message: str, vulkan: VulkanDevice) -> None:
    spec, checkpoint = bundled()
    attention = spec.attention[0]
    block = vulkan.load(spec.blocks[1], block_weights(checkpoint, spec, 1))
    pool = vulkan.allocate_kv(KVGroupSpec(0, (0,), attention.kv_heads, attention.head_dim, attention.window), pages=2)
    buffers = StepBuffers(aligned_zeros((4, spec.hidden)), aligned_zeros((1, 1)), aligned_zeros((0, 4, spec.hidden)))
    program = vulkan.link([block], rows=4, buffers=buffers, kv=[pool])
    batch = Batch(BatchLayout(4, 1, 1, 4, 1))
    batch.rows[0] = (0, 0, 0, 0)
    batch.sequences[0] = (0, 1, 1, 0, 0, 0)
    batch.set_counts(1, 1, 0)
    change(batch)  # type: ignore[operator]
    timeline = Timeline()
    program.submit(batch, signal=Event(timeline, 1))
    with pytest.raises(DeviceError, match=message):
        Event(timeline, 1).wait()


def test_a_device_that_is_not_there(instance: Instance) -> None:
    with pytest.raises(DeviceError, match=r"device 'vulkan:9' does not exist; there are: vulkan:0 \("):
        VulkanDevice(9, instance=instance)


@pytest.mark.parametrize("name", ["vulkan:", "vulkan:x", "vulkan:-1", "cpu:0", "vulcan:0"])
def test_names_that_no_device_has(name: str) -> None:
    with pytest.raises(DeviceError, match="is not known; there are: cpu, ref, vulkan:N"):
        open_device(name)


def test_out_of_memory_says_what_is_taken(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    device = opened()

    def refuse(name: str, *arguments: object) -> object:
        if name == "vkAllocateMemory":
            raise VulkanError(name, vk.OUT_OF_DEVICE_MEMORY)
        return loader.create(name, *arguments)

    taken = device.allocate_kv(KVGroupSpec(0, (0,), 1, 64, None), 4)
    before = device._machine.memory.counters.allocated  # the pool; across a bus, what uploads need too
    monkeypatch.setattr(memory, "create", refuse)
    said = rf"out of memory: the driver refuses 16,384 bytes beside the {before:,} taken; "
    with pytest.raises(DeviceError, match=said):
        device.allocate_kv(KVGroupSpec(0, (0,), 1, 64, None), 4)
    assert taken.bytes == 16_384


def test_a_lost_device_fails_the_step(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, checkpoint = bundled()
    runner = Runner(spec, checkpoint, whole(spec, opened()), rows=8, sequences=1, context=16)
    sequence = runner.start()
    runner.step([(sequence, [1])])

    def lose(name: str, *arguments: object) -> None:
        raise VulkanError(name, vk.DEVICE_LOST)

    monkeypatch.setattr(queue, "call", lose)
    with pytest.raises(DeviceError, match=r"vulkan:0: the GPU was lost \(VK_ERROR_DEVICE_LOST\)"):
        runner.step([(sequence, [2])])


def test_a_closed_device_refuses_work(opened: Open) -> None:
    spec, checkpoint = bundled()
    device = opened()
    runner = Runner(spec, checkpoint, whole(spec, device), rows=8, sequences=1, context=16)
    device.close()
    device.close()
    with pytest.raises(DeviceError, match="closed"):
        runner.forward([[1, 2]])


def refusal(setup: str, **environment: str) -> str:
    """What opening a device says in a process of its own, where the loader has not been loaded yet."""
    code = f"{setup}\nfrom tandem.devices.vulkan import VulkanDevice\nVulkanDevice(0)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    return done.stderr.strip().splitlines()[-1]


def test_no_loader() -> None:
    setup = "import tandem.devices.vulkan.binding.loader as loader\nloader._LIBRARY = 'libvulkan-absent.so.1'"
    assert "DeviceError: vulkan: no Vulkan loader on this machine" in refusal(setup)


def test_no_driver() -> None:
    text = refusal("", VK_DRIVER_FILES="/nonexistent.json", VK_ICD_FILENAMES="/nonexistent.json")
    assert "DeviceError: vulkan: no driver" in text and "mesa-vulkan-drivers" in text


def test_a_broken_driver_file(tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text('{"file_format_version": "1.0.0", "ICD": {"library_path": "/no.so", "api_version": "1.3.0"}}')
    text = refusal("", VK_DRIVER_FILES=str(broken), VK_ICD_FILENAMES=str(broken))
    assert "DeviceError: vulkan: no driver could be started" in text and "VK_DRIVER_FILES" in text


def test_what_one_binding_cannot_hold_is_refused_by_the_plan(opened: Open) -> None:
    device = opened(storage_range=128 << 20)
    head = HeadSpec(vocab=262_144, hidden=64, norm=NormSpec(1e-6))
    assert device.plan_workspace([ProgramPlan((head,), 256)], samples=128) > 0
    message = (
        r"a step's logits lie in one binding, which holds 134,217,728 bytes on this GPU: 128 rows of 262,144 tokens,"
    )
    with pytest.raises(DeviceError, match=message + " and 129 are asked for; choose fewer sequences"):
        device.plan_workspace([ProgramPlan((head,), 256)], samples=129)
    ffn = FFNSpec(0, 64, 21_504, "silu", NormSpec(1e-6))
    assert device.plan_workspace([ProgramPlan((ffn,), 512)], samples=1) > 0
    with pytest.raises(DeviceError, match=r"2048 rows needs 352,321,536 bytes of scratch \(gate_up\) in one binding"):
        device.plan_workspace([ProgramPlan((ffn,), 2048)], samples=1)
