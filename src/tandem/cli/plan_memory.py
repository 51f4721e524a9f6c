"""`tandem plan-memory`: the bytes that a configuration will take, per device, before anything is loaded."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from tandem.cli.options import EngineOptions, Model, ModelArgument, chosen_model


def plan_memory(
    *,
    model: ModelArgument = None,
    model_option: Model = None,
    sequences: Annotated[int, typer.Option(min=1, help="Sequences at once, all of full length.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, bytes throughout.")] = False,
    engine: EngineOptions,
) -> None:
    """Show the memory that a configuration takes, or what would fit if it does not; reads headers only."""
    from tandem.engine.build import plan_engine
    from tandem.llm import BUNDLED_MODEL
    from tandem.weights.open import open_checkpoint

    checkpoint = open_checkpoint(chosen_model(model, model_option) or BUNDLED_MODEL)
    planned = plan_engine(checkpoint, engine.config(sequences))
    planned.close()
    print(json.dumps(planned.plan.to_json(), ensure_ascii=False) if as_json else planned.plan.table())
