"""`tandem validate`: whether this machine computes a model rightly."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tandem.cli.options import DeviceOptions

if TYPE_CHECKING:
    from tandem.bench.validate import Check

EXIT_FAILED = 1


def validate(
    *,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A GGUF file, a folder, or hf:owner/name.")],
    against: Annotated[str | None, typer.Option(help="The weights that it was made from, to compare with.")] = None,
    max_kl: Annotated[float | None, typer.Option(help="Fail above so many nats from those weights.", min=0.0)] = None,
    text: Annotated[Path | None, typer.Option(help="A UTF-8 text to read.", show_default="a short one")] = None,
    context: Annotated[int, typer.Option(min=8, help="Tokens of a window.")] = 64,
    windows: Annotated[int, typer.Option(min=1, help="At most so many windows.")] = 4,
    placements: Annotated[
        list[str] | None, typer.Option(help="Only this one; may be repeated.", show_default="all there are")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report there, too.")] = None,
    device: DeviceOptions,
) -> None:
    """Check each device and placement against the numpy reference, and the model against its unquantized weights.

    Exits with 1 where a check fails. What cannot run here is listed with the reason and fails nothing.
    """
    from tandem.bench.report import run_header, source_checkout, write_result
    from tandem.bench.validate import TEXT, Validation, available_placements
    from tandem.engine.build import EngineConfig
    from tandem.weights.files import read_text
    from tandem.weights.open import open_checkpoint

    chosen = device.placement
    validation = Validation(
        open_checkpoint(model),
        EngineConfig(**asdict(device)),
        placements or ([chosen] if chosen != "auto" else available_placements()),
        against=open_checkpoint(against) if against else None,
        text=read_text(text) if text else TEXT,
        length=context,
        windows=windows,
        max_loss=max_kl,
    )
    checks = validation.run(_print)
    failed = [check for check in checks if check.passed is False]
    ran = sum(check.passed is not None for check in checks)
    print(f"{'FAILED' if failed else 'passed'}: {ran - len(failed)} of {ran} checks")
    if json_file is not None:
        header = run_header(source_checkout(), shlex.join(["tandem", *sys.argv[1:]]))
        write_result(json_file, header | {"passed": not failed, "checks": [asdict(check) for check in checks]})
    if failed:
        raise typer.Exit(EXIT_FAILED)


def _print(check: Check) -> None:
    verdict = {True: "ok", False: "FAILED", None: "-"}[check.passed]
    print(f"{verdict:6}  {check.subject:24} {check.name:20}  {check.detail}", flush=True)
