"""What all benchmarks write: a header, progress, tables, files."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from tandem.errors import BenchError

ResultFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write everything to this file.", show_default=False)
]
PlotFile = Annotated[
    Path | None,
    typer.Option("--plot", metavar="FILE.png", help="Draw it (needs matplotlib).", show_default=False),
]


def check_outputs(result: Path | None, plot: Path | None, trace: Path | None = None) -> None:
    """What could not be written in the end is refused before anything is measured."""
    if plot is not None:
        from tandem.bench.plot import require_matplotlib

        require_matplotlib()
    for path in (result, plot, trace):
        if path is None:
            continue
        folder = path.parent
        if not folder.is_dir() or path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
            raise BenchError(f"{path} cannot be written; give a file in a folder that exists and is yours")


def header() -> dict[str, Any]:
    from tandem.bench.report import run_header, source_checkout

    return run_header(source_checkout(), shlex.join(["tandem", *sys.argv[1:]]))


def progress(noun: str) -> Callable[[int, int], None] | None:
    """A line on stderr, where somebody watches it."""
    if not sys.stderr.isatty():
        return None

    def show(done: int, total: int) -> None:
        end = "\r\033[K" if done == total else ""
        print(f"\r{noun} {done:,} of {total:,}{end}", end="", file=sys.stderr, flush=True)

    return show


def finish(
    result: dict[str, Any],
    table: Callable[[dict[str, Any]], str],
    draw: Callable[[dict[str, Any], Path], None] | None,
    json: Path | None,
    plot: Path | None,
) -> None:
    from tandem.bench.report import write_result
    from tandem.bench.tables import header_lines

    if json is not None:
        write_result(json, result)
    if plot is not None and draw is not None:
        draw(result, plot)
    print(f"{header_lines(result)}\n\n{table(result)}")
