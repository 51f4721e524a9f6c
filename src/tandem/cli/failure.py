"""How a command ends when something is wrong: one line on stderr, and an exit code."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

EXIT_ERROR, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def fail(code: int, message: str) -> NoReturn:
    """One line, whatever the message holds."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise typer.Exit(code)
