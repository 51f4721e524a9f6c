"""Other systems are told plainly, before anything fails in a way that says nothing."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from paths import REPO


@pytest.mark.parametrize("module", ["tandem", "tandem.cli"])
def test_import_elsewhere(module: str) -> None:
    code = f"import sys; sys.platform = 'darwin'; import {module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: Tandem runs on Linux on x86-64 only, and this is darwin")


def test_common_code_is_compiled_for_every_cpu_that_is_promised() -> None:
    """Only an instruction set's own kernels may use it; bindings have the compiler's default, which is less."""
    lists = (REPO / "CMakeLists.txt").read_text()
    flags = dict(re.findall(r"target_compile_options\((tandem_\w+) PRIVATE -march=([\w.-]+)\)", lists))
    assert flags["tandem_core"] == flags["tandem_scalar"] == "x86-64-v2"
    assert not re.search(r"target_compile_options\(_native|CMAKE_CXX_FLAGS|march=native", lists)
