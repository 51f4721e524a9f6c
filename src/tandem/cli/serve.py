"""`tandem serve`: models behind OpenAI's API."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tandem.cli.options import EngineOptions
from tandem.errors import MemoryPlanError, ServerError

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY_VARIABLE = "TANDEM_API_KEY"
LogLevel = Literal["debug", "info", "warning", "error"]


def _option(help: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Server", **more)


@dataclasses.dataclass(frozen=True, slots=True)
class ServerOptions:
    """Names and meanings are those of `ServerConfig`."""

    host: Annotated[str, _option("Address to listen on; 0.0.0.0 is every interface.")] = "127.0.0.1"
    port: Annotated[int, _option("0 takes a free one.", min=0, max=65535)] = 8000
    api_key_file: Annotated[
        Path | None, _option(f"One API key a line; {KEY_VARIABLE} holds one more.", metavar="PATH", show_default=False)
    ] = None
    cors_origin: Annotated[
        list[str] | None, _option("Web pages from here may call; may be repeated.", show_default=False)
    ] = None
    allowed_host: Annotated[
        list[str] | None, _option("A name this server is called by, without keys.", show_default=False)
    ] = None
    max_queue: Annotated[int, _option("Samples that may wait for each model.", min=0)] = 256
    request_timeout: Annotated[float, _option("Seconds that a request may take.", min=1)] = 600.0
    drain_timeout: Annotated[float, _option("Seconds for running requests at the end.", min=0)] = 30.0
    max_body: Annotated[int, _option("Bytes of a request's body.", min=1024)] = 8 << 20
    max_tokens: Annotated[
        int | None, _option("Most tokens of an answer.", min=1, show_default="what the context holds")
    ] = None
    memory_budget: Annotated[
        str | None, _option("Of all loaded models together, like 16GiB.", show_default="what is free")
    ] = None
    idle_unload: Annotated[
        float | None, _option("Unload a model nobody used for so many seconds.", min=1, show_default="never")
    ] = None
    log_level: Annotated[LogLevel, _option("Of the log on stderr, a JSON object a line.")] = "info"


def serve(
    *,
    model: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]…",
            show_default="the bundled one",
            help="A GGUF file, a folder, hf:owner/name, or NAME=MODEL; a folder of GGUF files is all of them.",
        ),
    ] = None,
    more_models: Annotated[
        list[str] | None, typer.Option("--model", "-m", metavar="MODEL", help="The same.", show_default=False)
    ] = None,
    max_sequences: Annotated[int, typer.Option(help="Sequences of a model that run at once.", min=1, max=4096)] = 32,
    rows: Annotated[int, typer.Option(help="Rows of a step: the largest prefill chunk.", min=1, max=65536)] = 256,
    server: ServerOptions,
    engine: EngineOptions,
) -> None:
    """Serve models over HTTP, as OpenAI's API has it, until Ctrl-C."""
    from tandem.engine.build import EngineConfig
    from tandem.llm import BUNDLED_MODEL
    from tandem.memory.system import parse_bytes
    from tandem.server.config import ServerConfig
    from tandem.server.hub import name_sources
    from tandem.server.run import serve as run_server

    options = dataclasses.asdict(server)
    budget, log_level = options.pop("memory_budget"), options.pop("log_level")
    try:
        budget = None if budget is None else parse_bytes(budget)
    except ValueError as error:
        raise MemoryPlanError(f"--memory-budget: {error}") from None
    config = ServerConfig(
        api_keys=tuple(_keys(options.pop("api_key_file"))),
        cors_origins=tuple(options.pop("cors_origin") or ()),
        allowed_hosts=tuple(options.pop("allowed_host") or ()),
        memory_budget=budget,
        engine=EngineConfig(**dataclasses.asdict(engine), max_sequences=max_sequences, rows=max(rows, max_sequences)),
        **options,
    )
    sources = name_sources([*(model or ()), *(more_models or ())] or [str(BUNDLED_MODEL)])

    def started(address: str) -> None:
        print(f"Tandem serves {', '.join(sources)} at {address} (Ctrl-C ends it)", file=sys.stderr)

    run_server(config, sources, started=started, log_level=log_level)


def _keys(file: Path | None) -> Iterator[str]:
    """Keys from the environment and from a file, in which # begins a comment."""
    if key := os.environ.get(KEY_VARIABLE, "").strip():
        yield key
    if file is None:
        return
    try:
        lines = [line.strip() for line in file.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ServerError(f"the API keys in {file} cannot be read: {error}") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ServerError(f"there is no API key in {file}; write one a line")
    yield from keys
