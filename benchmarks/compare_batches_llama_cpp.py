#!/usr/bin/env python3
"""Decode throughput by batch size, beside llama.cpp's `llama-batched-bench` on the same file, in turns in one run.

    python benchmarks/compare_batches_llama_cpp.py [--model FILE.gguf] [--llama-bin DIR] [--threads N]

Each round starts a fresh process for each side, which goes through all batch sizes; the side that goes first and the
order of the sizes turn around every round. Every sequence has a prompt of its own of --prompt-tokens, and then gets
--new-tokens. `llama-batched-bench` does not sample; Tandem's figures include sampling and the
whole engine.

Two things are checked on the medians and reported as they are: that Tandem's rate at each size is at least 0.95 of its
best at all smaller sizes, and that at 32 sequences the time between native calls is under 5 %. What is not given or
not there is skipped, and the output says so.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from compare_llama_cpp import run
from tandem.bench.report import Summary, columns, run_header, write_result
from tandem.bench.subject import open_subject
from tandem.bench.tables import header_lines
from tandem.bench.throughput import BATCHES, Workload, relative_to_smaller, run_throughput
from tandem.llm import BUNDLED_MODEL
from tandem.models.open import model_spec
from tandem.weights.open import open_checkpoint

REPO = Path(__file__).resolve().parent.parent
TANDEM, LLAMA = "tandem", "llama.cpp"
LEAST_OF_SMALLER = 0.95
OVERHEAD_BATCH, MOST_OVERHEAD = 32, 0.05


def main() -> None:
    options = parse_arguments()
    if options.worker:
        print(json.dumps(measure_in_process(options)))
        return
    skipped = reason_to_skip(options.llama_bin)
    sides = [TANDEM] if skipped else [TANDEM, LLAMA]
    result: dict[str, Any] = {**run_header(REPO, command_line(options))}
    rates: dict[str, dict[int, list[float]]] = {side: {batch: [] for batch in options.batch} for side in sides}
    overheads: dict[int, list[float]] = {batch: [] for batch in options.batch}
    for turn in range(options.rounds):
        sizes = options.batch[::-1] if turn % 2 else options.batch
        for side in sides[::-1] if turn % 2 else sides:
            if side == LLAMA:
                measured = measure_llama(options, sizes)
            else:
                about = measure_tandem(options, sizes)
                measured = {entry["batch"]: entry["decode"]["tokens_per_s"]["median"] for entry in about["results"]}
                for entry in about["results"]:
                    overheads[entry["batch"]].append(entry["decode"]["overhead"]["median"])
                result |= {key: about[key] for key in ("model", "devices", "threads", "read_bandwidth_bytes_per_s")}
            for batch in options.batch:
                rates[side][batch].append(measured[batch])
        print(f"\rround {turn + 1} of {options.rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    summaries = {side: {batch: Summary.of(of[batch]) for batch in of} for side, of in rates.items()}
    overhead = {batch: Summary.of(samples) for batch, samples in overheads.items()}
    relative = {
        side: relative_to_smaller({batch: summary.median for batch, summary in of.items()})
        for side, of in summaries.items()
    }
    result |= {
        "prompt_tokens": options.prompt_tokens,
        "new_tokens": options.new_tokens,
        "skipped": {LLAMA: skipped} if skipped else {},
        "decode_tokens_per_s": {
            side: {batch: summary.to_json() for batch, summary in of.items()} for side, of in summaries.items()
        },
        "of_best_smaller": relative,
        "overhead": {batch: summary.to_json() for batch, summary in overhead.items()},
        "checks": checks(relative[TANDEM], overhead),
    }
    show(result, summaries, overhead)
    path = options.output / f"compare-batches-llama-cpp-{options.model.stem}.json"
    write_result(path, result)
    print(f"written to {path}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUNDLED_MODEL, help="a GGUF file (default: the bundled one)")
    parser.add_argument("--llama-bin", type=Path, help="the folder of llama-batched-bench")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=sizes_of, default=list(BATCHES), help="sizes, like 1,2,8")
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--output", type=Path, default=REPO / "benchmarks" / "results", help="folder of the JSON file")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def sizes_of(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def reason_to_skip(llama_bin: Path | None) -> str | None:
    if llama_bin is None:
        return "no --llama-bin was given"
    return None if (llama_bin / "llama-batched-bench").is_file() else "llama-batched-bench is not in --llama-bin"


def measure_tandem(options: argparse.Namespace, sizes: list[int]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--worker", "--model", str(options.model), "--threads", str(options.threads)]
    command += ["--batch", ",".join(map(str, sizes)), "--prompt-tokens", str(options.prompt_tokens)]
    measured: dict[str, Any] = json.loads(run([*command, "--new-tokens", str(options.new_tokens)]))
    return measured


def measure_in_process(options: argparse.Namespace) -> dict[str, Any]:
    """One round of an engine in a process of its own."""
    workload = Workload(
        kinds=("decode",),
        batches=tuple(options.batch),
        depths=(options.prompt_tokens - 1,),
        prompt_tokens=options.prompt_tokens,
        new_tokens=options.new_tokens,
        rounds=1,
        rows=max(256, 2 * max(options.batch)),
    )
    checkpoint = open_checkpoint(options.model)
    with open_subject(checkpoint, workload.engine_config(model_spec(checkpoint), threads=options.threads)) as subject:
        return run_throughput(subject, workload)


def measure_llama(options: argparse.Namespace, sizes: list[int]) -> dict[int, float]:
    # Its context is shared out evenly, in portions that are multiples of 256.
    portion = -(-(options.prompt_tokens + options.new_tokens) // 256) * 256
    command = [str(options.llama_bin / "llama-batched-bench"), "-m", str(options.model), "-t", str(options.threads)]
    command += ["-c", str(portion * max(sizes)), "-npp", str(options.prompt_tokens), "-ntg", str(options.new_tokens)]
    lines = run([*command, "-npl", ",".join(map(str, sizes)), "--output-format", "jsonl"]).splitlines()
    tests = [json.loads(line) for line in lines if line.startswith("{")]
    return {test["pl"]: test["speed_tg"] for test in tests}


def checks(relative: dict[int, float], overhead: dict[int, Summary]) -> dict[str, dict[str, Any]]:
    """By what is demanded: whether it holds, and the figures. A check whose batch sizes were not measured is absent."""
    found: dict[str, dict[str, Any]] = {}
    if relative:
        dips = {batch: round(share, 3) for batch, share in relative.items() if share < LEAST_OF_SMALLER}
        demand = f"each batch at least {LEAST_OF_SMALLER} x the best of all smaller"
        found[demand] = {"passed": not dips, "least": round(min(relative.values()), 3), "dips": dips}
    if OVERHEAD_BATCH in overhead:
        median = overhead[OVERHEAD_BATCH].median
        demand = f"overhead under {MOST_OVERHEAD:.0%} at {OVERHEAD_BATCH} sequences"
        found[demand] = {"passed": median < MOST_OVERHEAD, "overhead": round(median, 4)}
    return found


def command_line(options: argparse.Namespace) -> str:
    """The command that measures this again; folders outside the repository are left to the reader."""
    command = ["python", "benchmarks/compare_batches_llama_cpp.py"]
    command += [] if options.model == BUNDLED_MODEL else ["--model", options.model.name]
    command += ["--llama-bin", "DIR"] if options.llama_bin else []
    command += ["--batch", ",".join(map(str, options.batch))]
    for name in ("threads", "rounds", "prompt_tokens", "new_tokens"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    return shlex.join(command)


def show(result: dict[str, Any], summaries: dict[str, dict[int, Summary]], overhead: dict[int, Summary]) -> None:
    sides = list(summaries)
    lines = [["batch"]]
    for side in sides:
        lines[0] += [f"{side} tokens/s", "of smaller"]
    lines[0] += ["overhead"] + (["tandem / llama.cpp"] if len(sides) > 1 else [])
    for batch in sorted(overhead):
        line = [str(batch)]
        for side in sides:
            share = result["of_best_smaller"][side].get(batch)
            line += [str(summaries[side][batch]), "" if share is None else f"{share:.2f} x"]
        line.append(f"{overhead[batch].median:.1%}")
        if len(sides) > 1:
            line.append(f"{summaries[TANDEM][batch].median / summaries[LLAMA][batch].median:.2f} x")
        lines.append(line)
    print(f"\n{header_lines(result)}\n\n{columns(lines)}\n")
    for side, reason in result["skipped"].items():
        print(f"{side} was not measured: {reason}")
    for demand, found in result["checks"].items():
        figures = ", ".join(f"{name} {value}" for name, value in found.items() if name != "passed")
        print(f"{'PASS' if found['passed'] else 'FAIL'}: {demand} ({figures})")


if __name__ == "__main__":
    main()
