"""`tandem plan`: which placement suits a workload: predicted, run, and chosen."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from tandem.cli.options import DeviceOptions, Model, ModelArgument
from tandem.cli.placing import Devices, open_site, said


def plan(
    *,
    model: ModelArgument = None,
    model_option: Model = None,
    batch: Annotated[int, typer.Option(min=1, help="Prompts at once.")] = 8,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 128,
    new: Annotated[int, typer.Option(min=1, help="Tokens of each answer.")] = 32,
    rows: Annotated[int, typer.Option(min=1, help="Rows of the largest step.")] = 256,
    devices: Devices = None,
    no_run: Annotated[bool, typer.Option("--no-run", help="Predict only.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure the profile again.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE.svg", help="Draw the lanes of the chosen placement.", show_default=False),
    ] = None,
    engine: DeviceOptions,
) -> None:
    """Compare placements for a workload, run the best of them, and keep the choice for --placement auto.

    --placement takes one placement, or several with ; between them; auto compares all that make sense.
    """
    from tandem.bench.gantt import write_gantt
    from tandem.bench.placing import outcome_json, outcome_table, pictures, plan_workload, workload_config
    from tandem.engine.placing import obtain_profile, with_config
    from tandem.errors import BenchError
    from tandem.pipeline.workload import Workload

    if picture is not None and (picture.suffix.lower() != ".svg" or not picture.parent.is_dir()):
        raise BenchError(f"{picture} cannot be drawn; name a file that ends in .svg in a folder that exists")
    workload = Workload(batch, prompt, new, max(rows, batch))
    site = open_site(model, model_option, devices, engine)
    site = with_config(site, workload_config(workload, site.spec, site.config))
    profile, where = obtain_profile(site, remeasure=fresh, say=said())
    print(f"profile: {where}", file=sys.stderr)
    placements = [] if engine.placement.strip() == "auto" else [each.strip() for each in engine.placement.split(";")]
    outcome = plan_workload(site, profile, workload, placements=placements, run=not no_run, say=said())
    if picture is not None:
        write_gantt(picture, f"{site.spec.name}, {outcome.chosen.text}", pictures(outcome, site.spec))
    print(json.dumps(outcome_json(outcome), ensure_ascii=False) if as_json else outcome_table(outcome))
