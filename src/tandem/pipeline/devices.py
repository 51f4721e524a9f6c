"""Devices by name."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

from tandem.devices.base import Device
from tandem.errors import DeviceError

# Imported on use: a device brings its own libraries.
_MODULES = {"cpu": "tandem.devices.cpu", "ref": "tandem.devices.ref", "vulkan": "tandem.devices.vulkan"}


# Devices that `auto` may choose from, as a comma-separated list; without it, the CPU and all GPUs.
DEVICES_VARIABLE = "TANDEM_DEVICES"


def usable_devices(threads: int | None = None, *, software: bool = False) -> dict[str, str]:
    """The CPU and every GPU that our shaders run on: names with descriptions, which tell hardware and driver.

    Only those of TANDEM_DEVICES, where that is set. software: also a Vulkan driver that computes on the CPU, which is
    in the way of the CPU device; TANDEM_DEVICES may name it. Raises DeviceError for one that it names and that is not
    there.
    """
    wanted = [name.strip() for name in os.environ.get(DEVICES_VARIABLE, "").split(",") if name.strip()]
    found = {}
    if not wanted or "cpu" in wanted:
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
    for name in wanted:
        if name not in found:
            raise DeviceError(
                f"{DEVICES_VARIABLE} names {name!r}; there are: {', '.join(found) or 'none of its devices'}"
            )
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
    """`cpu`, `ref` or `vulkan:N` (plain `vulkan` is the first); `vulkan:N/L`, with L from 1, is one more lane of it.

    threads: for the CPU, None takes all that this process may use. deterministic: for Vulkan; the others are so anyway.
    Raises DeviceError.
    """
    match = re.fullmatch(r"(cpu|ref|vulkan)|vulkan:([0-9]+)(?:/([1-9][0-9]*))?", name)
    if match is None:
        raise DeviceError(
            f"device {name!r} is not known; there are: cpu, ref, vulkan:N (N as `tandem devices` numbers), and "
            "vulkan:N/1 for a second lane of that GPU"
        )
    kind, index, lane = match[1] or "vulkan", int(match[2] or 0), int(match[3] or 0)
    module: ModuleType = import_module(_MODULES[kind])
    device: Device
    match kind:
        case "cpu":
            device = module.CpuDevice(threads=threads)
        case "ref":
            device = module.RefDevice()
        case _:
            device = module.VulkanDevice(index, lane=lane, deterministic=deterministic)
    return device
