"""Machines as trees of files: a healthy one, and what to change to break it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tandem.doctor.machine import Machine

ME, RENDER = 4242, os.getgid()
GPU, NPU = "0000:c1:00.0", "0000:c2:00.1"
_GIB = 1 << 30
_V2 = "fpu sse sse2 ht syscall nx lm pni ssse3 cx16 sse4_1 sse4_2 popcnt lahf_lm"
ZEN4 = f"{_V2} avx avx2 fma f16c avx512f avx512dq avx512bw avx512vl avx512vbmi avx512_vnni"


class Tree:
    """Files under a root; paths have no leading slash. `environment` is that of the process that asks."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment: dict[str, str] = {}

    def write(self, path: str, text: str = "", mode: int = 0o644) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def link(self, path: str, target: str) -> None:
        self.remove(path)
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).symlink_to(target)

    def remove(self, path: str) -> None:
        file = self.root / path
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file)
        else:
            file.unlink(missing_ok=True)

    def edit(self, path: str, old: str, new: str) -> None:
        text = (self.root / path).read_text()
        assert old in text
        (self.root / path).write_text(text.replace(old, new))

    # What tests change most.

    def cpu(self, flags: str, model: str = "AMD Ryzen 7 8845HS w/ Radeon 780M Graphics", n: int = 16) -> None:
        one = "processor\t: {}\nmodel name\t: {}\nflags\t\t: {}\n\n"
        self.write("proc/cpuinfo", "".join(one.format(i, model, flags) for i in range(n)))

    def kernel(self, release: str) -> None:
        self.write("proc/sys/kernel/osrelease", f"{release}\n")

    def process(self, *groups: int, memlock: str = "8388608") -> None:
        ids = "\t".join([str(ME)] * 4)
        self.write(
            "proc/self/status", f"Name:\tpython\nUid:\t{ids}\nGid:\t{ids}\nGroups:\t{' '.join(map(str, groups))}\n"
        )
        limit = f"Max locked memory         {memlock}              {memlock}              bytes     \n"
        self.write("proc/self/limits", f"Limit  Soft Limit  Hard Limit  Units\n{limit}")

    def pci(self, address: str, ids: str, kind: str, driver: str | None) -> None:
        folder = f"sys/bus/pci/devices/{address}"
        vendor, device = ids.split(":")
        for name, value in (("vendor", vendor), ("device", device), ("class", kind)):
            self.write(f"{folder}/{name}", f"0x{value}\n")
        self.remove(f"{folder}/driver")
        if driver is not None:
            self.link(f"{folder}/driver", f"../../../bus/pci/drivers/{driver}")
            self.write(f"sys/module/{driver}/refcnt", "1\n")

    def gpu_memory(self, gtt: float, vram: float) -> None:
        for kind, size in (("gtt", gtt), ("vram", vram)):
            for what, part in (("total", 1.0), ("used", 0.01)):
                self.write(f"sys/bus/pci/devices/{GPU}/mem_info_{kind}_{what}", f"{int(size * part * _GIB)}\n")

    def manifest(self, name: str, library: str) -> None:
        path = f"usr/share/vulkan/icd.d/{name}"
        self.write(path, f'{{"file_format_version": "1.0.0", "ICD": {{"library_path": "{library}"}}}}')

    def machine(self) -> Machine:
        return Machine(self.root, self.environment)


def healthy_780m(root: Path) -> Tree:
    """Ubuntu 24.04 on a Ryzen 7 8845HS with 64 GiB, its user in the group render; the NPU is there, as always."""
    tree = Tree(root)
    tree.cpu(ZEN4)
    tree.kernel("6.8.0-45-generic")
    tree.process(ME, RENDER)
    tree.write("proc/cmdline", "BOOT_IMAGE=/vmlinuz root=UUID=1 ro quiet splash\n")
    tree.write("proc/meminfo", f"MemTotal: {60 * 2**20} kB\nMemFree: 1000 kB\nMemAvailable: {50 * 2**20} kB\n")
    tree.write("proc/self/cgroup", "0::/user.slice\n")
    tree.write("etc/os-release", 'NAME="Ubuntu"\nID=ubuntu\nID_LIKE=debian\n')
    tree.write("etc/group", f"render:x:{RENDER}:joanna\nvideo:x:44:joanna\njoanna:x:{ME}:\n")
    tree.write("etc/passwd", f"root:x:0:0:root:/root:/bin/sh\njoanna:x:{ME}:{ME}:Joanna:/home/joanna:/bin/bash\n")
    tree.pci(GPU, "1002:1900", "030000", "amdgpu")
    tree.pci(NPU, "1022:1502", "118000", None)
    tree.pci("0000:00:00.0", "1022:14e8", "060000", None)
    tree.gpu_memory(gtt=30, vram=4)
    tree.write("sys/module/amdgpu/parameters/gttsize", "-1\n")
    tree.write("lib/modules/6.8.0-45-generic/modules.dep", "kernel/drivers/gpu/drm/amd/amdgpu/amdgpu.ko.zst:\n")
    tree.write("lib/firmware/amdgpu/gc_11_0_1_pfp.bin.zst")
    tree.write("dev/dri/card1", mode=0o660)
    tree.write("dev/dri/renderD128", mode=0o660)
    for library in ("libvulkan.so.1", "libvulkan_radeon.so", "libvulkan_lvp.so"):
        tree.write(f"usr/lib/x86_64-linux-gnu/{library}")
    tree.manifest("radeon_icd.x86_64.json", "/usr/lib/x86_64-linux-gnu/libvulkan_radeon.so")
    tree.manifest("lvp_icd.x86_64.json", "libvulkan_lvp.so")
    return tree
