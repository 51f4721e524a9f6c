"""What docs/server.md shows runs as it stands there."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from served import COMMAND, Server

from paths import REPO

pytestmark = pytest.mark.server

BLOCKS = re.findall(r"(?:<!-- (.*?) -->\n)?```(\w+)\n(.*?)```", (REPO / "docs/server.md").read_text(), re.DOTALL)
assert len(BLOCKS) >= 5


@pytest.mark.parametrize(("language", "block"), [block[1:] for block in BLOCKS if block[0] == "with a server"])
def test_against_a_server(server: Server, language: str, block: str) -> None:
    block = re.sub(r"(localhost|127\.0\.0\.1):8000", f"{server.host}:{server.port}", block)
    if language == "python":
        done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, check=False)
    else:
        block = block.replace("curl -s", "curl --fail-with-body -s")
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", block], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout


@pytest.mark.parametrize("block", [block[2] for block in BLOCKS if not block[0]])
def test_by_itself(block: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = tmp_path / "tandem"
    command.write_text(f'#!/bin/sh\nexec {shlex.join(COMMAND)} "$@"\n')
    command.chmod(0o755)
    block = block.replace("tandem serve", f"tandem serve --port {port}").replace(":8000", f":{port}")
    path = os.pathsep.join(str(Path(p).resolve()) for p in sys.path if p)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": path}
    done = subprocess.run(
        ["bash", "-c", block], env=environment, capture_output=True, text=True, timeout=90, check=False
    )
    assert '"finish_reason"' in done.stdout, done.stdout + done.stderr
