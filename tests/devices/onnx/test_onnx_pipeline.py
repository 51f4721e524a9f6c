"""An ONNX device in placements: what it gives, takes, allocates, and where its graphs read and write."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from devices.onnx.conftest import PROVIDER
from devices.vulkan.support import BUNDLED
from engine.numpy_allocations import counted
from paths import SHARED
from pipeline.agreement import check_agreement, divergence
from pipeline.forced import forced, placed
from tandem._native import Timeline
from tandem.devices.base import Device, Event, Float32Array
from tandem.devices.cpu import CpuDevice
from tandem.devices.onnx.device import OnnxDevice
from tandem.devices.ref import RefDevice
from tandem.engine.sampling_params import SamplingParams
from tandem.llm import LLM
from tandem.memory.plan import Limits
from tandem.pipeline.executor import Executor

Open = Callable[..., OnnxDevice]
NAME = {"cpu": "onnx:cpu", "openvino": "onnx:openvino:cpu"}[PROVIDER]

TINY = SHARED / "data" / "models" / "TinyStories-656K"
LIMITS = Limits(context=80, sequences=4, rows=48)

PLACEMENTS = [
    "onnx:cpu",
    "attn=onnx:cpu,ffn=cpu",
    "attn=cpu,ffn=onnx:cpu,m=2",
    "onnx:cpu,m=3",
    "attn=onnx:cpu,ffn=onnx:cpu,embed=onnx:cpu,head=onnx:cpu",
    "ffn=cpu+onnx:cpu,ratio=0.4",
    "ffn=onnx:cpu+cpu,ratio=0.6,m=2",
    "attn=onnx:cpu+cpu,heads=0.5,ffn=cpu+onnx:cpu,ratio=0.5",
    "first=onnx:cpu,rest=cpu,layers=1,m=2",
]


def stories(count: int, length: int, vocab: int = 2000) -> list[list[int]]:
    draw = random.Random(3)
    return [[draw.randrange(3, vocab) for _ in range(length)] for _ in range(count)]


def logits_of(text: str, devices: Mapping[str, Device], limits: Limits = LIMITS) -> Float32Array:
    executor = placed(TINY, text, devices, limits)
    return forced(executor, stories(3, 60), chunk=24, decode=6)


@pytest.fixture
def opened() -> Iterator[Open]:
    """Opens devices of the provider, with one thread."""
    devices: list[OnnxDevice] = []

    def open_one(**options: Any) -> OnnxDevice:
        devices.append(OnnxDevice(NAME, 1, **options))
        return devices[-1]

    yield open_one
    for device in devices:
        device.close()


@pytest.fixture(scope="module")
def oracles() -> tuple[Float32Array, Float32Array]:
    """Logits of the float32 reference and of the CPU."""
    devices: dict[str, Device] = {"ref": RefDevice(), "cpu": CpuDevice(1)}
    found = logits_of("ref", devices), logits_of("cpu", devices)
    for device in devices.values():
        device.close()
    return found


@pytest.mark.parametrize("text", PLACEMENTS)
def test_placements_agree(text: str, opened: Open, oracles: tuple[Float32Array, Float32Array]) -> None:
    devices: dict[str, Device] = {"onnx:cpu": opened(), "cpu": CpuDevice(1)}
    check_agreement(*oracles, logits_of(text, devices), text)
    devices["cpu"].close()


def test_pages_that_the_host_brings_together_are_those_that_the_graph_finds(
    opened: Open, oracles: tuple[Float32Array, Float32Array]
) -> None:
    devices: dict[str, Device] = {"onnx:cpu": opened(gathers=True), "cpu": CpuDevice(1)}
    gathered = logits_of("attn=onnx:cpu,ffn=cpu", devices)
    assert devices["onnx:cpu"].counters.bytes_gathered > 0  # type: ignore[attr-defined]
    devices["onnx:cpu"] = other = opened(gathers=False)
    np.testing.assert_allclose(logits_of("attn=onnx:cpu,ffn=cpu", devices), gathered, atol=1e-4)
    assert other.counters.bytes_gathered == 0
    check_agreement(*oracles, gathered, "gathered")
    devices["cpu"].close()


def test_keys_in_float32(opened: Open, oracles: tuple[Float32Array, Float32Array]) -> None:
    devices: dict[str, Device] = {"onnx:cpu": opened(), "cpu": CpuDevice(1)}
    got = logits_of("onnx:cpu", devices, Limits(80, 4, 48, "f32"))
    check_agreement(*oracles, got, "f32")
    devices["cpu"].close()


@pytest.mark.parametrize("text", ["attn=onnx:cpu,ffn=cpu", "onnx:cpu", "ffn=cpu+onnx:cpu,ratio=0.5", "onnx:cpu,m=2"])
def test_it_takes_what_was_planned_and_a_steady_step_allocates_nothing(text: str, opened: Open) -> None:
    device = opened()
    executor = placed(BUNDLED, text, {"onnx:cpu": device, "cpu": CpuDevice(1)}, Limits(96, 3, 32))
    told = stories(3, 40)
    forced(executor, told, chunk=16, decode=6)
    planned = next(plan for plan in executor.plan.devices if plan.device == "onnx:cpu")
    blocks = {id(block): block for (name, _), block in executor._blocks.items() if name == "onnx:cpu"}
    assert sum(block.bytes for block in blocks.values()) == planned.weights
    groups = zip(executor.plan.groups, executor.pools, strict=True)
    assert sum(pool.bytes for group, pool in groups if group.device == "onnx:cpu") == planned.kv
    assert device._workspace.bytes == planned.workspace
    assert planned.host == 0
    sizes = allocated_on_the_lane(device, executor, told)
    assert [size for size in sizes if size >= 4096] == []
    assert device._workspace.bytes == planned.workspace


def allocated_on_the_lane(device: Any, executor: Executor, told: list[list[int]]) -> list[int]:
    """Bytes of each array that the device's thread allocates in some more steps."""
    counting = counted()
    sizes: list[list[int]] = []
    on_lane(device, lambda: sizes.append(counting.__enter__()))
    forced(executor, told, chunk=16, decode=6)
    found: list[list[int]] = []
    on_lane(device, lambda: found.append(list(sizes[0])))
    on_lane(device, lambda: counting.__exit__(None, None, None))
    return found[0]


