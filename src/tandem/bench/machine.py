"""What a benchmark ran on: the machine in words, and the ceilings that its figures are held against."""

from __future__ import annotations

import os
import platform
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

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
    buffer = np.zeros(max(working_set // 4, threads), dtype=np.float32)
    # Written, so that each page has memory of its own and is not the kernel's one page of zeros.
    buffer.fill(1.0)
    parts = np.array_split(buffer, threads)
    # Small buffers are read several times a pass, so that starting a thread does not count.
    repeats = max(1, (64 << 20) // buffer.nbytes)

    def read(part: np.ndarray[tuple[int], np.dtype[np.float32]]) -> None:
        for _ in range(repeats):
            part.max()

    best = 0.0
    end = time.perf_counter() + seconds
    while best == 0.0 or time.perf_counter() < end:
        workers = [threading.Thread(target=read, args=(part,)) for part in parts[1:]]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        read(parts[0])
        for worker in workers:
            worker.join()
        best = max(best, buffer.nbytes * repeats / (time.perf_counter() - start))
    return best
