"""Placements that name ONNX devices, and `auto` where one of them does not work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paths import SHARED
from pipeline.profiles import TINY
from pipeline.test_placement import spec
from tandem.devices.onnx import providers
from tandem.devices.ref import RefDevice
from tandem.engine import placing
from tandem.engine.build import EngineConfig
from tandem.errors import DeviceError
from tandem.models.open import model_spec
from tandem.pipeline import devices
from tandem.pipeline.devices import DEVICES_VARIABLE, open_device, usable_devices
from tandem.pipeline.notation import format_placement, parse_placement
from tandem.weights.open import open_checkpoint


class Runtime:
    """An installation of ONNX Runtime with these providers."""

    __version__ = "1.99.0"

    def __init__(self, *names: str) -> None:
        self._names = names

    def get_available_providers(self) -> list[str]:
        return list(self._names)


@pytest.mark.parametrize(
    ("text", "owners"),
    [
        ("onnx:cpu", "cpu onnx:cpu onnx:cpu onnx:cpu onnx:cpu cpu"),
        ("onnx:openvino:npu,m=2", "cpu onnx:openvino:npu onnx:openvino:npu onnx:openvino:npu onnx:openvino:npu cpu"),
        ("attn=onnx:cpu,ffn=vulkan:0", "cpu onnx:cpu vulkan:0 onnx:cpu vulkan:0 vulkan:0"),
        ("attn=vulkan:0,ffn=onnx:cpu", "vulkan:0 vulkan:0 onnx:cpu vulkan:0 onnx:cpu cpu"),
        ("attn=onnx:cpu,ffn=ref,embed=onnx:cpu,head=onnx:cpu", "onnx:cpu onnx:cpu ref onnx:cpu ref onnx:cpu"),
        ("first=onnx:cpu,rest=ref,layers=1", "cpu onnx:cpu onnx:cpu ref ref ref"),
        ("first=ref,rest=onnx:cpu,layers=1", "ref ref ref onnx:cpu onnx:cpu cpu"),
    ],
)
def test_embedding_and_head_stay_on_the_cpu(text: str, owners: str) -> None:
    placement = parse_placement(text, spec())
    assert placement.owners == tuple(owners.split())
    assert parse_placement(format_placement(placement, spec()), spec()) == placement


def test_columns_shared_with_an_onnx_device() -> None:
    placement = parse_placement("ffn=onnx:cpu+cpu,ratio=0.5", spec())
    assert placement.names == ("cpu", "onnx:cpu")
    assert placement.owners[1:-1] == ("onnx:cpu",) * 4
    assert parse_placement(format_placement(placement, spec()), spec()) == placement


@pytest.mark.parametrize(
    ("name", "here", "words"),
    [
        ("onnx:npu", ("CPUExecutionProvider",), "there is no provider 'npu'; there are: cpu, openvino, qnn"),
        ("onnx:openvino", ("CPUExecutionProvider",), r"has no OpenVINOExecutionProvider: pip install"),
        ("onnx:vitisai", ("CPUExecutionProvider",), "Ryzen AI software"),
        ("onnx:openvino", ("OpenVINOExecutionProvider",), "finds no device on this machine"),
        ("onnx", (), "is not known"),
        ("onnx:", (), "is not known"),
    ],
)
def test_a_provider_that_is_not_there(
    name: str, here: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(providers, "runtime", lambda: Runtime(*here))
    monkeypatch.setattr(providers, "_openvino_devices", list)
    with pytest.raises(DeviceError, match=words):
        open_device(name)


def test_a_processor_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "runtime", lambda: Runtime("OpenVINOExecutionProvider"))
    monkeypatch.setattr(providers, "_openvino_devices", lambda: ["CPU", "GPU.0"])
    with pytest.raises(DeviceError, match="finds no npu here; it finds gpu, cpu"):
        open_device("onnx:openvino:npu")
    assert providers.resolve("onnx:openvino").processor == "gpu"
    assert list(providers.accelerators()) == ["onnx:openvino:gpu"]
    rows = {row["name"]: row for row in providers.describe_providers()}
    assert rows["onnx:openvino"]["processors"] == ["gpu", "cpu"]
    assert rows["onnx:qnn"]["installed"] is False
    assert "onnxruntime-qnn" in rows["onnx:qnn"]["get"]


@pytest.mark.parametrize("missing", ["onnxruntime", "onnx"])
def test_without_the_extra_it_says_what_to_install(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        if name == missing:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return Runtime()

    monkeypatch.setattr(providers, "import_module", absent)
    providers.runtime.cache_clear()
    with pytest.raises(DeviceError, match=rf"package {missing} is not installed: pip install 'tandem-llm\[onnx\]'"):
        open_device("onnx:cpu")
    assert providers.accelerators() == {}
    assert all(not row["installed"] and missing in row["error"] for row in providers.describe_providers())
    providers.runtime.cache_clear()


def test_the_environment_may_name_one_and_gets_the_cpu_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "runtime", lambda: Runtime("CPUExecutionProvider"))
    monkeypatch.setenv(DEVICES_VARIABLE, "onnx:cpu")
    assert list(usable_devices(1)) == ["onnx:cpu", "cpu"]
    monkeypatch.setenv(DEVICES_VARIABLE, "onnx:qnn")
    with pytest.raises(DeviceError, match="QNNExecutionProvider"):
        usable_devices(1)


def test_auto_considers_what_is_more_than_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DEVICES_VARIABLE, raising=False)
    monkeypatch.setattr(devices, "find_spec", lambda name: True)
    monkeypatch.setattr(providers, "runtime", lambda: Runtime("CPUExecutionProvider", "OpenVINOExecutionProvider"))
    monkeypatch.setattr(providers, "_openvino_devices", lambda: ["CPU", "NPU"])
    found = usable_devices(1)
    assert [name for name in found if name.startswith("onnx")] == ["onnx:openvino:npu"]
    assert "NPU" in found["onnx:openvino:npu"]


MODEL = SHARED / "data" / "models" / "TinyStories-656K"
BROKEN = "onnx:openvino:npu"


class Failing(RefDevice):
    """Opens, and refuses every graph."""

    def __init__(self) -> None:
        super().__init__(BROKEN)

    def link(self, *arguments: Any, **named: Any) -> Any:
        raise DeviceError(f"{BROKEN}: the device is busy: resource busy")


@pytest.mark.parametrize("when", ["opened", "linked"])
def test_auto_goes_on_without_what_fails(when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(name: str, **named: Any) -> Any:
        if name == BROKEN:
            if when == "opened":
                raise DeviceError(f"{BROKEN}: the device is busy: resource busy")
            return Failing()
        return open_device(name, **named)

    names = {"cpu": "a CPU", "ref": "numpy", BROKEN: "an NPU"}
    monkeypatch.setattr(placing, "usable_devices", lambda threads: names)
    monkeypatch.setattr(placing, "open_device", opened)
    monkeypatch.setattr(placing, "QUICK", TINY)
    checkpoint = open_checkpoint(str(MODEL))
    config = EngineConfig(threads=1, max_sequences=4)
    with pytest.warns(UserWarning) as warned:
        chosen = placing.choose_placement(checkpoint, model_spec(checkpoint), config, tmp_path)
    assert BROKEN not in chosen
    assert [str(each.message) for each in warned] == [
        f"placement auto goes on without an ONNX device: {BROKEN}: the device is busy: resource busy"
    ]


def test_a_device_that_was_named_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "runtime", lambda: Runtime("CPUExecutionProvider"))
    from tandem.engine.build import plan_engine

    with pytest.raises(DeviceError, match="OpenVINOExecutionProvider"):
        plan_engine(open_checkpoint(str(MODEL)), EngineConfig(placement="attn=onnx:openvino,ffn=cpu", threads=1))
