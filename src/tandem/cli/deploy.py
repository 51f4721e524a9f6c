"""`tandem deploy`: files that make a model a service, after a look at the machine and the plan; and a check of one."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tandem.cli.options import EngineOptions
from tandem.errors import DeployError

if TYPE_CHECKING:
    from tandem.config import Value
    from tandem.deploy.service import Service
    from tandem.memory.plan import MemoryPlan

_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
_LEAST = 0.25


def deploy(
    *,
    kind: Annotated[Literal["systemd", "container", "compose"], typer.Argument(help="What runs the service.")],
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A GGUF file, a folder, or hf:owner/name.")],
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port to listen on.")] = 8000,
    api_key_file: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Keys that requests must bring, one a line.", show_default=False)
    ] = None,
    max_sequences: Annotated[int, typer.Option(min=1, max=4096, help="Sequences that run at once.")] = 32,
    name: Annotated[str, typer.Option(help="Of the unit or container.")] = "tandem",
    user: Annotated[
        str | None, typer.Option(help="systemd: run as this user.", show_default="one of the service's own")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where files go.", show_default="systemd: /; else: here")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Write; without it the differences are shown.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Check the running service instead.")] = False,
    engine: EngineOptions,
) -> None:
    """Write a hardened systemd unit, a Containerfile or a compose file for a model; --check looks at a running one."""
    from tandem.deploy.files import changes, write

    if not _NAME.fullmatch(name):
        raise DeployError(f"{name!r} names no service: lower-case letters, digits and hyphens, a letter first")
    path, plan, placement = _dry_run(model, engine, max_sequences)
    if check:
        _check(host, port, api_key_file, plan, engine.threads)
        return
    usual = asdict(EngineOptions())
    settings = {key: value for key, value in asdict(engine).items() if value != usual[key]}
    # What is chosen here is what the unit lets the service reach: it must not choose again.
    settings |= {"placement": placement, "context": plan.limits.context, "max_sequences": max_sequences}
    service = _service(name, path, host, port, plan, settings, api_key_file, user)
    _look_at_machine(service, must_work=kind == "systemd")
    print(plan.table(), end="\n\n")
    files = _files(kind, service, output)
    differences = changes(files)
    for file in files:
        print(differences.get(file, f"unchanged: {file}"))
    if not differences:
        print("\nNothing to change.")
    elif not yes:
        print("\nNothing was written; --yes writes.")
    else:
        write({file: files[file] for file in differences})
        print(f"\nWritten. {_next_step(kind, service)}")
    if host not in ("127.0.0.1", "::1", "localhost") and api_key_file is None:
        print(f"warning: whoever reaches {host}:{port} may use it; --api-key-file asks for a key", file=sys.stderr)


def _dry_run(model: str, engine: EngineOptions, max_sequences: int) -> tuple[Path, MemoryPlan, str]:
    """The model's local path, what the server would plan for it, and the placement, also where `auto` chose it."""
    from tandem.engine.build import EngineConfig, plan_engine
    from tandem.models.load import block_weights
    from tandem.pipeline.notation import format_placement
    from tandem.weights.open import open_checkpoint

    checkpoint = open_checkpoint(model)
    rows = max(EngineConfig().rows, max_sequences)
    planned = plan_engine(checkpoint, EngineConfig(**asdict(engine), max_sequences=max_sequences, rows=rows))
    planned.close()
    spec = planned.spec
    placement = format_placement(planned.placement, spec, lambda i: block_weights(checkpoint, spec, i))
    return checkpoint.path.absolute(), planned.plan, placement


def _service(
    name: str,
    model: Path,
    host: str,
    port: int,
    plan: MemoryPlan,
    settings: dict[str, Value],
    api_key_file: Path | None,
    user: str | None,
) -> Service:
    from tandem.deploy.service import Service

    if api_key_file is not None and not api_key_file.is_file():
        raise DeployError(f"there is no file {api_key_file} with API keys; write one a line")
    keys = None if api_key_file is None else api_key_file.absolute()
    return Service(name, model, host, port, plan, settings, Path(sys.executable), keys, user)


def _look_at_machine(service: Service, *, must_work: bool) -> None:
    """Shows what is wrong; a service for this machine is refused where it could not work."""
    import os

    from tandem.doctor.machine import Machine
    from tandem.doctor.probe import probe_software, probe_vulkan
    from tandem.doctor.report import Probes, examine

    concerned = {"cpu", "memory", "software"} | ({"gpu"} if service.vulkan else set())
    probes = Probes(probe_software(), probe_vulkan() if service.vulkan else None)
    for finding in examine(Machine(environment=dict(os.environ)), probes):
        if finding.area not in concerned or finding.status not in ("problem", "warning"):
            continue
        said = f"{finding.text} (to mend it: {finding.fix})"
        if finding.status == "problem" and must_work:
            raise DeployError(f"this machine cannot run the service: {said}")
        print(f"{finding.status}: {said}", file=sys.stderr)


def _files(kind: str, service: Service, output: Path | None) -> dict[Path, str]:
    from tandem.deploy.container import compose_files, container_files
    from tandem.deploy.systemd import unit_files

    if kind == "systemd":
        return unit_files(service, output or Path("/"))
    folder = output or Path()
    return container_files(service, folder) if kind == "container" else compose_files(service, folder)


def _next_step(kind: str, service: Service) -> str:
    if kind == "systemd":
        return f"Now: systemctl daemon-reload && systemctl enable --now {service.name} (restart it if it runs)"
    if kind == "compose":
        return "Now, with the wheel from tools/build_wheel.sh beside them: docker compose up -d --build"
    return "Now follow the comment at the top of the Containerfile."


def _check(host: str, port: int, api_key_file: Path | None, plan: MemoryPlan, threads: int | None) -> None:
    from tandem.deploy.check import Running, Throughput, expected_throughput
    from tandem.devices.cpu.threads import default_threads

    running = Running(host, port, _first_key(api_key_file))
    served = running.health()
    print(f"ok       {running.address} is up and serves {served}")
    tokens, seconds = running.complete(served, 8)
    print(f"ok       one request: {tokens} tokens in {seconds:.2f} s")
    found = Throughput(running.throughput(served), expected_throughput(plan, threads or default_threads()))
    if found.expected is None:
        print(f"ok       decode of one sequence: {found.measured:.1f} tokens/s; nothing to compare with on this device")
        return
    part = found.measured / found.expected
    text = (
        f"decode of one sequence: {found.measured:.1f} tokens/s, {100 * part:.0f} % of the {found.expected:.1f} "
        "at which this machine reads the plan's weights from memory"
    )
    if part < _LEAST:
        raise DeployError(f"{text}; under {100 * _LEAST:.0f} %: is the machine busy, or the service throttled?")
    print(f"ok       {text}")


def _first_key(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        lines = [line.strip() for line in file.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DeployError(f"the API keys in {file} cannot be read: {error}") from None
    return next((line for line in lines if line and not line.startswith("#")), None)
