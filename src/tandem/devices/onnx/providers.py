"""ONNX Runtime's execution providers: which this installation has, what each of them finds, how to get one.

    onnx:cpu              ONNX Runtime's own kernels, on this machine's CPU
    onnx:openvino         Intel's NPU where there is one, or else its GPU, or else the CPU
    onnx:openvino:npu     that one

A provider comes with the package that it is built into; two of those packages cannot be installed side by side.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module, metadata
from types import ModuleType
from typing import Any

from tandem.errors import DeviceError

EXTRA = "pip install 'tandem-llm[onnx]'"


@dataclass(frozen=True, slots=True)
class Provider:
    """name: as placements have it. execution_provider: as ONNX Runtime calls it. get: what to do to have it.

    targets: the processors it may be told to take, the preferred first; none where it takes the only one there is.
    accelerator: whether it drives more than the CPU. in_place: of its processors, those that work on the host's memory
    where that lies.
    """

    name: str
    execution_provider: str
    drives: str
    get: str
    targets: tuple[str, ...] = ()
    accelerator: bool = True
    in_place: frozenset[str] = frozenset()


PROVIDERS: Mapping[str, Provider] = {
    provider.name: provider
    for provider in (
        Provider(
            "cpu", "CPUExecutionProvider", "this machine's CPU", EXTRA, accelerator=False, in_place=frozenset({"cpu"})
        ),
        Provider(
            "openvino", "OpenVINOExecutionProvider", "Intel's NPUs, GPUs and CPUs",
            "pip install 'tandem-llm[onnx-openvino]', in an environment without onnxruntime",
            ("npu", "gpu", "cpu"), in_place=frozenset({"cpu"}),
        ),
        Provider(
            "qnn", "QNNExecutionProvider", "Qualcomm's Hexagon NPUs",
            "pip install onnx onnxruntime-qnn, on a machine with Qualcomm's driver", ("htp",),
        ),
        Provider(
            "vitisai", "VitisAIExecutionProvider", "AMD's NPUs of the second generation and later",
            "install AMD's Ryzen AI software, which brings its own onnxruntime; it is not on PyPI",
        ),
        Provider("coreml", "CoreMLExecutionProvider", "Apple's Neural Engine", "pip install onnxruntime, on macOS"),
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Target:
    """What a device's name means. options: for the provider."""

    name: str
    provider: Provider
    processor: str
    description: str
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def accelerator(self) -> bool:
        """Whether it is more than the CPU."""
        return self.processor != "cpu"

    @property
    def in_place(self) -> bool:
        """Whether it reads and writes the host's memory where that lies."""
        return self.processor in self.provider.in_place


@cache
def runtime() -> ModuleType:
    """ONNX Runtime. Raises DeviceError where it, or onnx, is missing or does not load."""
    # Read once, when the library is loaded: it would write down an id of this machine, and tell Microsoft what it runs.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    for name in ("onnxruntime", "onnx"):
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise DeviceError(f"onnx: {name} does not load: {error}") from None
            raise DeviceError(f"onnx: the Python package {name} is not installed: {EXTRA}") from None
        except Exception as error:  # whatever a broken installation raises
            raise DeviceError(f"onnx: {name} does not load: {str(error).splitlines()[0]}") from None
    return import_module("onnxruntime")


def installed() -> list[str]:
    """Providers of this installation, by ONNX Runtime's names. Raises DeviceError as `runtime`."""
    return list(runtime().get_available_providers())


def processors(provider: Provider) -> list[str]:
    """What a provider that is installed finds on this machine, the preferred first; empty where it finds nothing."""
    if not provider.targets:
        return [provider.name]
    if provider.name == "openvino":
        found = _openvino_devices()
        return [target for target in provider.targets if any(each.startswith(target.upper()) for each in found)]
    return list(provider.targets)


def resolve(name: str) -> Target:
    """`onnx:PROVIDER` or `onnx:PROVIDER:PROCESSOR`. Raises DeviceError, in one sentence, for one that is not there."""
    _, _, rest = name.partition(":")
    provider_name, _, processor = rest.partition(":")
    provider = PROVIDERS.get(provider_name)
    if provider is None:
        raise DeviceError(f"{name}: there is no provider {provider_name!r}; there are: {', '.join(PROVIDERS)}")
    if provider.execution_provider not in installed():
        raise DeviceError(
            f"{name}: this installation of ONNX Runtime has no {provider.execution_provider}: {provider.get}"
        )
    found = processors(provider)
    if not found:
        raise DeviceError(f"{name}: {provider.execution_provider} finds no device on this machine")
    if processor and processor not in found:
        there = ", ".join(found)
        raise DeviceError(f"{name}: {provider.execution_provider} finds no {processor} here; it finds {there}")
    chosen = processor or found[0]
    version = runtime().__version__
    what = f"{provider.execution_provider} of ONNX Runtime {version}"
    if provider.targets:
        what += f", {chosen.upper()}"
    return Target(name, provider, chosen, what, _options(provider, chosen))


def describe_providers() -> list[dict[str, Any]]:
    """Every provider that Tandem knows, for `tandem devices`: whether it is here, what it finds, how to get it."""
    try:
        here, missing = installed(), None
    except DeviceError as error:
        here, missing = [], str(error)
    rows = []
    for provider in PROVIDERS.values():
        there = provider.execution_provider in here
        found = processors(provider) if there else []
        rows.append(
            {
                "name": f"onnx:{provider.name}",
                "provider": provider.execution_provider,
                "drives": provider.drives,
                "installed": there,
                "processors": found,
                "get": None if there else provider.get,
            }
        )
    return [{**row, "error": missing} for row in rows] if missing else rows


def accelerators() -> dict[str, str]:
    """Names and descriptions of what `auto` may consider: more than the CPU, and found. Nothing where ONNX Runtime is
    not installed.
    """
    try:
        here = installed()
    except DeviceError:
        return {}
    found = {}
    for provider in PROVIDERS.values():
        if provider.accelerator and provider.execution_provider in here:
            for processor in processors(provider):
                if processor != "cpu":
                    name = f"onnx:{provider.name}:{processor}" if provider.targets else f"onnx:{provider.name}"
                    found[name] = resolve(name).description
    return found


def packages() -> dict[str, str]:
    """Distributions of ONNX Runtime that are installed, with their versions: all of them bring the same module."""
    names = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-qnn", "onnxruntime-vitisai")
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _openvino_devices() -> list[str]:
    """As OpenVINO names them: CPU, GPU.0, NPU."""
    module = import_module("onnxruntime.capi._pybind_state")
    try:
        return list(module.get_available_openvino_device_ids())
    except Exception:  # a driver that is half there
        return []


def _options(provider: Provider, processor: str) -> dict[str, str]:
    match provider.name:
        case "openvino":
            options = {"device_type": processor.upper()}
            if processor == "cpu":
                # Of itself it would take bfloat16 on some CPUs, and 8-bit activations.
                exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
                options["load_config"] = json.dumps({"CPU": exact})
            return options
        case "qnn":
            library = "QnnHtp.dll" if os.name == "nt" else "libQnnHtp.so"
            return {"backend_path": library, "enable_htp_fp16_precision": "1"}
        case _:
            return {}
