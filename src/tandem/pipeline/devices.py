"""Devices by name."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from tandem.devices.base import Device
from tandem.errors import DeviceError
from tandem.pipeline.placement import host_of

# Imported on use: a device brings its own libraries.
_MODULES = {
    "cpu": "tandem.devices.cpu",
    "ref": "tandem.devices.ref",
    "vulkan": "tandem.devices.vulkan",
    "onnx": "tandem.devices.onnx.device",
}


# Devices that `auto` may choose from, as a comma-separated list; without it, the CPU, all GPUs and all NPUs.
DEVICES_VARIABLE = "TANDEM_DEVICES"


def usable_devices(threads: int | None = None, *, software: bool = False) -> dict[str, str]:
    """The CPU, every GPU that our shaders run on, and what ONNX Runtime's providers find beside the CPU: names with
    descriptions, which tell hardware and driver.

    Only those of TANDEM_DEVICES, where that is set, and the CPU where one of them needs it. software: also a Vulkan
    driver that computes on the CPU, which is in the way of the CPU device; TANDEM_DEVICES may name it. Raises
    DeviceError for one that it names and that is not there.
    """
    wanted = [name.strip() for name in os.environ.get(DEVICES_VARIABLE, "").split(",") if name.strip()]
    found = {}
    needs_cpu = any(host_of(name) == "cpu" for name in wanted)
    if not wanted or needs_cpu:
        cpu = open_device("cpu", threads=threads)
        cpu.close()
        found["cpu"] = f"{_cpu_name()}, {cpu.info.description}"
    if not wanted or any(name.startswith("vulkan") for name in wanted):
        from tandem.devices.vulkan.facts import describe_gpus

        try:
            gpus = describe_gpus()
        except DeviceError:
            gpus = []
        found |= {
            gpu["name"]: f"{gpu['description']}, {gpu['driver']}"
            for gpu in gpus
            if gpu["usable"] and (wanted or software or gpu["type"] != "cpu")
        }
    if not wanted and find_spec("onnxruntime"):
        from tandem.devices.onnx.providers import accelerators

        found |= accelerators()
    for name in wanted:
        if name.startswith("onnx:"):
            from tandem.devices.onnx.providers import resolve

            found[name] = resolve(name).description
        if name not in found:
            raise DeviceError(
                f"{DEVICES_VARIABLE} names {name!r}; there are: {', '.join(found) or 'none of its devices'}"
            )
    if needs_cpu and "cpu" not in wanted:
        wanted.append("cpu")
    return {name: found[name] for name in wanted or found}


def described(names: Sequence[str], threads: int | None = None) -> dict[str, str]:
    """Devices with descriptions, in this order. Raises DeviceError for one that does not open."""
    usable = usable_devices(threads, software=True)
    found = {}
    for name in dict.fromkeys(names):
        if name not in usable:
            device = open_device(name, threads=threads)
            device.close()
            found[name] = device.info.description
        else:
            found[name] = usable[name]
    return found


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()


def open_device(name: str, *, threads: int | None = None, deterministic: bool = True) -> Device:
    """`cpu`, `ref` or `vulkan:N` (plain `vulkan` is the first); `vulkan:N/L`, with L from 1, is one more lane of it;
    `onnx:PROVIDER` and `onnx:PROVIDER:PROCESSOR`.

    threads: for the CPU, None takes all that this process may use. deterministic: for Vulkan; the others are so anyway.
    Raises DeviceError.
    """
    match = re.fullmatch(r"(cpu|ref|vulkan)|vulkan:([0-9]+)(?:/([1-9][0-9]*))?|(onnx):[a-z]+(?::[a-z]+)?", name)
    if match is None:
        raise DeviceError(
            f"device {name!r} is not known; there are: cpu, ref, vulkan:N (N as `tandem devices` numbers), "
            "vulkan:N/1 for a second lane of that GPU, and onnx:PROVIDER"
        )
    kind, index, lane = match[1] or match[4] or "vulkan", int(match[2] or 0), int(match[3] or 0)
    if kind == "onnx":
        from tandem.devices.onnx.providers import resolve

        resolve(name)
    module: ModuleType = import_module(_MODULES[kind])
    device: Device
    match kind:
        case "cpu":
            device = module.CpuDevice(threads=threads)
        case "ref":
            device = module.RefDevice()
        case "onnx":
            device = module.OnnxDevice(name, threads)
        case _:
            device = module.VulkanDevice(index, lane=lane, deterministic=deterministic)
    return device
