"""`tandem perplexity`: how well a model predicts a text."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tandem.cli.options import DeviceOptions


def perplexity(
    *,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A GGUF file, a folder, or hf:owner/name.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The text, UTF-8.")],
    context: Annotated[int, typer.Option(min=4, help="Tokens of a window.")] = 512,
    windows: Annotated[int | None, typer.Option(min=1, help="At most so many windows.", show_default="all")] = None,
    together: Annotated[int, typer.Option(min=1, help="Windows read at a time.")] = 4,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    device: DeviceOptions,
) -> None:
    """Measure perplexity as llama.cpp's llama-perplexity does: the same windows, their second halves scored.

    What remains different from llama.cpp is the arithmetic of the products and of the KV cache.
    """
    from tandem.bench.perplexity import measure_perplexity
    from tandem.engine.build import EngineConfig
    from tandem.weights.files import read_text
    from tandem.weights.open import open_checkpoint

    def progress(tokens: int, so_far: float) -> None:
        if sys.stderr.isatty():
            print(f"\r{tokens:,} tokens, perplexity {so_far:.4f}", end="", file=sys.stderr, flush=True)

    result = measure_perplexity(
        open_checkpoint(model),
        read_text(file),
        EngineConfig(**asdict(device)),
        length=context,
        windows=windows,
        together=together,
        progress=progress,
    )
    if sys.stderr.isatty():
        print(file=sys.stderr)
    if as_json:
        print(json.dumps(asdict(result)))
    else:
        print(
            f"perplexity {result.perplexity:.4f} +/- {result.error:.4f} "
            f"({result.tokens:,} tokens of {result.windows:,} windows of {result.length:,})"
        )
