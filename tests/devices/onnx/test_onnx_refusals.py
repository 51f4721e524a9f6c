"""What a provider refuses is one sentence that begins with the device's name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from devices.onnx.conftest import PROVIDER
from devices.onnx.test_onnx_pipeline import NAME, TINY, stories
from devices.vulkan.support import random_weights
from pipeline.forced import forced, placed
from tandem.devices.base import Device, KVGroupSpec, StepBuffers
from tandem.devices.cpu import CpuDevice
from tandem.devices.onnx.device import OnnxDevice
from tandem.devices.onnx.graph import Builder
from tandem.devices.onnx.providers import resolve
from tandem.devices.onnx.sessions import Sessions, refusal
from tandem.devices.onnx.weights_form import FLOAT32
from tandem.devices.spec import FFNSpec, NormSpec
from tandem.engine.build import EngineConfig, plan_engine
from tandem.errors import DeviceError
from tandem.memory.plan import Limits
from tandem.weights.open import open_checkpoint
from tandem.weights.tensor import TensorType

FFN = FFNSpec(0, 64, 128, "silu", NormSpec(1e-6))


def one_sentence(error: pytest.ExceptionInfo[DeviceError]) -> str:
    text = str(error.value)
    assert text.startswith(f"{NAME}: "), text
    assert "\n" not in text
    assert len(text) < 400
    return text


def test_an_operator_that_the_provider_lacks() -> None:
    graph = Builder("odd")
    x = graph.input("x", (2, 2))
    graph.output(graph("NoSuchOperator", x, domain="com.microsoft"), "y", (2, 2))
    with pytest.raises(DeviceError) as error:
        Sessions(resolve(NAME), 1, None).open(graph.finish())
    assert "NoSuchOperator" in one_sentence(error)


def test_a_graph_that_is_wrong() -> None:
    graph = Builder("wrong")
    x, y = graph.input("x", (2, 3)), graph.input("y", (2, 3))
    graph.output(graph("MatMul", x, y), "z", (2, 3))
    with pytest.raises(DeviceError) as error:
        Sessions(resolve(NAME), 1, None).open(graph.finish())
    assert "the provider refuses the graph 'wrong'" in one_sentence(error)


def test_part_of_a_graph_is_not_run_elsewhere() -> None:
    """As ONNX Runtime says it where a provider leaves operators to the CPU's."""
    text = (
        "[ONNXRuntimeError] : 1 : FAIL : This session contains graph nodes that are assigned to the default CPU EP, "
        "but fallback to CPU EP has been explicitly disabled by the user."
    )
    said = refusal(NAME, "ffn 0", RuntimeError(text))
    assert said == f"{NAME}: the provider does not take every operator of the graph 'ffn 0'"


@pytest.mark.parametrize("when", ["opened", "linked"])
def test_a_device_that_is_busy(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Busy:
        def __init__(self, *arguments: Any, **named: Any) -> None:
            raise RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : accel0: Device or resource busy")

    if when == "opened":
        monkeypatch.setattr(onnxruntime, "InferenceSession", Busy)
        with pytest.raises(DeviceError) as error:
            OnnxDevice(NAME, 1)
    else:
        device = OnnxDevice(NAME, 1, forms=FLOAT32)
        monkeypatch.setattr(onnxruntime, "InferenceSession", Busy)
        with pytest.raises(DeviceError) as error:
            placed(TINY, "onnx:cpu", {"onnx:cpu": device, "cpu": CpuDevice(1)}, Limits(64, 2, 8))
        device.close()
    assert "the device is busy" in one_sentence(error)


def test_a_run_that_the_provider_fails() -> None:
    """The failure reaches whoever waits, with the provider's reason."""
    graph = Builder("adds")
    x = graph.input("x", (2, 2))
    graph.output(graph("Add", x, x), "y", (2, 2))
    session = Sessions(resolve(NAME), 1, None).open(graph.finish())
    with pytest.raises(DeviceError) as error:
        session.run({})
    assert "the graph 'adds' failed" in one_sentence(error)


def test_keys_in_eight_bits_are_refused() -> None:
    device = OnnxDevice(NAME, 1, forms=FLOAT32)
    with pytest.raises(DeviceError, match=f"{NAME}: KV pages of q8_0 .* choose f32 or f16"):
        device.allocate_kv(KVGroupSpec(0, (0,), 1, 64, None, dtype="q8_0"), 4)
    device.close()


def test_weights_that_do_not_fit() -> None:
    device = OnnxDevice(NAME, 1, forms=FLOAT32)
    tensors = random_weights(np.random.default_rng(1), FFN, TensorType.F32)
    block = device.load(FFN, tensors)
    buffers = StepBuffers(*(np.zeros(shape, np.float32) for shape in ((4, 32), (1, 1), (0, 4, 32))))
    with pytest.raises(DeviceError, match=f"{NAME}: ffn 0 works on rows of 64, not 32"):
        device.link([block], rows=4, buffers=buffers)
    device.close()


def test_compiled_graphs_are_kept_on_disk(tmp_path: Path) -> None:
    """Where the provider keeps any: each layer's own. A kept one is read, or where the provider refuses
    it, as OpenVINO 2025.4 does for its CPU, compiled again: what is computed is the same.
    """
    if PROVIDER != "openvino":
        pytest.skip("the CPU provider compiles nothing that it could keep")
    folder = tmp_path / "kept"
    found, logits = [], []
    for _ in range(2):
        device = OnnxDevice(NAME, 1, forms=FLOAT32, cache=folder)
        devices: dict[str, Device] = {"onnx:cpu": device, "cpu": CpuDevice(1)}
        executor = placed(TINY, "onnx:cpu", devices, Limits(64, 2, 8))
        logits.append(forced(executor, stories(2, 20), chunk=8, decode=3))
        found.append({path.name for path in folder.iterdir()})
        executor.close()
    assert len(found[0]) > 9 * executor.spec.layers
    assert found[1] == found[0]
    np.testing.assert_array_equal(*logits)
    for name in found[0]:
        (folder / name).write_bytes(b"no model")
    damaged = OnnxDevice(NAME, 1, forms=FLOAT32, cache=folder)
    executor = placed(TINY, "onnx:cpu", {"onnx:cpu": damaged, "cpu": CpuDevice(1)}, Limits(64, 2, 8))
    np.testing.assert_array_equal(forced(executor, stories(2, 20), chunk=8, decode=3), logits[0])
    executor.close()


def test_the_library_tells_nobody(tmp_path: Path) -> None:
    """ONNX Runtime's telemetry begins with an id of the machine in the user's cache, as soon as it is imported."""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    program = "from tandem.devices.onnx.providers import runtime; print(runtime().get_available_providers())"
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    said = subprocess.check_output([sys.executable, "-c", program], env=environment, text=True)
    assert "ExecutionProvider" in said
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_an_engine_on_a_placement_that_names_it() -> None:
    config = EngineConfig(placement=f"attn={NAME},ffn=cpu", threads=1, max_sequences=2, rows=16, context=64)
    planned = plan_engine(open_checkpoint(str(TINY)), config)
    assert planned.placement.names == ("cpu", NAME)
    planned.close()
