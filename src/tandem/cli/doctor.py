"""`tandem doctor`: what stands between this machine and its models."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from tandem.cli.failure import EXIT_USAGE
from tandem.errors import RequestError


def doctor(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for bug reports: no names.")] = False,
    root: Annotated[
        Path, typer.Option(metavar="DIR", help="Read /proc, /sys, /dev, /etc of another machine under DIR.")
    ] = Path("/"),
) -> None:
    """Examine CPU, memory, GPU, drivers and permissions; say how to mend what is wrong. A problem exits with 2."""
    from tandem.doctor.machine import Machine
    from tandem.doctor.report import examine, to_json

    if not (root / "proc").is_dir():
        raise RequestError(f"{root} is no machine's root: it has no folder proc")
    root = root.absolute()
    machine = Machine(root, dict(os.environ) if root == Path("/") else {})
    findings = examine(machine)
    if as_json:
        print(json.dumps(to_json(machine, findings), ensure_ascii=False))
    else:
        for finding in findings:
            print(f"{finding.status:<8} {finding.area:<9} {finding.text}")
            if finding.fix is not None:
                print(f"{'':<8} {'':<9} → {finding.fix}")
    if any(finding.status == "problem" for finding in findings):
        raise typer.Exit(EXIT_USAGE)
