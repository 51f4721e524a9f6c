"""What a GPU may have of memory, as its driver's budgets and amdgpu's files in sysfs tell; and who may not open it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tandem.devices.vulkan import VulkanDevice, budget
from tandem.devices.vulkan.budget import KernelMemory, kernel_memory, memory_spaces
from tandem.devices.vulkan.facts import closed_nodes
from tandem.devices.vulkan.probe import Heap

GIB = 1 << 30
ADDRESS = "0000:c4:00.0"


def sysfs(root: Path, **values: int) -> None:
    folder = root / "sys/bus/pci/devices" / ADDRESS
    folder.mkdir(parents=True)
    for name, value in values.items():
        (folder / f"mem_info_{name}").write_text(f"{value}\n")


def heaps(monkeypatch: pytest.MonkeyPatch, *found: Heap) -> None:
    monkeypatch.setattr(budget, "memory_of", lambda handle, extensions: (found, ()))


def test_amdgpus_files(tmp_path: Path) -> None:
    sysfs(tmp_path, gtt_total=16 * GIB, gtt_used=GIB, vram_total=4 * GIB, vram_used=GIB // 2)
    found = kernel_memory(ADDRESS, tmp_path)
    assert found == KernelMemory(16 * GIB, GIB, 4 * GIB, GIB // 2)
    assert (found.total, found.free) == (20 * GIB, 20 * GIB - 3 * GIB // 2)
    assert kernel_memory("0000:01:00.0", tmp_path) is None
    assert kernel_memory(None, tmp_path) is None


def test_files_that_are_no_numbers(tmp_path: Path) -> None:
    sysfs(tmp_path, gtt_total=1, gtt_used=1, vram_total=1)
    (tmp_path / "sys/bus/pci/devices" / ADDRESS / "mem_info_vram_used").write_text("much")
    assert kernel_memory(ADDRESS, tmp_path) is None


def test_an_apu_has_all_its_heaps_but_no_more_than_the_kernel_lets_it(
    vulkan: VulkanDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heaps(
        monkeypatch,
        Heap(10 * GIB, 9 * GIB, device_local=False, host_visible=True),
        Heap(20 * GIB, 18 * GIB, device_local=True, host_visible=True),
    )
    gpu = replace(vulkan._context.gpu, type="integrated", pci=ADDRESS)
    (space,) = memory_spaces(gpu, tmp_path)
    assert (space.bytes_total, space.bytes_free, space.host_mapped) == (30 * GIB, 27 * GIB, True)
    sysfs(tmp_path, gtt_total=12 * GIB, gtt_used=2 * GIB, vram_total=4 * GIB, vram_used=GIB)
    (space,) = memory_spaces(gpu, tmp_path)
    assert (space.bytes_total, space.bytes_free) == (16 * GIB, 13 * GIB)


def test_a_discrete_gpu_has_its_largest_heap(vulkan: VulkanDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the window of 256 MiB through which the host reaches a part of it."""
    heaps(
        monkeypatch,
        Heap(GIB // 4, GIB // 4, device_local=True, host_visible=True),
        Heap(32 * GIB, None, device_local=False, host_visible=True),
        Heap(16 * GIB, 15 * GIB, device_local=True, host_visible=False),
    )
    spaces = memory_spaces(replace(vulkan._context.gpu, type="discrete"))
    assert [(space.name, space.bytes_free) for space in spaces] == [
        ("device", 15 * GIB), ("device", GIB // 4), ("bus", 32 * GIB),
    ]  # fmt: skip
    assert not any(space.host_mapped for space in spaces)


def test_a_device_file_that_this_user_may_not_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = tmp_path / "dev/dri"
    nodes.mkdir(parents=True)
    for number in (128, 129):
        (nodes / f"renderD{number}").touch()
    assert closed_nodes(tmp_path) == []
    monkeypatch.setattr(os, "access", lambda path, mode: path.name != "renderD129")
    (sentence,) = closed_nodes(tmp_path)
    assert sentence.startswith(
        "this user may not open /dev/dri/renderD129; join the group that owns it (sudo usermod -aG"
    )
