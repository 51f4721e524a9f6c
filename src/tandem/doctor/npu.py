"""NPUs: what there is, and by which of ONNX Runtime's providers it can be reached."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tandem.doctor.access import check_node
from tandem.doctor.finding import Finding
from tandem.doctor.machine import Machine, PciDevice

_AMD, _INTEL = "1022", "8086"
# PCI device: generation of XDNA.
_XDNA = {"1502": 1, "17f0": 2}
_AMD_DRIVER_SINCE = (6, 14)
# PCI devices that the kernel's intel_vpu drives, by the processors that have them.
_INTEL_NPUS = {"7d1d": "Meteor Lake", "ad1d": "Arrow Lake", "643e": "Lunar Lake", "b03e": "Panther Lake"}


def check_npus(machine: Machine) -> Iterator[Finding]:
    for device in machine.pci or []:
        if device.vendor == _AMD and device.device in _XDNA:
            yield from _check_amd(machine, device, _XDNA[device.device])
        elif device.vendor == _INTEL and device.device in _INTEL_NPUS:
            yield from _check_intel(machine, device)


def _check_amd(machine: Machine, device: PciDevice, generation: int) -> Iterator[Finding]:
    nodes = _accel_nodes(machine)
    xrt = _xrt(machine)
    text = f"XDNA {generation} NPU ({device.id}). Looked for: the kernel driver amdxdna: "
    if device.driver is not None:
        text += f"{device.driver} has taken it"
    elif machine.kernel is not None and machine.kernel < _AMD_DRIVER_SINCE:
        text += "not there, it is part of Linux 6.14 and newer"
    else:
        text += "it has not taken it"
    text += f"; /dev/accel: {', '.join(nodes) or 'nothing'}; AMD's user space (XRT): {xrt or 'not found'}. "
    if generation == 1:
        # The README of amd/xdna-driver and the release notes of Ryzen AI say which generations they are for.
        text += (
            "Whatever of it is there, no program here can use it: AMD's runtimes for language models leave the first "
            "generation out, and there is no package of its user space for Linux"
        )
    else:
        text += "Tandem would reach it as onnx:vitisai, with the ONNX Runtime of AMD's Ryzen AI software; untested"
    facts: dict[str, Any] = {"pci": device.address, "id": device.id, "driver": device.driver, "generation": generation}
    facts |= {"accel": nodes, "xrt": xrt}
    yield Finding("npu", "device", "note", text, facts=facts)
    if generation > 1 and device.driver is not None:
        yield from _check_nodes(machine)


def _check_intel(machine: Machine, device: PciDevice) -> Iterator[Finding]:
    nodes = _accel_nodes(machine)
    library = next((name for name in ("libze_intel_npu.so.1", "libze_intel_vpu.so.1") if machine.library(name)), None)
    text = (
        f"Intel NPU of {_INTEL_NPUS[device.device]} ({device.id}). Looked for: the kernel driver intel_vpu: "
        f"{'it has taken it' if device.driver is not None else 'it has not taken it'}; /dev/accel: "
        f"{', '.join(nodes) or 'nothing'}; Intel's user space: {library or 'libze_intel_npu.so.1 is not there'}. "
        "Tandem would reach it as onnx:openvino:npu; untested"
    )
    facts = {"pci": device.address, "id": device.id, "driver": device.driver, "accel": nodes, "library": library}
    yield Finding("npu", "device", "note", text, facts=facts)
    if device.driver is not None:
        yield from _check_nodes(machine)


def _accel_nodes(machine: Machine) -> list[str]:
    return [f"/dev/accel/{name}" for name in machine.names("dev/accel") or []]


def _xrt(machine: Machine) -> str | None:
    """Where AMD's runtime lies, if it does."""
    if machine.library("libxrt_coreutil.so.2"):
        return "libxrt_coreutil.so.2"
    return "/opt/xilinx/xrt" if machine.exists("opt/xilinx/xrt") else None


def _check_nodes(machine: Machine) -> Iterator[Finding]:
    for name in machine.names("dev/accel") or []:
        node = machine.node(f"dev/accel/{name}")
        if node is not None:
            found = check_node(machine, node, "npu", "accel node")
            yield found if found.status == "ok" else replace(found, status="warning")
