"""`tandem config`, and how a configuration becomes the defaults of a command's flags."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tandem.cli.failure import EXIT_USAGE, fail
from tandem.errors import TandemError

if TYPE_CHECKING:
    from tandem.config import Configuration

_HELP = "Settings from this TOML file; see tandem config."
# Names under which commands take a setting.
_ALIASES = {"model": ("model_option", "model")}


def _become_defaults(ctx: typer.Context, file: Path | None) -> Path | None:
    """Fills the defaults of the command's flags; runs before any of them is looked at."""
    if ctx.resilient_parsing:
        return file
    from tandem.config import read_configuration

    try:
        values = read_configuration(file).values
    except TandemError as error:
        fail(EXIT_USAGE, str(error))
    parameters = {parameter.name: parameter for parameter in ctx.command.params}
    defaults = dict(ctx.default_map or {})
    for name, value in values.items():
        taken = next((alias for alias in _ALIASES.get(name, (name,)) if alias in parameters), None)
        if taken is not None:
            many = parameters[taken].nargs == -1 or getattr(parameters[taken], "multiple", False)
            defaults[taken] = [value] if many else value
    ctx.default_map = defaults
    return file


ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help=_HELP, show_default=False, is_eager=True, callback=_become_defaults,
        rich_help_panel="Engine",
    ),
]  # fmt: skip


def config(
    *,
    file: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="Read this file alone.", show_default=False)
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Also what each means and where it came from.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show the settings that hold here, from files and environment; flags of a command come over them."""
    from tandem.config import SETTINGS, read_configuration

    found = read_configuration(file)
    if as_json:
        print(json.dumps(_explained(found), ensure_ascii=False))
    elif not explain:
        for name, value in found.values.items():
            print(f"{name} = {json.dumps(value, ensure_ascii=False)}")
        if not found.values:
            print("# nothing is set: tandem config --explain lists what can be")
    else:
        for path, there in found.files.items():
            print(f"# {path}{'' if there else ' (not there)'}")
        for name, setting in SETTINGS.items():
            print(f"\n# {setting.help} Environment: {setting.variable}")
            if name in found.values:
                print(f"{name} = {json.dumps(found.values[name], ensure_ascii=False)}  # from {found.sources[name]}")
            else:
                print(f"# {name}: {setting.default} (default)")


def _explained(found: Configuration) -> dict[str, Any]:
    from tandem.config import SETTINGS

    return {
        "files": [{"path": os.fspath(path), "found": there} for path, there in found.files.items()],
        "settings": {
            name: {
                "value": found.values.get(name),
                "source": found.sources.get(name, "default"),
                "default": setting.default,
                "variable": setting.variable,
                "help": setting.help,
            }
            for name, setting in SETTINGS.items()
        },
    }
