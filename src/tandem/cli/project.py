"""`tandem project`: what the cost model says of hardware that is not here."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from tandem.cli.options import Model, ModelArgument, chosen_model

if TYPE_CHECKING:
    from tandem.weights.checkpoint import Checkpoint


def project(
    *,
    model: ModelArgument = None,
    model_option: Model = None,
    hardware: Annotated[str, typer.Option(help="780m+phoenix, 8060s+strix-halo, or a TOML file.")] = "780m+phoenix",
    batch: Annotated[int, typer.Option(min=1, help="Prompts at once.")] = 8,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 128,
    new: Annotated[int, typer.Option(min=1, help="Tokens of each answer.")] = 128,
    rows: Annotated[int, typer.Option(min=1, help="Rows of the largest step.")] = 256,
    placement: Annotated[
        str, typer.Option(help="One placement, or several with ; between them; auto: all that make sense.")
    ] = "auto",
    target: Annotated[float, typer.Option(help="Tokens per second to hold against the bound.")] = 10_000.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Project a model's speed on other hardware from datasheets. Not a measurement.

    MODEL may also be a shape, of which no file is needed: gemma3-1b, gemma3-4b, gemma3-12b or gemma3-27b, as Q4_0.
    """
    from tandem.bench.projection import projection_json, projection_report
    from tandem.models.load import block_weights
    from tandem.models.open import model_spec
    from tandem.pipeline.hardware import read_hardware
    from tandem.pipeline.project import project as calculate
    from tandem.pipeline.workload import Workload

    machine = read_hardware(hardware)
    checkpoint = _checkpoint(chosen_model(model, model_option))
    spec = model_spec(checkpoint)
    placements = [] if placement.strip() == "auto" else [each.strip() for each in placement.split(";")]
    workload = Workload(batch, prompt, new, max(rows, batch))
    found = calculate(spec, lambda i: block_weights(checkpoint, spec, i), machine, workload, placements)
    if as_json:
        print(json.dumps(projection_json(found, spec.name, target), ensure_ascii=False))
    else:
        print(projection_report(found, spec.name, target))


def _checkpoint(model: str | None) -> Checkpoint:
    from tandem.bench.synthetic import GEMMA3, shape_checkpoint
    from tandem.llm import BUNDLED_MODEL
    from tandem.weights.open import open_checkpoint
    from tandem.weights.tensor import TensorType

    if model in GEMMA3:
        return shape_checkpoint(model, GEMMA3[model], TensorType.Q4_0)
    return open_checkpoint(model or BUNDLED_MODEL)
