"""`tandem doctor` as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

from commands import error_of, tandem

from tandem.devices.cpu import CpuDevice


def test_this_machine() -> None:
    """Whatever it has: every line has a status, and the kernels are those that the native module chooses."""
    shown = tandem("doctor", "--json")
    report = json.loads(shown.stdout)
    assert shown.exit_code == (2 if report["summary"]["problem"] else 0)
    (cpu,) = [each for each in report["findings"] if (each["area"], each["name"]) == ("cpu", "model")]
    device = CpuDevice()
    device.close()
    assert cpu["facts"]["kernels"] in device.info.description.lower()


def test_another_root(tmp_path: Path) -> None:
    assert "no machine's root" in error_of(tandem("doctor", "--root", tmp_path))
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor : 0\nFeatures : asimd\n")
    shown = tandem("doctor", "--root", tmp_path)
    assert shown.exit_code == 2
    lines = shown.stdout.splitlines()
    problem = next(i for i, line in enumerate(lines) if line.startswith("problem"))
    assert "not an x86-64" in lines[problem]
    assert lines[problem + 1].strip() == "→ run Tandem on an x86-64 machine"
