"""What a benchmark ran on: the machine in words, and the ceilings that its figures are held against."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

from tandem import _native

# The instruction sets that decide which kernels run, by the names that Linux gives them.
_ISA_FLAGS = ("avx2", "f16c", "fma", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_int8")


@dataclass(frozen=True, slots=True)
class Machine:
    """cores: those this process may use. cache_bytes: the last-level cache, None where the system does not say."""

    cpu: str
    cores: int
    isa: tuple[str, ...]
    cache_bytes: int | None
    memory_bytes: int
    system: str
    python: str

    def __str__(self) -> str:
        return (
            f"{self.cpu}, {self.cores} cores ({' '.join(self.isa)}), {self.memory_bytes / 2**30:.1f} GiB memory, "
            f"{self.system}, Python {self.python}"
        )

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def describe_machine() -> Machine:
    """Reads /proc and /sys; nothing is measured."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = set(fields.get("flags", "").split())
    return Machine(
        cpu=fields.get("model name", platform.machine()),
        cores=len(os.sched_getaffinity(0)),
        isa=tuple(flag for flag in _ISA_FLAGS if flag in flags),
        cache_bytes=_last_level_cache(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
    )


def _last_level_cache() -> int | None:
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text.removesuffix("K")) * 1024 if text.endswith("K") else int(text))
    return max(sizes, default=None)


def measure_read_bandwidth(working_set: int, threads: int, seconds: float = 0.5) -> float:
    """Bytes per second at which `threads` threads read a buffer of `working_set` bytes over and over.

    The best pass counts. A working set that fits a cache is read from that cache, as a small model's weights are:
    take the size of the weights to get the ceiling of one-row decode.
    """
    return _native.read_rate(_native.choose_isa(""), threads, working_set, seconds)
