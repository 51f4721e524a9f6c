"""The CPU: whether the native module runs at all, and which kernels it takes."""

from __future__ import annotations

from collections.abc import Iterator

from tandem.doctor.finding import Finding
from tandem.doctor.machine import Machine

# As /proc/cpuinfo spells x86-64-v2, which everything but the kernels is compiled for.
_BASE = ("cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3")
_AVX2 = ("avx2", "fma", "f16c")
# The fastest first, as native/src/cpu_features.cpp chooses.
_KERNELS = {
    "avx512": (*_AVX2, "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vbmi", "avx512_vnni"),
    "avxvnni": (*_AVX2, "avx_vnni"),
    "vnni256": (*_AVX2, "avx512vl", "avx512_vnni"),
    "avx2": _AVX2,
}


def check_processor(machine: Machine) -> Iterator[Finding]:
    text = machine.read("proc/cpuinfo")
    if not text:
        yield Finding("cpu", "model", "unknown", "/proc/cpuinfo is not there: what the CPU has is unknown")
        return
    fields = machine.fields("proc/cpuinfo") or {}
    name = fields.get("model name", "the CPU")
    if "flags" not in fields:
        yield Finding(
            "cpu", "model", "problem", "this is not an x86-64 processor, and Tandem has kernels for no other",
            "run Tandem on an x86-64 machine",
        )  # fmt: skip
        return
    flags = set(fields["flags"].split())
    facts = {"model": name, "flags": sorted(flags & {*_BASE, *(flag for each in _KERNELS.values() for flag in each)})}
    virtual = "give the virtual machine the host's CPU model (QEMU: -cpu host; libvirt: host-passthrough)"
    lacks = [flag for flag in _BASE if flag not in flags]
    if lacks:
        fix = virtual if "hypervisor" in flags else "run Tandem on a CPU of 2009 or later"
        text = f"{name} lacks {', '.join(lacks)} of x86-64-v2, which Tandem is compiled for"
        yield Finding("cpu", "model", "problem", text, fix, facts)
        return
    kernels = next((kernels for kernels, needs in _KERNELS.items() if flags.issuperset(needs)), "scalar")
    facts["kernels"] = kernels
    if kernels == "scalar":
        lacks = [flag for flag in _AVX2 if flag not in flags]
        text = f"{name} lacks {', '.join(lacks)}: only the portable kernels run, several times slower"
        fix = virtual if "hypervisor" in flags else "none but a CPU of 2013 or later"
        yield Finding("cpu", "model", "warning", text, fix, facts)
    else:
        yield Finding("cpu", "model", "ok", f"{name}, {kernels} kernels", facts=facts)
    forced = machine.environment.get("TANDEM_CPU_ISA")
    if forced and forced != kernels:
        text = f"TANDEM_CPU_ISA={forced} forces other kernels than {kernels}, the fastest here"
        yield Finding("cpu", "forced", "warning", text, "unset TANDEM_CPU_ISA")


def check_cores(machine: Machine) -> Iterator[Finding]:
    text = machine.read("proc/cpuinfo") or ""
    processors = sum(line.startswith("processor") for line in text.splitlines())
    if not processors:
        return
    quota = _quota(machine)
    if quota is not None and quota < processors:
        text = f"{processors} logical CPUs, of which a control group grants the time of {quota:g}"
        yield Finding("cpu", "cores", "note", text, facts={"logical": processors, "quota": quota})
    else:
        yield Finding("cpu", "cores", "ok", f"{processors} logical CPUs", facts={"logical": processors})


def _quota(machine: Machine) -> float | None:
    """The least quota of our control group (v2) and those above it, in CPUs."""
    quotas = []
    for line in (machine.read("proc/self/cgroup") or "").splitlines():
        if line.startswith("0::"):
            parts = line[3:].strip("/").split("/")
            for depth in range(len(parts) + 1):
                folder = "/".join(("sys/fs/cgroup", *parts[:depth])).rstrip("/")
                limit, _, period = (machine.read(f"{folder}/cpu.max") or "max").partition(" ")
                if limit.isdigit() and period.strip().isdigit():
                    quotas.append(int(limit) / int(period))
    return min(quotas, default=None)
