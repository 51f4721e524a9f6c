"""All checks, in the order in which a reader wants them, and their JSON."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from tandem.doctor.access import check_render_nodes
from tandem.doctor.finding import Area, Finding
from tandem.doctor.gpu import check_gpus, check_kernel
from tandem.doctor.machine import Machine, Unreadable
from tandem.doctor.memory import check_locked_memory, check_memory
from tandem.doctor.npu import check_npus
from tandem.doctor.probe import probe_software, probe_vulkan
from tandem.doctor.processor import check_cores, check_processor
from tandem.doctor.software import check_software
from tandem.doctor.vulkan import check_devices, check_drivers, check_loader


@dataclass(frozen=True, slots=True)
class Probes:
    """What running code said (`probe.py`); None where only files could be read."""

    software: Mapping[str, Any] | None = None
    vulkan: Mapping[str, Any] | None = None


def examine(machine: Machine, probes: Probes | None = None) -> list[Finding]:
    """Every finding. probes: by default, those of the running machine, or none for a root elsewhere."""
    if probes is None:
        probes = Probes(probe_software(), probe_vulkan()) if machine.live else Probes()
    checks: list[tuple[Area, str, Callable[[], Iterable[Finding]]]] = [
        ("software", "tandem", partial(check_software, probes.software)),
        ("software", "kernel", partial(check_kernel, machine)),
        ("cpu", "model", partial(check_processor, machine)),
        ("cpu", "cores", partial(check_cores, machine)),
        ("memory", "ram", partial(check_memory, machine)),
        ("memory", "locked", partial(check_locked_memory, machine)),
        ("gpu", "driver", partial(check_gpus, machine)),
        ("gpu", "render node", partial(check_render_nodes, machine)),
        ("gpu", "loader", partial(check_loader, machine, probes.vulkan)),
        ("gpu", "drivers", partial(check_drivers, machine, probes.vulkan)),
        ("gpu", "device", partial(check_devices, machine, probes.vulkan)),
        ("npu", "device", partial(check_npus, machine)),
    ]
    return [finding for area, name, check in checks for finding in _run(area, name, check)]


def _run(area: Area, name: str, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except Unreadable as error:
        yield Finding(area, name, "unknown", str(error))


def to_json(machine: Machine, findings: Iterable[Finding]) -> dict[str, Any]:
    """For a bug report: no user's name, no home folder, no host's name."""
    found = list(findings)
    counts = {status: sum(each.status == status for each in found) for status in _STATUSES}
    report = {"summary": counts, "container": machine.container, "findings": [asdict(each) for each in found]}
    hidden: dict[str, Any] = _hide(machine, report)
    return hidden


_STATUSES = ("ok", "note", "warning", "problem", "unknown")


def _hide(machine: Machine, value: Any) -> Any:
    """`value` with the user's home folder, and paths into anybody's, as ~."""
    if isinstance(value, dict):
        return {key: _hide(machine, each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_hide(machine, each) for each in value]
    if not isinstance(value, str):
        return value
    return anonymous(machine, value)


def anonymous(machine: Machine, text: str) -> str:
    name, home = machine.user or ("", "")
    if home.strip("/"):
        text = text.replace(home, "~")
    text = re.sub(r"/(home|Users)/[^/\s:,;]+", "~", text)
    return re.sub(rf"\b{re.escape(name)}\b", "USER", text) if len(name) > 2 and name != "root" else text
