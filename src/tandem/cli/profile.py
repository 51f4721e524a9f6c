"""`tandem profile`: what this machine's devices do with a model's blocks, measured in seconds and kept."""

from __future__ import annotations

from typing import Annotated

import typer

from tandem.cli.options import DeviceOptions, Model, ModelArgument
from tandem.cli.placing import Devices, open_site, said


def profile(
    *,
    model: ModelArgument = None,
    model_option: Model = None,
    devices: Devices = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again, though a profile is kept.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, in seconds.")] = False,
    engine: DeviceOptions,
) -> None:
    """Measure each device on this model's blocks, and what happens while two devices work at once."""
    import sys

    import msgspec

    from tandem.bench.device_profile import profile_report
    from tandem.engine.placing import obtain_profile

    site = open_site(model, model_option, devices, engine)
    found, where = obtain_profile(site, remeasure=fresh, say=said())
    print(f"profile: {where}", file=sys.stderr)
    print(msgspec.json.encode(found).decode() if as_json else profile_report(found))
