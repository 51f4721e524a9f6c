"""The command itself: quick, plain where nobody looks, and honest about its version."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

import pytest
from commands import COMMAND, tandem


def test_help_imports_nothing_heavy() -> None:
    heavy = "numpy", "tokenizers", "jinja2", "huggingface_hub", "asyncio", "tandem._native", "tandem.llm"
    code = f"import sys, tandem.cli.app; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["run"],
        ["chat"],
        ["inspect"],
        ["plan-memory"],
        ["config"],
        *(["doctor"], ["list"], ["pull"], ["rm"]),
        ["deploy"],
        ["plan"],
        ["bench"],
        ["bench", "replay"],
        ["bench", "profile"],
    ],
)
def test_help_into_a_pipe_has_no_colour(arguments: list[str]) -> None:
    # What CI sets makes typer believe in a terminal.
    plain = {key: value for key, value in os.environ.items() if key not in ("GITHUB_ACTIONS", "FORCE_COLOR")}
    done = subprocess.run([*COMMAND, *arguments, "--help"], capture_output=True, check=True, env=plain)
    assert b"\x1b" not in done.stdout
    assert b"--help" in done.stdout


def test_every_command_has_a_help_line() -> None:
    listing = tandem("--help").stdout
    for command in ("run", "chat", "inspect", "plan-memory", "config", "profile", "plan", "project", "bench"):
        (line,) = [line for line in listing.splitlines() if line.strip("│ ").startswith(command + " ")]
        assert len(line.strip("│ ").split()) > 3


def test_version() -> None:
    try:
        expected = f"tandem {version('tandem-llm')}\n"
    except PackageNotFoundError:
        result = tandem("--version")
        assert result.exit_code == 1
        assert "not installed" in result.stderr
    else:
        assert tandem("--version").stdout == expected
