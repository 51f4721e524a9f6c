"""Memory: how much there is, how much of it this process may have, and how much it may lock."""

from __future__ import annotations

from collections.abc import Iterator

from tandem.doctor.finding import Finding
from tandem.doctor.machine import Machine
from tandem.memory.system import available_bytes, format_bytes

_LITTLE = 2 << 30
# The PCI device of NPUs that programs can use on Linux.
XDNA2 = "1022:17f0"


def memory_total(machine: Machine) -> int | None:
    """Bytes of the machine's memory, without what the firmware set aside."""
    value = (machine.fields("proc/meminfo") or {}).get("MemTotal", "").split()
    return int(value[0]) * 1024 if value and value[0].isdigit() else None


def check_memory(machine: Machine) -> Iterator[Finding]:
    fields = machine.fields("proc/meminfo") or {}
    total, free = memory_total(machine), fields.get("MemAvailable", "").split()
    if total is None or not free or not free[0].isdigit():
        yield Finding("memory", "ram", "unknown", "/proc/meminfo does not tell how much memory there is or is free")
        return
    available = int(free[0]) * 1024
    usable = available_bytes(machine.root)
    facts = {"total": total, "available": available, "usable": usable}
    text = f"{format_bytes(total)}, {format_bytes(available)} available"
    if usable < available:
        text += f", of which a control group leaves {format_bytes(usable)}"
    if usable < _LITTLE:
        fix = "raise the control group's memory limit" if usable < available else "end what uses it, or add memory"
        yield Finding("memory", "ram", "warning", f"{text}: little for a model", fix, facts)
    else:
        yield Finding("memory", "ram", "note" if usable < available else "ok", text, facts=facts)


def check_locked_memory(machine: Machine) -> Iterator[Finding]:
    """Tandem locks no memory; AMD's NPU driver counts each buffer against the limit."""
    for line in (machine.read("proc/self/limits") or "").splitlines():
        if line.startswith("Max locked memory"):
            soft = line.removeprefix("Max locked memory").split()[0]
            break
    else:
        yield Finding("memory", "locked", "unknown", "/proc/self/limits does not tell how much memory may be locked")
        return
    npu = any(device.id == XDNA2 and device.driver is not None for device in machine.pci or [])
    if soft == "unlimited":
        yield Finding("memory", "locked", "ok", "memory may be locked without limit", facts={"limit": None})
        return
    if not soft.isdigit():
        yield Finding("memory", "locked", "unknown", f"/proc/self/limits gives {soft!r} as the limit of locked memory")
        return
    facts = {"limit": int(soft)}
    text = f"{format_bytes(int(soft))} may be locked"
    if npu:
        yield Finding(
            "memory", "locked", "warning", f"{text}; the NPU's driver locks all that a model takes",
            "add `* soft memlock unlimited` and `* hard memlock unlimited` to /etc/security/limits.conf and log in "
            "again (a systemd service: LimitMEMLOCK=infinity; a container: --ulimit memlock=-1)", facts,
        )  # fmt: skip
    else:
        yield Finding("memory", "locked", "ok", f"{text}, and Tandem locks none", facts=facts)
