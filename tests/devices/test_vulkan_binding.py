"""What ships of the Vulkan declarations is what the headers say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]


def test_the_shipped_declarations_are_what_the_headers_compile_to() -> None:
    command = [sys.executable, str(REPO / "tools" / "make_vulkan_binding.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
