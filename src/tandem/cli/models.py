"""`tandem list`, `pull` and `rm`: the models that are on this machine."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tandem.errors import ModelFileError, RequestError


def list_models(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show the models of Hugging Face's cache and of the folder that the setting `models` names."""
    from tandem.memory.system import format_bytes
    from tandem.weights.library import list_models

    folder = _folder()
    models = list_models(folder)
    if as_json:
        shown = [{**asdict(model), "paths": [str(path) for path in model.paths]} for model in models]
        print(json.dumps({"folder": str(folder), "models": shown}, ensure_ascii=False))
        return
    if not models:
        print(f"No model in Hugging Face's cache or {folder}; tandem pull hf:owner/name downloads one.")
        return
    width = max(len(model.name) for model in models)
    for model in models:
        used = time.strftime("%Y-%m-%d", time.localtime(model.last_used))
        print(f"{model.name:<{width}}  {model.format:<11}  {format_bytes(model.bytes):>10}  used {used}")
    print(f"{'all':<{width}}  {'':<11}  {format_bytes(sum(model.bytes for model in models)):>10}")


def pull(
    *,
    name: Annotated[str, typer.Argument(metavar="NAME", help="hf:owner/name, or hf:owner/name/file.gguf.")],
) -> None:
    """Download a model into Hugging Face's cache, or bring it up to date; prints where it is."""
    from tandem.weights.hub import HUB_PREFIX, fetch

    if not name.startswith(HUB_PREFIX) and Path(name).exists():
        raise ModelFileError(f"{name} is here already; tandem pull takes names such as hf:owner/name")
    print(fetch(name if name.startswith(HUB_PREFIX) else f"{HUB_PREFIX}{name}"))


def remove(
    *,
    name: Annotated[str, typer.Argument(metavar="NAME", help="As tandem list shows it.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a model of those that `tandem list` shows, after asking."""
    from tandem.memory.system import format_bytes
    from tandem.weights.library import find_model, remove_model

    model = find_model(name, _folder())
    if not yes:
        if not _asked():
            raise RequestError(f"nobody is there to ask whether {model.name} may go; --yes deletes it unasked")
        answer = input(f"Delete {model.name} ({format_bytes(model.bytes)})? [y/N] ")
        if answer.strip().lower() not in ("y", "yes"):
            print("Kept.")
            return
    print(f"Deleted {model.name}: {format_bytes(remove_model(model))} freed.")


def _asked() -> bool:
    """Whether somebody is there to answer."""
    return sys.stdin.isatty()


def _folder() -> Path:
    from tandem.config import models_folder, read_configuration

    return models_folder(read_configuration())
