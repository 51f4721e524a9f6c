"""Each known problem is found on the machine that has it, and a healthy machine gets no false alarm."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from machines import GPU, ME, NPU, RENDER, ZEN4, Tree, healthy_780m

from tandem.doctor.finding import Finding
from tandem.doctor.report import Probes, examine, to_json

SOFTWARE = {"tandem": "0.1.0", "python": "3.12.3", "onnxruntime": None}


def offered(*types: str, lacks: tuple[str, ...] = ()) -> dict[str, Any]:
    """What drivers offer, as far as the doctor looks."""
    return {
        "devices": [
            {"name": f"vulkan:{i}", "description": "AMD Radeon 780M (RADV PHOENIX)", "driver": "radv Mesa 24.0.9",
             "type": kind, "api": "1.3", "unified": True, "bytes_usable": 1 << 35, "lacks": list(lacks)}
            for i, kind in enumerate(types)
        ]
    }  # fmt: skip


HEALTHY = Probes(SOFTWARE, offered("integrated"))


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return healthy_780m(tmp_path)


def found(tree: Tree, probes: Probes | None = None) -> list[Finding]:
    """What is not in order."""
    return [each for each in examine(tree.machine(), probes) if each.status not in ("ok", "note")]


def test_a_healthy_780m_gets_no_false_alarm(tree: Tree) -> None:
    assert found(tree, HEALTHY) == []
    texts = [each.text for each in examine(tree.machine(), HEALTHY)]
    for part in (
        "8845HS",
        "avx512",
        "Radeon 780M",
        "GTT",
        "renderD128 may be opened",
        "XDNA 1",
        "6.8.0-45",
        "16 logical",
    ):
        assert any(part in text for text in texts), part


def test_nor_does_it_with_newer_kernels_more_gtt_or_as_root(tree: Tree) -> None:
    tree.kernel("6.17.1-arch1-1")
    tree.pci(NPU, "1022:1502", "118000", "amdxdna")  # whose limit of locked memory is of no use to anybody here
    tree.write("dev/accel/accel0", mode=0o600)
    tree.gpu_memory(gtt=48, vram=0.5)
    assert found(tree, HEALTHY) == []
    tree.write("proc/self/status", "Uid:\t0 0 0 0\nGid:\t0 0 0 0\nGroups:\t\n")
    tree.write("dev/dri/renderD128", mode=0o600)
    assert found(tree, HEALTHY) == []


def test_drivers_in_unusual_places_are_no_alarm_where_they_work(tree: Tree) -> None:
    tree.remove("usr")
    tree.environment["LD_LIBRARY_PATH"] = "/nix/lib"
    assert found(tree, HEALTHY) == []


def no_render_group(tree: Tree) -> None:
    tree.process(ME)
    tree.edit("etc/group", f"render:x:{RENDER}:joanna", f"render:x:{RENDER}:")


def joined_since(tree: Tree) -> None:
    tree.process(ME)


def closed_mode(tree: Tree) -> None:
    tree.write("proc/self/status", "Uid:\t7 7 7 7\nGid:\t7 7 7 7\nGroups:\t\n")
    tree.write("dev/dri/renderD128", mode=0o600)


def container_without_dri(tree: Tree) -> None:
    tree.remove("dev/dri")
    tree.write(".dockerenv")


def container_without_group(tree: Tree) -> None:
    tree.process(ME)
    tree.write("run/.containerenv")


def no_dri(tree: Tree) -> None:
    tree.remove("dev/dri")


def unbound(tree: Tree) -> None:
    tree.pci(GPU, "1002:1900", "030000", None)
    tree.remove("dev/dri")
    tree.remove("sys/module/amdgpu")


def old_kernel(tree: Tree) -> None:
    unbound(tree)
    tree.kernel("5.15.0-91-generic")


def nomodeset(tree: Tree) -> None:
    unbound(tree)
    tree.edit("proc/cmdline", "quiet", "nomodeset quiet")


def blacklisted(tree: Tree) -> None:
    unbound(tree)
    tree.write("etc/modprobe.d/gpu.conf", "# away\nblacklist amdgpu\n")


def blacklisted_at_boot(tree: Tree) -> None:
    unbound(tree)
    tree.edit("proc/cmdline", "quiet", "modprobe.blacklist=nouveau,amdgpu")


def kernel_without_module(tree: Tree) -> None:
    unbound(tree)
    tree.write("lib/modules/6.8.0-45-generic/modules.dep", "kernel/drivers/gpu/drm/i915/i915.ko.zst:\n")


def no_firmware(tree: Tree) -> None:
    tree.pci(GPU, "1002:1900", "030000", None)
    tree.remove("dev/dri")
    tree.remove("lib/firmware")
    tree.write("etc/os-release", "ID=debian\n")


def refused(tree: Tree) -> None:
    tree.pci(GPU, "1002:1900", "030000", None)
    tree.remove("dev/dri")


def passed_through(tree: Tree) -> None:
    tree.pci(GPU, "1002:1900", "030000", "vfio-pci")
    tree.remove("dev/dri")


def small_gtt(tree: Tree) -> None:
    tree.gpu_memory(gtt=3, vram=0.5)


def small_gtt_by_hand(tree: Tree) -> None:
    tree.gpu_memory(gtt=8, vram=0.5)
    tree.write("sys/module/amdgpu/parameters/gttsize", "8192\n")


def big_carve_out(tree: Tree) -> None:
    tree.write("proc/meminfo", f"MemTotal: {15 * 2**20} kB\nMemAvailable: {10 * 2**20} kB\n")
    tree.gpu_memory(gtt=7.5, vram=16)


def no_loader(tree: Tree) -> None:
    tree.remove("usr/lib/x86_64-linux-gnu/libvulkan.so.1")


def no_driver(tree: Tree) -> None:
    tree.remove("usr/share/vulkan")
    tree.write("etc/os-release", "ID=fedora\n")


def software_driver_only(tree: Tree) -> None:
    tree.remove("usr/share/vulkan/icd.d/radeon_icd.x86_64.json")


def other_makers_driver(tree: Tree) -> None:
    software_driver_only(tree)
    tree.manifest("intel_icd.x86_64.json", "libvulkan_lvp.so")


def driver_without_library(tree: Tree) -> None:
    tree.remove("usr/lib/x86_64-linux-gnu/libvulkan_radeon.so")


def variable_to_nowhere(tree: Tree) -> None:
    tree.environment["VK_DRIVER_FILES"] = "/opt/mesa/radeon_icd.json"


def low_memlock(tree: Tree) -> None:
    tree.pci(NPU, "1022:17f0", "118000", "amdxdna")
    tree.write("dev/accel/accel0", mode=0o660)
    tree.process(ME, RENDER, memlock="65536")


def closed_npu(tree: Tree) -> None:
    tree.pci(NPU, "1022:17f0", "118000", "amdxdna")
    tree.write("dev/accel/accel0", mode=0o600)
    tree.process(ME, RENDER, memlock="unlimited")


def old_cpu(tree: Tree) -> None:
    tree.cpu("fpu sse sse2 lm pni ssse3 cx16 lahf_lm", "Intel(R) Core(TM)2 Duo CPU E8400")


def masked_avx(tree: Tree) -> None:
    tree.cpu("pni ssse3 cx16 sse4_1 sse4_2 popcnt lahf_lm hypervisor", "QEMU Virtual CPU version 2.5+")


def arm(tree: Tree) -> None:
    tree.write("proc/cpuinfo", "processor\t: 0\nBogoMIPS\t: 48.00\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\n")


def forced_kernels(tree: Tree) -> None:
    tree.environment["TANDEM_CPU_ISA"] = "scalar"


def little_memory(tree: Tree) -> None:
    tree.write("proc/meminfo", f"MemTotal: {60 * 2**20} kB\nMemAvailable: {2**20} kB\n")


def little_in_the_group(tree: Tree) -> None:
    tree.write("sys/fs/cgroup/user.slice/memory.max", str(1 << 30))
    tree.write("sys/fs/cgroup/user.slice/memory.current", str(1 << 20))


@pytest.mark.parametrize(
    ("change", "status", "about", "text", "fix"),
    [
        (no_render_group, "problem", "gpu render node", "belongs to the group render", "sudo usermod -aG render $USER"),
        (joined_since, "problem", "gpu render node", "has joined since logging in", "log out and in again"),
        (closed_mode, "problem", "gpu render node", "mode 0600", "udevadm trigger"),
        (container_without_dri, "problem", "gpu render node", "this container has no /dev/dri", "--device /dev/dri"),
        (container_without_group, "problem", "gpu render node", "may not be opened", f"--group-add {RENDER}"),
        (no_dri, "problem", "gpu render node", "there is no /dev/dri/renderD*", "dmesg"),
        (unbound, "problem", "gpu driver", "module amdgpu is not loaded", "sudo modprobe amdgpu"),
        (old_kernel, "problem", "gpu driver", "5.15.0-91-generic is older", "linux-generic-hwe-22.04"),
        (nomodeset, "problem", "gpu driver", "nomodeset", "remove nomodeset"),
        (blacklisted, "problem", "gpu driver", "modprobe.d/gpu.conf blacklists amdgpu", "remove `blacklist amdgpu`"),
        (blacklisted_at_boot, "problem", "gpu driver", "command line blacklists", "remove modprobe.blacklist=amdgpu"),
        (kernel_without_module, "problem", "gpu driver", "no module amdgpu", "linux-modules-extra-6.8.0-45-generic"),
        (no_firmware, "problem", "gpu driver", "firmware is not in", "sudo apt install firmware-amd-graphics"),
        (refused, "problem", "gpu driver", "loaded and did not take it", "sudo dmesg | grep amdgpu"),
        (passed_through, "warning", "gpu driver", "vfio-pci", f"unbind {GPU}"),
        (small_gtt, "warning", "memory gtt", "3.0 GiB of RAM (GTT)", "amdgpu.gttsize=46080 ttm.pages_limit=11796480"),
        (small_gtt_by_hand, "warning", "memory gtt", "8.0 GiB", "amdgpu.gttsize=8192 was set by hand: remove it"),
        (big_carve_out, "warning", "memory carve-out", "took 16.0 GiB", "smaller UMA frame buffer"),
        (no_loader, "problem", "gpu loader", "libvulkan.so.1", "sudo apt install libvulkan1"),
        (no_driver, "problem", "gpu drivers", "no Vulkan driver is installed", "sudo dnf install mesa-vulkan-drivers"),
        (software_driver_only, "problem", "gpu drivers", "only the software driver", "mesa-vulkan-drivers"),
        (other_makers_driver, "problem", "gpu drivers", "no Vulkan driver for AMD GPUs", "mesa-vulkan-drivers"),
        (driver_without_library, "warning", "gpu drivers", "libvulkan_radeon.so, which is not installed", "reinstall"),
        (variable_to_nowhere, "problem", "gpu drivers", "VK_DRIVER_FILES names /opt/mesa", "unset VK_DRIVER_FILES"),
        (low_memlock, "warning", "memory locked", "64.0 KiB may be locked", "* soft memlock unlimited"),
        (closed_npu, "warning", "npu accel node", "/dev/accel/accel0 may not be opened", "udevadm"),
        (old_cpu, "problem", "cpu model", "lacks popcnt, sse4_1, sse4_2", "CPU of 2009 or later"),
        (masked_avx, "warning", "cpu model", "lacks avx2, fma, f16c", "-cpu host"),
        (arm, "problem", "cpu model", "not an x86-64", "x86-64 machine"),
        (forced_kernels, "warning", "cpu forced", "TANDEM_CPU_ISA=scalar", "unset TANDEM_CPU_ISA"),
        (little_memory, "warning", "memory ram", "1.0 GiB available", "add memory"),
        (little_in_the_group, "warning", "memory ram", "a control group leaves 1023.0 MiB", "raise the control"),
    ],
)  # fmt: skip
def test_a_known_problem_is_found(
    tree: Tree, change: Callable[[Tree], None], status: str, about: str, text: str, fix: str
) -> None:
    change(tree)
    matching = [each for each in found(tree) if f"{each.area} {each.name}" == about and text in each.text]
    assert len(matching) == 1, [each.text for each in examine(tree.machine())]
    assert matching[0].status == status
    assert fix in (matching[0].fix or "")
    # Its consequences may be told, too, but nothing else is: each has a fix, or is unknown.
    assert all(each.fix or each.status == "unknown" for each in found(tree))


@pytest.mark.parametrize(
    ("probe", "text"),
    [
        (offered("cpu"), "the drivers start and offer no GPU"),
        ({"error": "asking for it ended with signal SIGSEGV"}, "SIGSEGV"),
        (offered("integrated", lacks=("timeline semaphores",)), "lacks timeline semaphores"),
    ],
)
def test_what_starting_the_drivers_shows(tree: Tree, probe: dict[str, Any], text: str) -> None:
    (finding,) = found(tree, Probes(SOFTWARE, probe))
    assert text in finding.text
    assert finding.fix is not None


def test_a_broken_installation(tree: Tree) -> None:
    broken = {**SOFTWARE, "native_error": "undefined symbol: PyX"}
    onnx = {**SOFTWARE, "onnxruntime": {"version": "1.31.0", "error": "ImportError: libcudart"}}
    for software, text in ((broken, "undefined symbol"), (onnx, "libcudart")):
        (finding,) = found(tree, Probes(software, HEALTHY.vulkan))
        assert text in finding.text
        assert "pip install" in (finding.fix or "")
    there = {**SOFTWARE, "onnxruntime": {"version": "1.31.0", "providers": ["CPUExecutionProvider"]}}
    assert any("CPUExecutionProvider" in each.text for each in examine(tree.machine(), Probes(there, HEALTHY.vulkan)))


def test_a_machine_without_gpu(tree: Tree) -> None:
    tree.pci(GPU, "1a03:2000", "030000", "ast")  # a server's screen
    for path in ("usr", "dev/dri"):
        tree.remove(path)
    assert found(tree, Probes(SOFTWARE, {"error": "vulkan: no loader"})) == []


def test_what_cannot_be_read_is_unknown(tree: Tree) -> None:
    """A sandbox that hides everything: nothing is concluded from what is not there."""
    for path in ("proc", "sys", "dev", "usr", "etc"):
        tree.remove(path)
    findings = examine(tree.machine())
    assert {each.status for each in findings} == {"unknown", "note"}
    assert {f"{each.area} {each.name}" for each in findings if each.status == "unknown"} == {
        "software kernel", "cpu model", "memory ram", "memory locked", "gpu pci",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "about"),
    [
        ("proc/meminfo", "memory ram"),
        (f"sys/bus/pci/devices/{GPU}/vendor", "gpu driver"),
        ("proc/cpuinfo", "cpu model"),
    ],
)
def test_what_may_not_be_read_is_unknown(tree: Tree, monkeypatch: pytest.MonkeyPatch, path: str, about: str) -> None:
    reading = Path.read_text

    def refuse(self: Path, *arguments: Any, **more: Any) -> str:
        if self == tree.root / path:
            raise PermissionError(13, "Permission denied")
        return reading(self, *arguments, **more)

    monkeypatch.setattr(Path, "read_text", refuse)
    unknown = {f"{each.area} {each.name}": each.text for each in found(tree) if each.status == "unknown"}
    assert f"/{path} cannot be read: Permission denied" in unknown[about]


def test_gtt_that_amdgpu_does_not_tell(tree: Tree) -> None:
    tree.remove(f"sys/bus/pci/devices/{GPU}/mem_info_gtt_total")
    (finding,) = found(tree, HEALTHY)
    assert (finding.status, finding.name) == ("unknown", "gtt")


def test_newer_kernels_take_gtt_from_ttm_alone(tree: Tree) -> None:
    small_gtt(tree)
    tree.kernel("6.14.0")
    (finding,) = found(tree, HEALTHY)
    assert "gttsize" not in (finding.fix or "")
    assert "ttm.pages_limit=11796480" in (finding.fix or "")


def test_the_report_names_nobody(tree: Tree) -> None:
    variable_to_nowhere(tree)
    tree.environment["VK_DRIVER_FILES"] = "/home/joanna/mesa/radeon.json:/home/else/x.json"
    machine = tree.machine()
    report = to_json(machine, examine(machine, HEALTHY))
    text = json.dumps(report)
    assert "joanna" not in text.lower()
    assert "/home/" not in text
    assert "~/mesa/radeon.json" in text
    assert report["summary"]["problem"] == 2
    assert sum(report["summary"].values()) == len(report["findings"])


def test_a_flag_more_or_less(tree: Tree) -> None:
    """The kernels that each set of flags gets."""
    for flags, kernels in (
        (ZEN4, "avx512"),
        (ZEN4.replace("avx512vbmi", ""), "vnni256"),
        (ZEN4.replace("avx512vbmi", "avx_vnni"), "avxvnni"),
        (ZEN4.partition(" avx512f")[0], "avx2"),
    ):
        tree.cpu(flags)
        (model,) = [each for each in examine(tree.machine()) if each.name == "model"]
        assert (model.status, model.facts["kernels"]) == ("ok", kernels)
