"""How much memory this process may still take, on the bare machine and inside a container."""

from __future__ import annotations

from pathlib import Path


def available_bytes(root: Path = Path("/")) -> int:
    """Bytes that can be allocated without swapping: the machine's, or less where a cgroup (v1 or v2) limits us.

    Page cache counts as available, as the kernel gives it back under pressure. `root`: where /proc and /sys are found.
    """
    limits = [_meminfo(root)]
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            limits += _cgroup_chain(root / "sys/fs/cgroup", path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            limits += _cgroup_chain(
                root / "sys/fs/cgroup/memory",
                path,
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )
    return max(0, min(limits))


def _meminfo(root: Path) -> int:
    for line in _read(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    return 0


def _cgroup_chain(mount: Path, path: str, limit: str, usage: str, reclaimable: str) -> list[int]:
    """What each group from ours up to the mount's root leaves. A container often sees its own group as the root."""
    own = mount / path.lstrip("/")
    left = []
    for folder in (own, *own.parents):
        if folder != mount and mount not in folder.parents:
            break
        bound = _read(folder / limit).strip()
        if bound.isdigit():
            used = int(_read(folder / usage).strip() or 0)
            left.append(int(bound) - used + _stat(folder / "memory.stat", reclaimable))
    return left


def _stat(path: Path, name: str) -> int:
    for line in _read(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def parse_bytes(text: str) -> int:
    """`8GiB`, `512MiB`, `1.5GB`, `2000000000` → bytes. Raises ValueError with one sentence."""
    units = {"": 1, "b": 1, "k": 2**10, "kib": 2**10, "kb": 10**3, "m": 2**20, "mib": 2**20, "mb": 10**6,
             "g": 2**30, "gib": 2**30, "gb": 10**9, "t": 2**40, "tib": 2**40, "tb": 10**12}  # fmt: skip
    compact = text.strip().replace(" ", "").lower()
    digits = compact.rstrip("bgikmt")
    try:
        size = float(digits) * units[compact[len(digits) :]]
    except (KeyError, ValueError):
        raise ValueError(f"{text!r} is not a memory size; write it like 8GiB, 512MiB or 2000000000") from None
    if not 0 < size < 2**60:
        raise ValueError(f"{text!r} is not a usable memory size; write it like 8GiB, 512MiB or 2000000000")
    return int(size)


def format_bytes(size: int) -> str:
    """1536 → '1.5 KiB'."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024 or unit == "GiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError


def counted(n: int, noun: str) -> str:
    """'1 token', '1,024 tokens'."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
