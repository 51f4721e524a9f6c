"""Devices by name."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from tandem.devices.base import Device
from tandem.errors import DeviceError

# Imported on use: a device brings its own libraries.
_MODULES = {"cpu": "tandem.devices.cpu", "ref": "tandem.devices.ref", "vulkan": "tandem.devices.vulkan"}


def open_device(name: str, *, threads: int | None = None, deterministic: bool = True) -> Device:
    """`cpu`, `ref` or `vulkan:N` (plain `vulkan` is the first). threads: for the CPU, None takes all that this process
    may use. deterministic: for Vulkan; the others are so anyway. Raises DeviceError.
    """
    kind, colon, number = name.partition(":")
    numbered = kind == "vulkan" and number.isascii() and number.isdigit()
    if kind not in _MODULES or (colon and not numbered):
        raise DeviceError(
            f"device {name!r} is not known; there are: cpu, ref, vulkan:N (N as `tandem devices` numbers)"
        )
    module: ModuleType = import_module(_MODULES[kind])
    device: Device
    match kind:
        case "cpu":
            device = module.CpuDevice(threads=threads)
        case "ref":
            device = module.RefDevice()
        case _:
            device = module.VulkanDevice(int(number or 0), deterministic=deterministic)
    return device
