"""Devices by name."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from tandem.devices.base import Device
from tandem.errors import DeviceError

# Imported on use: a device brings its own libraries.
_MODULES = {"cpu": "tandem.devices.cpu", "ref": "tandem.devices.ref"}


def open_device(name: str, *, threads: int | None = None) -> Device:
    """`cpu` or `ref`. threads: for the CPU, None takes all that this process may use. Raises DeviceError."""
    if name not in _MODULES:
        raise DeviceError(f"device {name!r} is not known; there are: {', '.join(_MODULES)}")
    module: ModuleType = import_module(_MODULES[name])
    device: Device = module.CpuDevice(threads=threads) if name == "cpu" else module.RefDevice()
    return device
