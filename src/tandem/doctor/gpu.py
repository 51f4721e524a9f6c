"""GPUs as the kernel has them: found, taken by a driver, with how much of the machine's memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tandem.devices.vulkan.budget import kernel_memory
from tandem.doctor.finding import Finding
from tandem.doctor.machine import Machine, PciDevice
from tandem.doctor.memory import memory_total
from tandem.memory.system import format_bytes

AMD, INTEL, NVIDIA = "1002", "8086", "10de"
_VENDORS = {AMD: "AMD", INTEL: "Intel", NVIDIA: "NVIDIA"}
# From here on GTT is sized by ttm.pages_limit alone, we are sure; later kernels call amdgpu.gttsize deprecated.
_TTM_SIZES_GTT = (6, 12)


class Apu(NamedTuple):
    """kernel: the first one that can know the chip, where we are sure."""

    name: str
    kernel: tuple[int, int] | None = None


# GPUs that share the CPU's memory, by PCI device of vendor 1002.
APUS = {
    "15bf": Apu("Radeon 780M or 760M (Phoenix)", (6, 1)),
    "15c8": Apu("Radeon 740M (Phoenix 2)", (6, 1)),
    "1900": Apu("Radeon 780M or 760M (Hawk Point)", (6, 1)),
    "1901": Apu("Radeon 740M (Hawk Point 2)", (6, 1)),
    "150e": Apu("Radeon 890M or 880M (Strix Point)"),
    "1586": Apu("Radeon 8060S or 8050S (Strix Halo)"),
    "1114": Apu("Radeon 860M or 840M (Krackan Point)"),
    "1681": Apu("Radeon 680M or 660M (Rembrandt)"),
    "164e": Apu("Radeon Graphics (Raphael)"),
    "13c0": Apu("Radeon Graphics (Granite Ridge)"),
    "1506": Apu("Radeon 610M (Mendocino)"),
    "163f": Apu("Radeon Graphics (Van Gogh)"),
    "1638": Apu("Radeon Graphics (Cezanne)"),
    "15e7": Apu("Radeon Graphics (Barcelo)"),
    "1636": Apu("Radeon Graphics (Renoir)"),
    "164c": Apu("Radeon Graphics (Lucienne)"),
    "15d8": Apu("Radeon Graphics (Picasso)"),
    "15dd": Apu("Radeon Graphics (Raven Ridge)"),
}


def gpus(machine: Machine) -> list[PciDevice]:
    """Of the makers that Vulkan drivers exist for; a server's or a virtual machine's screen is none."""
    return [device for device in machine.pci or [] if device.display and device.vendor in _VENDORS]


def check_kernel(machine: Machine) -> Iterator[Finding]:
    release = (machine.read("proc/sys/kernel/osrelease") or "").strip()
    if machine.kernel is None:
        yield Finding("software", "kernel", "unknown", "/proc/sys/kernel/osrelease does not tell the kernel's version")
    else:
        yield Finding("software", "kernel", "ok", f"Linux {release}", facts={"release": release})


def check_gpus(machine: Machine) -> Iterator[Finding]:
    if machine.pci is None:
        yield Finding("gpu", "pci", "unknown", "/sys/bus/pci is not shown here: which GPUs there are is unknown")
        return
    found = gpus(machine)
    if not found:
        yield Finding("gpu", "pci", "note", "no GPU on the PCI bus: models run on the CPU")
    for device in found:
        yield from _check_gpu(machine, device)


def _name(device: PciDevice) -> str:
    apu = APUS.get(device.device) if device.vendor == AMD else None
    return f"{apu.name if apu else _VENDORS[device.vendor] + ' GPU'} ({device.id})"


def _check_gpu(machine: Machine, device: PciDevice) -> Iterator[Finding]:
    name, facts = _name(device), {"pci": device.address, "id": device.id, "driver": device.driver}
    if device.driver == "vfio-pci":
        text = f"{name} is set aside for virtual machines (vfio-pci)"
        yield Finding("gpu", "driver", "warning", text, f"unbind {device.address} from vfio-pci to use it here", facts)
    elif device.driver is None:
        reason, fix = _unbound(machine, device)
        yield Finding("gpu", "driver", "problem", f"no kernel driver has taken {name}: {reason}", fix, facts)
    elif device.vendor == AMD and device.driver != "amdgpu":
        text = f"{name} has the kernel driver {device.driver}, which has no Vulkan"
        fix = "add radeon.si_support=0 radeon.cik_support=0 amdgpu.si_support=1 amdgpu.cik_support=1 to the kernel's "
        yield Finding("gpu", "driver", "problem", text, fix + "command line and reboot", facts)
    else:
        yield Finding("gpu", "driver", "ok", f"{name}, kernel driver {device.driver}", facts=facts)
        if device.driver == "amdgpu":
            yield from _check_memory(machine, device)


def _unbound(machine: Machine, device: PciDevice) -> tuple[str, str]:
    """Why, as far as files tell, and what to do."""
    command_line = (machine.read("proc/cmdline") or "").split()
    module = {AMD: "amdgpu", INTEL: "i915", NVIDIA: "nvidia"}[device.vendor]
    release = (machine.read("proc/sys/kernel/osrelease") or "").strip()
    apu = APUS.get(device.device) if device.vendor == AMD else None
    grub = "in GRUB_CMDLINE_LINUX_DEFAULT of /etc/default/grub, then sudo update-grub and reboot"
    if apu and apu.kernel and machine.kernel and machine.kernel < apu.kernel:
        return (
            f"Linux {release} is older than the chip's support",
            "install Linux 6.5 or newer (Debian 12: apt install -t bookworm-backports linux-image-amd64; "
            "Ubuntu 22.04: apt install linux-generic-hwe-22.04) and reboot",
        )
    if "nomodeset" in command_line:
        return "the kernel was started with nomodeset", f"remove nomodeset {grub}"
    if any(
        part.startswith("modprobe.blacklist=") and module in part.partition("=")[2].split(",") for part in command_line
    ):
        return f"the kernel's command line blacklists {module}", f"remove modprobe.blacklist={module} {grub}"
    for name in machine.names("etc/modprobe.d") or []:
        lines = (machine.read(f"etc/modprobe.d/{name}") or "").splitlines()
        if any(line.split()[:2] == ["blacklist", module] for line in lines):
            return (
                f"/etc/modprobe.d/{name} blacklists {module}",
                f"remove `blacklist {module}` from /etc/modprobe.d/{name}, then sudo modprobe {module}",
            )
    if machine.exists(f"sys/module/{module}"):
        if device.vendor == AMD and machine.names("lib/firmware/amdgpu") is None:
            packages = {"debian": "firmware-amd-graphics", "fedora": "amd-gpu-firmware", "arch": "linux-firmware"}
            return "its firmware is not in /lib/firmware/amdgpu", f"{machine.install(packages)}, then reboot"
        return f"{module} is loaded and did not take it", f"see why: sudo dmesg | grep {module}"
    modules = machine.read(f"lib/modules/{release}/modules.dep")
    if modules is not None and f"/{module}.ko" not in modules:
        return (
            f"the kernel {release} has no module {module}",
            f"install the kernel's other modules (Ubuntu: sudo apt install linux-modules-extra-{release}) and reboot"
            if device.vendor != NVIDIA
            else "install NVIDIA's driver",
        )
    return f"the module {module} is not loaded", f"sudo modprobe {module}"


def _check_memory(machine: Machine, device: PciDevice) -> Iterator[Finding]:
    memory = kernel_memory(device.address, machine.root)
    if memory is None:
        text = "amdgpu does not tell in sysfs how much memory the GPU may have"
        yield Finding("memory", "gtt", "unknown", text, facts={"pci": device.address})
        return
    gtt, vram = format_bytes(memory.gtt_total), format_bytes(memory.vram_total)
    facts = {"pci": device.address, "gtt_total": memory.gtt_total, "vram_total": memory.vram_total}
    total = memory_total(machine)
    if device.device not in APUS or total is None:
        yield Finding("memory", "vram", "ok", f"the GPU has {vram} of its own and may take {gtt} of RAM", facts=facts)
        return
    text = f"the GPU may take {gtt} of RAM (GTT), and the firmware set {vram} aside for it (VRAM)"
    # The kernel's own choice is half of the memory that it sees.
    if memory.gtt_total < 0.45 * total:
        yield Finding("memory", "gtt", "warning", f"{text}: less than half of RAM", _gtt_fix(machine, total), facts)
    else:
        yield Finding("memory", "gtt", "ok", text, facts=facts)
    if memory.vram_total > total:
        text = f"the firmware took {vram} of memory from the CPU, which GTT would share"
        fix = "choose a smaller UMA frame buffer in the firmware's settings"
        yield Finding("memory", "carve-out", "warning", text, fix, facts)


def _gtt_fix(machine: Machine, total: int) -> str:
    size = machine.read("sys/module/amdgpu/parameters/gttsize")
    by_hand = size is not None and size.strip().lstrip("-").isdigit() and int(size) > 0
    pages = total * 3 // 4 // 4096
    wanted = f"ttm.pages_limit={pages} ttm.page_pool_size={pages}"
    if machine.kernel is None or machine.kernel < _TTM_SIZES_GTT:
        wanted = f"amdgpu.gttsize={pages // 256} {wanted}"
    where = "in GRUB_CMDLINE_LINUX_DEFAULT of /etc/default/grub, then sudo update-grub and reboot"
    if by_hand:
        return f"amdgpu.gttsize={int(size or 0)} was set by hand: remove it, or put {wanted} {where}"
    return f"put {wanted} {where}: three quarters of RAM"
