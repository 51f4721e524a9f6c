"""What was planned is what is taken: growth of the process's anonymous memory, beside the plan."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from paths import SHARED

MIB = 2**20


def measure(model: Path, *, context: int, sequences: int, rows: int) -> tuple[int, int]:
    """Planned bytes, and bytes that a process grew by."""
    command = [
        sys.executable, Path(__file__).with_name("measured_memory.py"), model, str(context), str(sequences), str(rows)
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return found["planned"], found["grown"]


@pytest.mark.parametrize(("context", "sequences", "rows"), [(2048, 16, 64), (256, 4, 256)])
def test_the_bundled_model(context: int, sequences: int, rows: int) -> None:
    planned, grown = measure(SHARED / "models" / "tandem-stories-22m", context=context, sequences=sequences, rows=rows)
    assert abs(grown - planned) < 4 * MIB, f"planned {planned / MIB:.1f} MiB, grown by {grown / MIB:.1f} MiB"


@pytest.mark.slow
def test_gemma_3_1b(tmp_path: Path) -> None:
    model = tmp_path / "gemma3-1b-q4_0.gguf"
    tool = SHARED / "tools" / "make_model.py"
    subprocess.run([sys.executable, tool, "--arch", "gemma3-1b", "--type", "q4_0", model], check=True)
    planned, grown = measure(model, context=4096, sequences=8, rows=64)
    bound = max(32 * MIB, planned // 50)
    assert abs(grown - planned) <= bound, f"planned {planned / MIB:.1f} MiB, grown by {grown / MIB:.1f} MiB"
