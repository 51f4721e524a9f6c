"""`tandem bench`: measures, and says what on: the machine, the versions, the command, the spread.

A kind of benchmark is a subcommand; without one, `throughput` runs.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from tandem.cli import bench_serve
from tandem.cli.bench_output import PlotFile, ResultFile, check_outputs, finish, header, progress
from tandem.cli.options import DeviceOptions, EngineOptions, Model
from tandem.cli.placing import Devices, open_site, said
from tandem.errors import BenchError

if TYPE_CHECKING:
    from tandem.bench.throughput import Workload
    from tandem.weights.checkpoint import Checkpoint

DEFAULT = "throughput"
_EXAMPLES = {2: "6912x1152", 3: "16x8x128"}


class BenchGroup(TyperGroup):
    """Options without a subcommand are those of the default one; `--profile` names another."""

    # typer brings a click of its own, or takes the installed one, depending on its version: its Context has two homes.
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in self.get_help_option_names(ctx)):
            kind = "profile" if "--profile" in args else DEFAULT
            args = [kind, *(each for each in args if each != "--profile")]
        return super().parse_args(ctx, args)


def throughput(
    *,
    model: Model = None,
    what: Annotated[str, typer.Option(help="What to measure, of these.")] = "prefill,decode,mixed",
    batch: Annotated[str, typer.Option(help="Sequences at once.")] = "1,2,4,8,9,12,16,24,32,64",
    depth: Annotated[str, typer.Option(help="Positions that sequences have before.")] = "0,512",
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Of each measured prompt.")] = 128,
    new_tokens: Annotated[int, typer.Option(min=1, help="Decode steps to measure.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each, in turns; medians count.")] = 5,
    rows: Annotated[
        int | None,
        typer.Option(min=1, help="Rows of the largest step.", show_default="256, or twice the largest batch"),
    ] = None,
    json: ResultFile = None,
    plot: PlotFile = None,
    engine: DeviceOptions,
) -> None:
    """Prefill, decode and mixed throughput, for each batch size at each context depth (the default)."""
    from tandem.bench.plot import plot_throughput
    from tandem.bench.subject import open_subject
    from tandem.bench.tables import throughput_table
    from tandem.bench.throughput import run_throughput
    from tandem.models.open import model_spec

    workload = _workload(what, batch, depth, prompt_tokens, new_tokens, rounds, rows)
    check_outputs(json, plot)
    checkpoint = _open(model)
    config = workload.engine_config(model_spec(checkpoint), **dataclasses.asdict(engine))
    begin = header()
    with open_subject(checkpoint, config) as subject:
        result = {**begin, **run_throughput(subject, workload, progress("measurement"))}
    finish(result, throughput_table, plot_throughput, json, plot)


def replay(
    *,
    trace: Annotated[Path, typer.Argument(help="CSV with TIMESTAMP, ContextTokens and GeneratedTokens.")],
    model: Model = None,
    requests: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many.", show_default="all of them")
    ] = None,
    speed: Annotated[float, typer.Option(help="2 halves the time between arrivals.")] = 1.0,
    sequences: Annotated[int, typer.Option(min=1, help="Sequences that run at once.")] = 32,
    json: ResultFile = None,
    plot: PlotFile = None,
    engine: EngineOptions,
) -> None:
    """Latency under a trace's load: TTFT, ITL and throughput, as percentiles.

    Lengths are multiplied by one factor so that the trace's longest request fits the context.
    """
    from tandem.bench import replay as bench
    from tandem.bench.plot import plot_replay
    from tandem.bench.subject import open_subject
    from tandem.bench.tables import replay_table
    from tandem.bench.trace import read_trace, scale_trace
    from tandem.engine.build import EngineConfig

    if not 0 < speed < float("inf"):
        raise BenchError(f"--speed {speed:g} is not possible; give a number above 0")
    whole = read_trace(trace)
    check_outputs(json, plot)
    checkpoint = _open(model)
    config = EngineConfig(
        **dataclasses.asdict(engine), max_sequences=sequences, rows=max(EngineConfig().rows, sequences)
    )
    begin = header()
    with open_subject(checkpoint, config) as subject:
        scaled, factor = scale_trace(whole, subject.plan.limits.context)
        seen = bench.replay(subject.engine, scaled[:requests], speed=speed, progress=progress("request"))
        result = {
            **begin,
            **subject.to_json(),
            "trace": {"file": trace.name, "requests": len(whole), "length_factor": factor, "speed": speed},
            "replay": seen.to_json(),
        }
    finish(result, replay_table, plot_replay, json, plot)


def kernels(
    *,
    what: Annotated[
        str, typer.Option(help="Kernels to measure, of these.")
    ] = "repack,product,decode,prefill,normalize,sample",
    types: Annotated[str | None, typer.Option(help="Weight types, such as Q4_0,Q8_0.", show_default="all")] = None,
    rows: Annotated[str, typer.Option(help="Rows of activations.")] = "1,2,3,4,6,8,9,12,16,17,24,32,64,512",
    shape: Annotated[str, typer.Option(help="Weights, as rows x columns.")] = "6912x1152,9728x2560",
    attention: Annotated[str, typer.Option(help="Heads x KV heads x head size.")] = "16x8x128",
    depth: Annotated[int, typer.Option(min=1, help="Positions that decoding sequences have.")] = 1024,
    vocab: Annotated[int, typer.Option(min=1, help="Logits of a row that is sampled.")] = 262144,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each, in turns; medians count.")] = 3,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads.", show_default="one per core")] = None,
    json: ResultFile = None,
    plot: PlotFile = None,
) -> None:
    """Single kernels of the CPU against this machine's ceilings, measured before and after; needs no model."""
    from tandem.bench.attention_rig import AttentionShape
    from tandem.bench.kernels import TYPES, KernelWork, run_kernels
    from tandem.bench.plot import plot_kernels
    from tandem.bench.tables import kernels_table

    heads, kv_heads, head_dim = _sizes("--attention", attention, 3)
    work = KernelWork(
        kernels=tuple(dict.fromkeys(part.strip() for part in what.split(","))),
        types=TYPES if types is None else tuple(dict.fromkeys(part.strip().upper() for part in types.split(","))),
        shapes=tuple((n, k) for n, k in (_sizes("--shape", part, 2) for part in shape.split(","))),
        rows=_numbers("--rows", rows, least=1),
        attention=AttentionShape(heads, kv_heads, head_dim),
        depth=depth,
        vocab=vocab,
        rounds=rounds,
        threads=threads,
        isa=os.environ.get("TANDEM_CPU_ISA", ""),
    )
    check_outputs(json, plot)
    result = {**header(), **run_kernels(work, progress("group"))}
    finish(result, kernels_table, plot_kernels, json, plot)


