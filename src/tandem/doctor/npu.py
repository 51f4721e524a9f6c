"""NPUs: what there is. Tandem runs nothing on them yet, so nothing here is more than a note."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tandem.doctor.access import check_node
from tandem.doctor.finding import Finding
from tandem.doctor.machine import Machine

_AMD = "1022"
# PCI device: generation of XDNA.
_XDNA = {"1502": 1, "17f0": 2}
_DRIVER_SINCE = (6, 14)


def check_npus(machine: Machine) -> Iterator[Finding]:
    for device in machine.pci or []:
        if device.vendor != _AMD or device.device not in _XDNA:
            continue
        generation = _XDNA[device.device]
        facts = {"pci": device.address, "id": device.id, "driver": device.driver, "generation": generation}
        text = f"XDNA {generation} NPU ({device.id}), "
        if device.driver is not None:
            text += f"kernel driver {device.driver}"
        elif machine.kernel is not None and machine.kernel < _DRIVER_SINCE:
            text += "no kernel driver: amdxdna is part of Linux 6.14 and newer"
        else:
            text += "no kernel driver: the module amdxdna has not taken it"
        if generation == 1:
            text += "; AMD's runtimes leave the first generation out on Linux, so no program here can use it"
        elif not machine.library("libxrt_coreutil.so.2") and not machine.exists("opt/xilinx/xrt"):
            text += "; AMD's user space for it (XRT) is not installed"
        yield Finding("npu", "device", "note", f"{text}. Tandem does not use NPUs yet", facts=facts)
        if generation > 1 and device.driver is not None:
            yield from _check_nodes(machine)


def _check_nodes(machine: Machine) -> Iterator[Finding]:
    for name in machine.names("dev/accel") or []:
        node = machine.node(f"dev/accel/{name}")
        if node is not None:
            found = check_node(machine, node, "npu", "accel node")
            yield found if found.status == "ok" else replace(found, status="warning")