def on_lane(device: Any, work: Any) -> None:
    done = Event(Timeline(), 1)
    device._lane.submit(work, (), done)
    done.wait()


def test_the_counting_sees_an_array(opened: Open) -> None:
    device = opened()
    executor = placed(TINY, "onnx:cpu", {"onnx:cpu": device, "cpu": CpuDevice(1)}, LIMITS)
    before = executor._links[1].program._rotate  # type: ignore[attr-defined]

    def rotate(*arguments: Any) -> None:
        np.empty(5000, np.uint8)
        before(*arguments)

    executor._links[1].program._rotate = rotate  # type: ignore[attr-defined]
    assert 5000 in allocated_on_the_lane(device, executor, stories(3, 40))


@pytest.mark.parametrize("text", ["attn=onnx:cpu,ffn=cpu", "ffn=cpu+onnx:cpu,ratio=0.5", "onnx:cpu,m=2"])
def test_graphs_work_on_the_step_s_own_memory(text: str, opened: Open) -> None:
    """Hidden rows, partials and pages are bound where they lie: nothing is copied between devices."""
    device = opened(gathers=False)
    executor = placed(TINY, text, {"onnx:cpu": device, "cpu": CpuDevice(1)}, LIMITS)
    forced(executor, stories(3, 40), chunk=24, decode=3)
    buffers = executor._buffers
    homes = {
        "hidden": [each.hidden for each in buffers],
        "partial": [each.partials for each in buffers],
        "keys": [pool.keys for pool in executor.pools if hasattr(pool, "keys")],
        "values": [pool.values for pool in executor.pools if hasattr(pool, "values")],
    }
    sessions = [
        session
        for (name, _), block in executor._blocks.items()
        if name == "onnx:cpu"
        for session in block._sessions.values()
    ]
    sessions += [session for by_shape in device._attention.values() for session in by_shape.values()]
    seen = 0
    for session in sessions:
        for port, address in session._bound.items():
            if port in homes:
                seen += 1
                assert any(home.ctypes.data <= address < home.ctypes.data + home.nbytes for home in homes[port]), port
    assert seen > 0


