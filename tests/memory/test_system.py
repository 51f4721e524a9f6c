"""What may be allocated: the machine's memory, and the limits of containers, read from copies of /proc and /sys."""

from __future__ import annotations

from pathlib import Path

import pytest

from tandem.memory.system import available_bytes, format_bytes, parse_bytes

GIB = 2**30


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = {"proc/meminfo": f"MemTotal: {16 * 2**20} kB\nMemAvailable: {8 * 2**20} kB\n"}


def test_without_cgroups_it_is_what_the_kernel_says(tmp_path: Path) -> None:
    assert available_bytes(write(tmp_path, MEMINFO)) == 8 * GIB


def test_cgroup_v2_limits_of_every_level_count(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/pod/container"
    root = write(
        tmp_path,
        MEMINFO
        | {
            "proc/self/cgroup": "0::/pod/container\n",
            f"{group}/memory.max": "max\n",
            "sys/fs/cgroup/pod/memory.max": f"{3 * GIB}\n",
            "sys/fs/cgroup/pod/memory.current": f"{GIB}\n",
            "sys/fs/cgroup/pod/memory.stat": f"anon 5\ninactive_file {GIB // 2}\n",
        },
    )
    assert available_bytes(root) == 3 * GIB - GIB + GIB // 2


def test_a_container_that_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        MEMINFO
        | {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": f"{2 * GIB}\n",
            "sys/fs/cgroup/memory.current": f"{GIB}\n",
        },
    )
    assert available_bytes(root) == GIB


def test_cgroup_v1(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        MEMINFO
        | {
            "proc/self/cgroup": "5:cpu,cpuacct:/a\n4:memory:/a\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "1\n",
            "sys/fs/cgroup/memory/a/memory.limit_in_bytes": f"{GIB}\n",
            "sys/fs/cgroup/memory/a/memory.usage_in_bytes": f"{GIB // 4}\n",
            "sys/fs/cgroup/memory/a/memory.stat": "cache 7\ntotal_inactive_file 1024\n",
        },
    )
    assert available_bytes(root) == GIB - GIB // 4 + 1024


def test_on_this_machine() -> None:
    assert 0 < available_bytes() < 2**50


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GiB", 8 * GIB), ("8g", 8 * GIB), ("1.5 GB", 1_500_000_000), ("512MiB", 2**29), ("100", 100), ("4k", 4096)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "8 apples", "0", "nan"])
def test_what_is_no_size_is_said(text: str) -> None:
    with pytest.raises(ValueError, match="memory size"):
        parse_bytes(text)


def test_sizes_are_shown() -> None:
    assert [format_bytes(n) for n in (12, 1536, 3 * 2**20, 5 * GIB)] == ["12 B", "1.5 KiB", "3.0 MiB", "5.0 GiB"]
