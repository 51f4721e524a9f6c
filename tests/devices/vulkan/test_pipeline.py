"""Vulkan lanes in a pipeline: with the CPU, and two of one GPU; what they give, take, copy, and how they fail."""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import pytest

from devices.vulkan.conftest import Open
from devices.vulkan.support import BUNDLED
from paths import SHARED
from pipeline.agreement import check_agreement
from pipeline.forced import forced, placed
from tandem.devices.base import Device, Float32Array
from tandem.devices.cpu import CpuDevice
from tandem.devices.ref import RefDevice
from tandem.devices.vulkan.device import VulkanDevice
from tandem.memory.plan import Limits

TINY = SHARED / "data" / "models" / "TinyStories-656K"
LIMITS = Limits(context=80, sequences=4, rows=48)

# What decides how lanes hand over: the memory's kind, and whether host arrays can be imported.
KINDS = [
    pytest.param({}, id="unified"),
    pytest.param({"external_host_memory": True}, id="unified-no-import"),
    pytest.param({"unified": True}, id="discrete"),
    pytest.param({"unified": True, "external_host_memory": True}, id="discrete-no-import"),
]


def stories(count: int, length: int) -> list[list[int]]:
    draw = random.Random(3)
    return [[draw.randrange(3, 2000) for _ in range(length)] for _ in range(count)]


def logits_of(text: str, devices: Mapping[str, Device]) -> Float32Array:
    executor = placed(TINY, text, devices, LIMITS)
    return forced(executor, stories(3, 40), chunk=24, decode=3)


@pytest.mark.parametrize("hidden", KINDS)
def test_two_lanes_of_one_gpu_give_the_bits_of_one(hidden: dict[str, bool], opened: Open) -> None:
    devices = {"g": opened(**hidden), "h": opened(**hidden)}
    alone = logits_of("g", devices)
    for text in ("attn=h,ffn=g,head=h,m=2", "first=g,rest=h,layers=1,m=3"):
        assert np.array_equal(logits_of(text, devices), alone), text


@pytest.mark.parametrize("hidden", KINDS)
def test_slices_on_two_lanes_of_one_gpu_agree_and_keep_their_bits(hidden: dict[str, bool], opened: Open) -> None:
    devices: dict[str, Device] = {"g": opened(**hidden), "h": opened(**hidden), "ref": RefDevice(), "cpu": CpuDevice(1)}
    exact, cpu = logits_of("ref", devices), logits_of("cpu", devices)
    for text in ("ffn=g+h,ratio=0.4", "attn=h+g,heads=0.5,ffn=g+h,ratio=0.5"):
        got = logits_of(text, devices)
        check_agreement(exact, cpu, got, text)
        assert np.array_equal(logits_of(f"{text},m=2", devices), got), text
    for name in ("ref", "cpu"):
        devices[name].close()


@pytest.mark.parametrize("hidden", KINDS)
def test_a_gpu_and_the_cpu_agree(hidden: dict[str, bool], opened: Open) -> None:
    devices: dict[str, Device] = {"g": opened(**hidden), "ref": RefDevice(), "cpu": CpuDevice(1)}
    exact, cpu = logits_of("ref", devices), logits_of("cpu", devices)
    for text in ("attn=cpu,ffn=g,m=2", "attn=g,ffn=cpu,m=3", "ffn=cpu+g,ratio=0.6,m=2", "ffn=g+cpu,ratio=0.3,attn=cpu"):
        check_agreement(exact, cpu, logits_of(text, devices), text)
    for name in ("ref", "cpu"):
        devices[name].close()


@pytest.mark.parametrize("hidden", KINDS)
@pytest.mark.parametrize("text", ["attn=cpu,ffn=vulkan:0,m=2", "ffn=cpu+vulkan:0,ratio=0.5,attn=vulkan:0,m=3"])
def test_a_pipeline_takes_what_was_planned_and_then_nothing_more(
    text: str, hidden: dict[str, bool], opened: Open
) -> None:
    """And where memory is shared it copies nothing but the batches."""
    gpu, cpu = opened(**hidden), CpuDevice(1)
    executor = placed(BUNDLED, text, {"vulkan:0": gpu, "cpu": cpu}, Limits(64, 2, 16))
    forced(executor, [[5, 6, 7, 8, 9, 10]] * 2, chunk=4, decode=2)
    planned = {plan.device: plan for plan in executor.plan.devices}
    live = gpu._machine.memory._live.values()
    assert sum(buffer.size for buffer in live if buffer.keeps is None) == planned["vulkan:0"].total
    assert cpu._lane.scratch_bytes == planned["cpu"].workspace
    allocations, copied = gpu.counters.allocations, gpu.counters.copied
    forced(executor, [[11, 12, 13, 14, 15, 16]] * 2, chunk=4, decode=2)
    assert gpu.counters.allocations == allocations
    steps = 3  # a chunk and two tokens
    programs = steps * sum(link.device == "vulkan:0" for link in executor._links)
    if not hidden:
        assert gpu.counters.copied - copied <= programs * (4 * executor.plan.layout.size + 1024)
    cpu.close()


def test_a_gpu_lane_that_fails_fails_its_step_only(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    devices: dict[str, Device] = {"g": opened(), "cpu": CpuDevice(1)}
    executor = placed(TINY, "ffn=cpu+g,ratio=0.5,m=2", devices, LIMITS)
    told = stories(2, 20)
    expected = forced(executor, told, chunk=8, decode=2)
    broken = next(link.program for link in executor._links if link.device == "g")
    with monkeypatch.context() as patched:
        patched.setattr(broken, "_check", _refuse)
        with pytest.raises(Exception, match="no more of this"):
            forced(executor, told, chunk=8, decode=2)
    assert np.array_equal(forced(executor, told, chunk=8, decode=2), expected)
    devices["cpu"].close()


def _refuse(*_: object) -> None:
    raise RuntimeError("no more of this")


def test_the_same_gpu_twice_is_two_lanes(vulkan: VulkanDevice, opened: Open) -> None:
    """A profile of a column split sees both at work at once: one begins before the other ends."""
    devices: dict[str, Device] = {"g": vulkan, "h": opened()}
    executor = placed(BUNDLED, "ffn=g+h,ratio=0.5", devices, Limits(64, 2, 32))
    executor.profile = []
    forced(executor, [list(range(5, 35))], chunk=30, decode=0)
    (step,) = executor.profile
    stages: dict[int, list[tuple[float, float]]] = {}
    for program in step.programs:
        stages.setdefault(program.stage, []).append((program.start, program.end))
    pairs = [spans for spans in stages.values() if len(spans) == 2]
    assert len(pairs) == executor.spec.layers
    overlapping = [max(a[0], b[0]) < min(a[1], b[1]) for a, b in pairs]
    assert any(overlapping)
