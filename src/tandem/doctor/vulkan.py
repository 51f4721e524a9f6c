"""Vulkan: the loader, the drivers' files, and what starts when they are asked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tandem.doctor.finding import Finding
from tandem.doctor.gpu import AMD, NVIDIA, gpus
from tandem.doctor.machine import Machine

_FOLDERS = ("etc/vulkan/icd.d", "usr/share/vulkan/icd.d", "usr/local/share/vulkan/icd.d", "usr/local/etc/vulkan/icd.d",
            "run/opengl-driver/share/vulkan/icd.d")  # fmt: skip
_VARIABLES = ("VK_DRIVER_FILES", "VK_ICD_FILENAMES")
_LOADER = {"debian": "libvulkan1", "fedora": "vulkan-loader", "arch": "vulkan-icd-loader", "suse": "libvulkan1"}
_MESA = {"debian": "mesa-vulkan-drivers", "fedora": "mesa-vulkan-drivers", "arch": "vulkan-radeon",
         "suse": "Mesa-vulkan-drivers"}  # fmt: skip
# Parts of the names of Mesa's and AMD's driver files for AMD GPUs, and of the software driver.
_FOR_AMD = ("radeon", "amd_icd", "amd_pro")
_SOFTWARE = ("lvp_icd", "lavapipe")


def check_loader(machine: Machine, probe: Mapping[str, Any] | None) -> Iterator[Finding]:
    if _offers_gpu(probe) or machine.library("libvulkan.so.1"):
        yield Finding("gpu", "loader", "ok", "the Vulkan loader is installed (libvulkan.so.1)")
    elif gpus(machine):
        text = "the Vulkan loader libvulkan.so.1 is in none of the usual folders"
        yield Finding("gpu", "loader", "problem", text, machine.install(_LOADER))
    else:
        yield Finding("gpu", "loader", "note", "no Vulkan loader, and no GPU that would need one")


def check_drivers(machine: Machine, probe: Mapping[str, Any] | None) -> Iterator[Finding]:
    """From their files, where distributions put them; a GPU that is offered has its driver, wherever it lies."""
    named = next((variable for variable in _VARIABLES if machine.environment.get(variable)), None)
    if named is not None:
        paths = [path.lstrip("/") for path in machine.environment[named].split(":") if path]
        for path in paths:
            if not machine.exists(path):
                text = f"{named} names /{path}, which is not there"
                yield Finding("gpu", "drivers", "problem", text, f"unset {named}, or name a driver file that exists")
    else:
        paths = [f"{folder}/{name}" for folder in _FOLDERS for name in machine.names(folder) or []]
        paths = [path for path in paths if path.endswith(".json")]
    good = []
    for path in paths:
        broken = _broken(machine, path)
        if broken is None:
            good.append(path.rpartition("/")[2])
        elif machine.exists(path):
            text, fix = f"the driver file /{path} {broken}", f"reinstall its package: {machine.install(_MESA)}"
            yield Finding("gpu", "drivers", "warning", text, fix)
    found = gpus(machine)
    hardware = [name for name in good if not name.startswith(_SOFTWARE)]
    facts = {"files": good, "variable": named}
    mesa = machine.install(_MESA)
    if _offers_gpu(probe):
        yield Finding("gpu", "drivers", "ok", f"drivers: {', '.join(good) or 'found by the loader'}", facts=facts)
    elif found and not hardware:
        text = "only the software driver is installed" if good else "no Vulkan driver is installed"
        fix = "install NVIDIA's driver" if all(device.vendor == NVIDIA for device in found) else mesa
        yield Finding("gpu", "drivers", "problem", f"{text}: nothing reaches the GPU", fix, facts)
    elif any(device.vendor == AMD for device in found) and not any(part in name for name in good for part in _FOR_AMD):
        text = f"no Vulkan driver for AMD GPUs among {', '.join(good)}"
        yield Finding("gpu", "drivers", "problem", text, mesa, facts)
    elif good:
        yield Finding("gpu", "drivers", "ok", f"drivers: {', '.join(good)}", facts=facts)
    else:
        yield Finding("gpu", "drivers", "note", "no Vulkan driver, and no GPU that would need one", facts=facts)


def _broken(machine: Machine, path: str) -> str | None:
    """What is wrong with a driver's file, if anything."""
    text = machine.read(path)
    try:
        library = json.loads(text or "")["ICD"]["library_path"]
    except (ValueError, KeyError, TypeError):
        return "is not a driver description"
    if not isinstance(library, str):
        return "is not a driver description"
    if "/" in library and not library.startswith("/"):
        library = f"/{path.rpartition('/')[0]}/{library}"
    return None if machine.library(library) else f"names {library}, which is not installed"


def check_devices(machine: Machine, probe: Mapping[str, Any] | None) -> Iterator[Finding]:
    """What the drivers offer when they are started; only the running machine can tell."""
    if probe is None:
        if gpus(machine):
            text = "whether the drivers start shows only on the machine itself"
            yield Finding("gpu", "device", "unknown", text)
        return
    if "error" in probe:
        if gpus(machine):
            fix = "see the problems above; then VK_LOADER_DEBUG=all tandem devices"
            yield Finding("gpu", "device", "problem", str(probe["error"]), fix)
        else:
            yield Finding("gpu", "device", "note", f"no GPU through Vulkan: {probe['error']}")
        return
    for device in probe["devices"]:
        facts = {name: device[name] for name in ("name", "type", "driver", "api", "unified", "bytes_usable")}
        title = f"{device['name']} {device['description']}, {device['driver']}, Vulkan {device['api']}"
        if device["lacks"]:
            text = f"{title} lacks {'; '.join(device['lacks'])}"
            yield Finding("gpu", "device", "warning", text, f"update the driver: {machine.install(_MESA)}", facts)
        elif device["type"] == "cpu":
            yield Finding("gpu", "device", "note", f"{title}: software, slower than the CPU device", facts=facts)
        else:
            yield Finding("gpu", "device", "ok", title + _measured(device.get("tuned")), facts=facts)
    if gpus(machine) and not _offers_gpu(probe):
        text = "the drivers start and offer no GPU, though the machine has one"
        fix = "see the problems above; then VK_LOADER_DEBUG=all tandem devices"
        yield Finding("gpu", "device", "problem", text, fix)


def _measured(tuned: Mapping[str, Any] | None) -> str:
    """Of how many sizes of matrices the kernels were chosen by measuring them."""
    if tuned is None or not tuned["wanted"]:
        return ""
    sizes = max(tuned["deterministic"], tuned["not_deterministic"])
    return f"; kernels measured for {sizes} sizes of matrices" if sizes else "; kernels not measured yet"


def _offers_gpu(probe: Mapping[str, Any] | None) -> bool:
    return any(device["type"] != "cpu" for device in (probe or {}).get("devices", []))
