"""What the commands about placements share."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tandem.cli.options import DeviceOptions, chosen_model

if TYPE_CHECKING:
    from tandem.engine.placing import Site

Devices = Annotated[
    str | None,
    typer.Option(metavar="LIST", help="Devices to consider, such as cpu,vulkan:0.", show_default="all"),
]


def open_site(
    model: str | None, model_option: str | None, devices: str | None, engine: DeviceOptions, **config: Any
) -> Site:
    """The model on the devices that are asked for."""
    from tandem.engine.build import EngineConfig
    from tandem.engine.placing import find_site
    from tandem.llm import BUNDLED_MODEL
    from tandem.models.open import model_spec
    from tandem.pipeline.devices import described
    from tandem.weights.open import open_checkpoint

    checkpoint = open_checkpoint(chosen_model(model, model_option) or BUNDLED_MODEL)
    settings = EngineConfig(**{**dataclasses.asdict(engine), **config})
    names = None if devices is None else described([name.strip() for name in devices.split(",")], engine.threads)
    return find_site(checkpoint, model_spec(checkpoint), settings, names)


def said() -> Callable[[str], None] | None:
    """A line on stderr on what is going on, where somebody watches it."""
    if not sys.stderr.isatty():
        return None
    return lambda what: print(f"\r\033[K{what} …", end="\r", file=sys.stderr, flush=True)
