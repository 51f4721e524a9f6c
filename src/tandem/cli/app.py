"""`tandem` itself: which commands there are, and what becomes of an error.

Importing this must stay cheap: a command imports what it needs when it runs.
"""

from __future__ import annotations

import errno
import functools
import io
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from tandem.cli import (
    bench,
    chat,
    config,
    deploy,
    devices,
    doctor,
    inspect,
    models,
    perplexity,
    plan,
    plan_memory,
    profile,
    project,
    quantize,
    run,
    serve,
    validate,
)
from tandem.cli.failure import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_USAGE, fail
from tandem.cli.options import flags
from tandem.errors import TandemError

DEBUG_VARIABLE = "TANDEM_DEBUG"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

app = typer.Typer(
    name="tandem",
    help="Run language models on this machine's own processors.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    # Python has None for a stream that was closed when it started; a closed one behaves like an empty one.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115
    # A terminal that cannot show a character must not end the text.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    _show_log()
    app()


def _show_log() -> None:
    """What a device does once and what takes seconds is said on stderr; the server has a log of its own."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("tandem.vulkan")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"tandem {version('tandem-llm')}")
        except PackageNotFoundError:
            fail(EXIT_ERROR, "the version is unknown: this is a source tree that is not installed (pip install -e .)")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Run language models on this machine's own processors."""


def _guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Turns what a command raises into a line on stderr and an exit code; never a traceback, unless asked for."""

    @functools.wraps(command)
    def guarded(*args: object, **kwargs: object) -> None:
        try:
            command(*args, **kwargs)
            sys.stdout.flush()
        except typer.Exit:
            raise
        except TandemError as error:
            if os.environ.get(DEBUG_VARIABLE):
                raise
            fail(EXIT_USAGE, str(error))
        except KeyboardInterrupt:
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:
            # The reader has seen enough.
            _discard_stdout()
        except MemoryError:
            if os.environ.get(DEBUG_VARIABLE):
                raise
            fail(
                EXIT_USAGE,
                "not enough memory: the system refused some of what was planned (is there a limit, as by ulimit -v?); "
                "free memory, raise the limit, or take a smaller model or --context",
            )
        except Exception as error:
            if os.environ.get(DEBUG_VARIABLE):
                raise
            if isinstance(error, OSError) and error.errno in _NO_ROOM and error.filename is None:
                _discard_stdout()
                fail(EXIT_ERROR, f"the output cannot be written: {error.strerror}")
            what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            fail(EXIT_ERROR, f"unexpected {what} (set {DEBUG_VARIABLE}=1 for the traceback)")

    return guarded


def _discard_stdout() -> None:
    """What is still buffered must not fail again when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# The configuration gives these their defaults; a measurement's command line says all of it.
_configured: dict[str, Callable[..., None]] = {
    "run": run.run,
    "chat": chat.chat,
    "serve": serve.serve,
    "inspect": inspect.inspect,
    "plan-memory": plan_memory.plan_memory,
    "deploy": deploy.deploy,
    "devices": devices.devices,
    "profile": profile.profile,
    "plan": plan.plan,
    "project": project.project,
}
_commands: dict[str, Callable[..., None]] = {
    "config": config.config,
    "doctor": doctor.doctor,
    "quantize": quantize.quantize,
    "perplexity": perplexity.perplexity,
    "validate": validate.validate,
    "list": models.list_models,
    "pull": models.pull,
    "rm": models.remove,
}
for _name, _command in _configured.items():
    app.command(_name)(_guarded(flags(_command, configured=True)))
for _name, _command in _commands.items():
    app.command(_name)(_guarded(flags(_command)))

_bench = typer.Typer(cls=bench.BenchGroup, help="Measure this machine with a model; throughput is the default.")
for _name, _command in bench.COMMANDS.items():
    _bench.command(_name)(_guarded(flags(_command)))
app.add_typer(_bench, name="bench")
