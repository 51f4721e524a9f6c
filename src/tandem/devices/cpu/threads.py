"""How many threads the CPU lane gets when nobody says."""

from __future__ import annotations

import os
from pathlib import Path


def default_threads() -> int:
    """One per physical core that this process may use, no more than its cgroup's CPU quota."""
    usable = os.sched_getaffinity(0)
    cores = {_core(cpu) for cpu in usable}
    quota = _cpu_quota()
    return max(1, min(len(cores), quota) if quota else len(cores))


def _core(cpu: int) -> tuple[str, str]:
    """(package, core) of a logical CPU; the CPU itself where the system does not tell."""
    topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
    try:
        return (topology / "physical_package_id").read_text(), (topology / "core_id").read_text()
    except OSError:
        return "", str(cpu)


def _cpu_quota() -> int | None:
    """Whole CPUs that cgroup v2 grants, or None without a limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else max(1, int(quota) // int(period))
