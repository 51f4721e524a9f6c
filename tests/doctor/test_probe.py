"""Drivers are started in a process of their own, whose end is a finding, too."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from tandem.doctor import probe


def test_the_installation_that_runs_these_tests() -> None:
    found = probe.probe_software()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert "native_error" not in found


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "signal SIGSEGV"),
        ("raise SystemExit('no such thing')", "exit code 1: no such thing"),
        ("print('not ours')", "exit code 0: no message"),
        ("import time; time.sleep(60)", "did not end within 1 s"),
    ],
)
def test_how_it_ends(monkeypatch: pytest.MonkeyPatch, code: str, message: str) -> None:
    run = subprocess.run

    def other(command: list[str], **arguments: Any) -> subprocess.CompletedProcess[str]:
        return run([command[0], "-c", code], **{**arguments, "timeout": probe._TIMEOUT})

    monkeypatch.setattr(subprocess, "run", other)
    monkeypatch.setattr(probe, "_TIMEOUT", 1.0)
    assert message in probe.probe_vulkan()["error"]