def test_a_sequence_s_garbage_stays_its_own(opened: Open) -> None:
    """Pages that a failed step left full of NaN are handed on; whoever has them next does not see it."""
    devices: dict[str, Device] = {"onnx:cpu": opened(), "cpu": CpuDevice(1)}
    executor = placed(TINY, "onnx:cpu", devices, LIMITS)
    told = stories(3, 40)
    expected = forced(executor, told, chunk=24, decode=3)
    for pool in executor.pools:
        pool.keys[:], pool.values[:] = np.nan, np.nan  # type: ignore[attr-defined]
    executor._buffers[0].hidden[:] = np.nan
    np.testing.assert_array_equal(forced(executor, told, chunk=24, decode=3), expected)
    devices["cpu"].close()


def test_a_run_that_fails_fails_its_step_only(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    devices: dict[str, Device] = {"onnx:cpu": opened(), "cpu": CpuDevice(1)}
    executor = placed(TINY, "ffn=cpu+onnx:cpu,ratio=0.5,m=2", devices, LIMITS)
    told = stories(2, 20)
    expected = forced(executor, told, chunk=8, decode=2)
    broken = next(link.program for link in executor._links if link.device == "onnx:cpu")
    with monkeypatch.context() as patched:
        patched.setattr(broken, "_run", refuse)
        with pytest.raises(Exception, match="no more of this"):
            forced(executor, told, chunk=8, decode=2)
    np.testing.assert_array_equal(forced(executor, told, chunk=8, decode=2), expected)
    devices["cpu"].close()


def refuse(*_: object) -> None:
    raise RuntimeError("no more of this")


@pytest.mark.parametrize("count", [6, pytest.param(64, marks=pytest.mark.slow)])
def test_the_bundled_model_agrees(count: int, opened: Open) -> None:
    """Teacher-forced over stories that the CPU tells, as Vulkan's devices are compared: with 8-bit activations each
    device diverges from float32, and two of them no further from each other than both from it.
    """
    params = [SamplingParams(max_tokens=200, seed=seed, temperature=1.0, ignore_eos=True) for seed in range(count)]
    with LLM(BUNDLED, placement="cpu", threads=1, context=256) as llm:
        outputs = llm.generate(["Once upon a time", "The little dog"] * (count // 2), params)
    told = [[*output.prompt_token_ids, *output.outputs[0].token_ids][:200] for output in outputs]
    devices: dict[str, Device] = {"onnx:cpu": opened(), "cpu": CpuDevice(1), "ref": RefDevice()}
    limits = Limits(context=208, sequences=6, rows=96)

    def logits(text: str) -> Float32Array:
        executor = placed(BUNDLED, text, devices, limits)
        groups = [told[first : first + 6] for first in range(0, count, 6)]
        return np.concatenate([forced(executor, group, chunk=48, decode=8) for group in groups])

    exact, cpu = logits("ref"), logits("cpu")
    for text in ("onnx:cpu", "attn=onnx:cpu,ffn=cpu", "ffn=cpu+onnx:cpu,ratio=0.5"):
        got = logits(text)
        second, best = np.partition(exact, -2)[:, -2:].T
        clear = best - second > 2 * np.abs(got - cpu).max()
        assert clear.mean() > 0.4, text
        np.testing.assert_array_equal(got.argmax(axis=-1)[clear], cpu.argmax(axis=-1)[clear], text)
        own = divergence(cpu, exact) + divergence(exact, got)
        assert divergence(cpu, got) < 1.25 * own, text
        assert divergence(exact, got) <= 1.5 * divergence(exact, cpu), text
        assert np.linalg.norm(got - exact) <= 1.5 * np.linalg.norm(cpu - exact), text
    for name in ("cpu", "ref"):
        devices[name].close()