def profile(
    *,
    model: Model = None,
    what: Annotated[str, typer.Option(help="What to profile, of prefill and decode.")] = "prefill,decode",
    batch: Annotated[str, typer.Option(help="Sequences at once.")] = "1,8",
    depth: Annotated[str, typer.Option(help="Positions that sequences have before.")] = "0",
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Of each prompt.")] = 128,
    new_tokens: Annotated[int, typer.Option(min=1, help="Decode steps.")] = 4,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a trace for chrome://tracing.", show_default=False),
    ] = None,
    json: ResultFile = None,
    engine: DeviceOptions,
) -> None:
    """Where a step's time goes, by kernel and kind of block, beside what the device can do (also: --profile)."""
    from tandem.bench.profile import measure_ceilings, profile_table, run_profile, write_trace
    from tandem.bench.subject import open_subject
    from tandem.models.open import model_spec

    workload = _workload(what, batch, depth, prompt_tokens, new_tokens, rounds=1)
    check_outputs(json, None, trace)
    checkpoint = _open(model)
    config = workload.engine_config(model_spec(checkpoint), **dataclasses.asdict(engine))
    begin = header()
    ceilings = measure_ceilings(model_spec(checkpoint), config)
    with open_subject(checkpoint, config) as subject:
        found, steps = run_profile(subject, workload, ceilings, progress("measurement"))
    if trace is not None:
        write_trace(trace, steps)
    finish({**begin, **found}, profile_table, None, json, None)


def ladder(
    *,
    model: Model = None,
    batch: Annotated[int, typer.Option(min=1, help="Prompts.")] = 8,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 64,
    new: Annotated[int, typer.Option(min=1, help="Tokens of each answer.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each rung, of which the fastest counts.")] = 3,
    devices: Devices = None,
    json: ResultFile = None,
    engine: DeviceOptions,
) -> None:
    """Four rungs on the same prompts: baseline, + batch, + resident, + pipeline."""
    from tandem.bench.ladder import ladder_table, run_ladder
    from tandem.bench.placing import workload_config
    from tandem.bench.report import write_result
    from tandem.engine.placing import obtain_profile, with_config
    from tandem.pipeline.workload import Workload

    check_outputs(json, None)
    workload = Workload(batch, prompt, new, max(256, batch))
    site = open_site(model, None, devices, engine)
    site = with_config(site, workload_config(workload, site.spec, site.config))
    begin = header()
    profile, _ = obtain_profile(site, say=said())
    result = {**begin, **run_ladder(site, profile, workload, said(), rounds)}
    if json is not None:
        write_result(json, result)
    print(ladder_table(result))


COMMANDS: dict[str, Callable[..., None]] = {
    DEFAULT: throughput,
    "profile": profile,
    "replay": replay,
    "serve": bench_serve.serve,
    "kernels": kernels,
    "ladder": ladder,
}


def _workload(
    what: str, batch: str, depth: str, prompt_tokens: int, new_tokens: int, rounds: int, rows: int | None = None
) -> Workload:
    from tandem.bench.throughput import Workload

    batches = _numbers("--batch", batch, least=1)
    return Workload(
        kinds=tuple(dict.fromkeys(part.strip() for part in what.split(","))),
        batches=batches,
        depths=_numbers("--depth", depth, least=0),
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        rounds=rounds,
        rows=rows or max(256, 2 * max(batches)),
    )


def _numbers(name: str, text: str, least: int) -> tuple[int, ...]:
    """`1,2,8` as ascending numbers, each once."""
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        numbers = []
    if not numbers or numbers[0] < least:
        raise BenchError(f"{name} {text!r} is not a list of numbers of {least} or more; write it like 1,2,8")
    return tuple(numbers)


def _sizes(name: str, text: str, count: int) -> tuple[int, ...]:
    """`6912x1152` as numbers of 1 or more."""
    parts = text.strip().split("x")
    if len(parts) != count or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise BenchError(
            f"{name} {text!r} is not possible; write {count} numbers of 1 or more, as in {_EXAMPLES[count]}"
        )
    return tuple(map(int, parts))


def _open(model: str | None) -> Checkpoint:
    from tandem.llm import BUNDLED_MODEL
    from tandem.weights.open import open_checkpoint

    return open_checkpoint(BUNDLED_MODEL if model is None else model)
