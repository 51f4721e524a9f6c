"""Every command and every program that the guides show runs as it stands there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from commands import COMMAND

from paths import REPO
from tandem.llm import BUNDLED_MODEL

pytestmark = pytest.mark.slow

GUIDES = ("docs/quick-start.md", "docs/user-guide.md", "docs/memory-on-apus.md", "docs/optimization.md")


def blocks(language: str) -> list[str]:
    return [
        block
        for guide in GUIDES
        for block in re.findall(rf"```{language}\n(.*?)```", (REPO / guide).read_text(), re.DOTALL)
    ]


@pytest.mark.parametrize("block", blocks("sh"))
def test_commands(block: str, tmp_path: Path) -> None:
    """With a model.gguf and a story.txt where the reader would have them, and nobody at the keyboard."""
    command = tmp_path / "bin" / "tandem"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {shlex.join(COMMAND)} "$@"\n')
    command.chmod(0o755)
    (tmp_path / "model.gguf").symlink_to(BUNDLED_MODEL)
    (tmp_path / "story.txt").write_text("Once upon a time\n")
    environment = {**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}"}
    if "PYTHONPATH" in environment:
        environment["PYTHONPATH"] = os.pathsep.join(str(Path(p).resolve()) for p in sys.path if p)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("program", blocks("python"))
def test_programs(program: str) -> None:
    assert subprocess.check_output([sys.executable, "-c", program], text=True)
