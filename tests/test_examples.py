"""The examples run as they stand there, and say on the CPU what they say on the reference."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from paths import REPO

SIZES = {
    "ffn_batch.py": ("--hidden", "64", "--ffn", "96"),
    "attention_batch.py": ("--hidden", "64", "--heads", "4", "--kv-heads", "2", "--head-dim", "16", "--tokens", "20"),
}


@pytest.mark.parametrize("name", SIZES)
def test_example(name: str) -> None:
    def results(device: str) -> list[float]:
        command = [sys.executable, str(REPO / "examples" / name), "--device", device, "--type", "F32", *SIZES[name]]
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        return [float(value) for value in re.findall(r"mean square ([\d.]+)", text)]

    found = results("cpu")
    assert len(found) == (5 if name.startswith("attention") else 1)
    assert found == pytest.approx(results("ref"), abs=2e-3)
    assert len(set(found)) == len(found)
