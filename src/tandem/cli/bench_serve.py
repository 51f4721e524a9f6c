"""`tandem bench serve`: load on a server with OpenAI's API."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from tandem.cli.bench_output import ResultFile, check_outputs, finish, header, progress
from tandem.errors import BenchError

_KEY = "OPENAI_API_KEY"


def serve(
    *,
    url: Annotated[str, typer.Option(help="The server, such as http://127.0.0.1:8000.", show_default=False)],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Its name there.", show_default="the first")
    ] = None,
    api: Annotated[Literal["chat", "completions"], typer.Option(help="Which of OpenAI's APIs.")] = "chat",
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, help="So many at once, each beginning as another ends.", show_default="8, without --rate"),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="So many begin in a second, whatever becomes of them.", show_default=False)
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="CSV with TIMESTAMP, ContextTokens and GeneratedTokens: arrivals and lengths of requests."),
    ] = None,
    speed: Annotated[float, typer.Option(help="With --trace: 2 halves the time between arrivals.")] = 1.0,
    requests: Annotated[
        int | None, typer.Option(min=1, help="How many.", show_default="64, or all of the trace")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Of each prompt, about.")] = 128,
    new_tokens: Annotated[int, typer.Option(min=1, help="Of each answer, at most.")] = 128,
    context: Annotated[
        int | None, typer.Option(min=8, help="With --trace: lengths are scaled to fit so many.", show_default="not")
    ] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Answers of full length (Tandem, vLLM and llama-server know it).")
    ] = False,
    temperature: Annotated[float, typer.Option(min=0, help="Of the answers.")] = 1.0,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that a request may take.")] = 600.0,
    json: ResultFile = None,
) -> None:
    """Latency and throughput of any server with OpenAI's API, as its users see them.

    A closed loop with --concurrency, a fixed rate with --rate, or a --trace. An API key is read from OPENAI_API_KEY.
    """
    import asyncio

    from tandem.bench.http_stream import Server
    from tandem.bench.serve import Load, first_model, run_load, steady
    from tandem.bench.tables import serve_table
    from tandem.bench.trace import read_trace, scale_trace

    if sum(given is not None for given in (concurrency, rate, trace)) > 1:
        raise BenchError("give one of --concurrency, --rate and --trace")
    for name, number in (("--rate", rate), ("--speed", speed)):
        if number is not None and not 0 < number < float("inf"):
            raise BenchError(f"{name} {number:g} is not possible; give a number above 0")
    check_outputs(json, None)
    factor = 1.0
    if trace is not None:
        sent = read_trace(trace)
        if context is not None:
            sent, factor = scale_trace(sent, context)
        sent = sent[:requests]
    else:
        sent = steady(requests or 64, prompt_tokens, new_tokens, rate)
        if rate is None:
            concurrency = concurrency or 8
    server = Server.at(url, os.environ.get(_KEY))
    load = Load(sent, concurrency, speed, ignore_eos, temperature, timeout)
    begin = header()
    named = model or asyncio.run(first_model(server))
    seen = asyncio.run(run_load(server, api, named, load, progress("request")))
    result = {
        **begin,
        "server": {"url": url, "model": named, "api": api},
        "load": {
            "concurrency": concurrency,
            "rate": rate,
            "trace": None if trace is None else trace.name,
            "speed": speed,
            "length_factor": factor,
            "prompt_tokens": prompt_tokens if trace is None else None,
            "new_tokens": new_tokens if trace is None else None,
            "ignore_eos": ignore_eos,
            "temperature": temperature,
            "timeout_s": timeout,
        },
        "serve": seen,
    }
    finish(result, serve_table, None, json, None)
