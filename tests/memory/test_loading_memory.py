"""What a model takes while it loads: its packed weights, and of the file only what is being read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from paths import SHARED

MIB = 2**20


@pytest.mark.slow
def test_loading_holds_little_more_than_the_packed_weights(tmp_path: Path) -> None:
    model = tmp_path / "gemma3-1b-q4_0.gguf"
    tool = SHARED / "tools" / "make_model.py"
    subprocess.run([sys.executable, tool, "--arch", "gemma3-1b", "--type", "q4_0", model], check=True)
    script = Path(__file__).with_name("loading_memory.py")
    done = subprocess.run([sys.executable, script, model], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["packed"] > 400 * MIB
    assert found["packed"] < found["anonymous"] <= 1.1 * found["packed"] + 200 * MIB
    # Of 550 MiB of file: pages at the edges of pieces and small vectors.
    assert found["mapped"] < 32 * MIB
