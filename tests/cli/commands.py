"""Runs the command line as a person does: in this process, or as a process of its own."""

from __future__ import annotations

import sys

from click.testing import Result
from typer.testing import CliRunner

from tandem.cli.app import app

# `tandem`, whether or not the package is installed.
COMMAND = [sys.executable, "-c", "from tandem.cli import main; main()"]


def tandem(*arguments: object, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


def error_of(result: Result) -> str:
    """The one line of a refusal, after checking that it is all there is."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")
