"""`tandem quantize`: a model's weights in other types, as one GGUF file."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tandem.models.recipes import Recipe
    from tandem.weights.checkpoint import Checkpoint


def quantize(
    *,
    source: Annotated[
        str, typer.Argument(metavar="IN", help="A GGUF file, a folder with safetensors, or hf:owner/name.")
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The GGUF file to write.")],
    type: Annotated[
        str | None, typer.Option("--type", "-t", help="q4_k_m, q4_0, q8_0, tandem, bf16, … as llama.cpp mixes them.")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="A TOML file that gives each kind of block its type.")] = None,
    calibrate: Annotated[
        Path | None, typer.Option(help="A UTF-8 text that tells which columns matter; read in float32, on the CPU.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.", show_default="all cores", min=1)] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list each tensor's type and size.")] = False,
) -> None:
    """Write a model's weights in other types, as a GGUF file that llama.cpp loads, too.

    OUT appears whole or not at all; its SHA-256 is printed and put beside it, for `sha256sum -c`.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from tandem.bench.importance import gather_importance
    from tandem.errors import RecipeError
    from tandem.models.quantize import quantize_model
    from tandem.weights.files import read_text
    from tandem.weights.open import open_checkpoint

    if (type is None) == (recipe is None):
        raise RecipeError("give either --type or --recipe")
    chosen = _recipe(type, recipe)
    if target.exists() and not force and not dry_run:
        raise RecipeError(f"{target} exists; take another name, or --force to replace it")
    checkpoint = open_checkpoint(source)
    if dry_run:
        _list(checkpoint, chosen)
        return
    start = time.perf_counter()
    importance = gather_importance(checkpoint, read_text(calibrate)) if calibrate is not None else None
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn(),
        transient=True, console=Console(stderr=True), disable=not sys.stderr.isatty(),
    )  # fmt: skip
    with bar:
        task = bar.add_task(chosen.name, total=None)
        result = quantize_model(
            checkpoint,
            target,
            chosen,
            threads=threads,
            importance=importance,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    Path(f"{target}.sha256").write_text(f"{result.sha256}  {target.name}\n")
    types = ", ".join(f"{count} {kind.name}" for kind, count in result.types.items())
    print(f"{target}: {result.bytes / 1e6:,.1f} MB in {time.perf_counter() - start:.1f} s; matrices: {types}")
    print(f"sha256 {result.sha256}")
    if result.requantized:
        print(
            f"note: {result.requantized} matrices were quantized before; from the original weights they lose less",
            file=sys.stderr,
        )


def _recipe(type: str | None, recipe: Path | None) -> Recipe:
    from tandem.models.recipes import named_recipe, read_recipe

    if recipe is not None:
        return read_recipe(recipe)
    assert type is not None
    return named_recipe(type)


def _list(checkpoint: Checkpoint, recipe: Recipe) -> None:
    from tandem.models.quantize import choose_types

    total = 0
    for choice in choose_types(checkpoint, recipe):
        source = choice.exported.source
        size = source.elements // choice.type.block * choice.type.block_bytes
        total += size
        shape = " x ".join(map(str, source.shape))
        print(f"{choice.name:36} {shape:>16}  {source.type.name:>5} -> {choice.type.name:5} {size / 1e6:10,.2f} MB")
    print(f"{total / 1e6:,.1f} MB")
