#!/usr/bin/env python3
"""Tandem beside llama.cpp on the same file, with the same threads, in turns in one run.

    python benchmarks/compare_llama_cpp.py [--model FILE.gguf …] [--llama-bin DIR] [--threads N]

Cold start is from the start of the process to the first byte of text on stdout (`tandem run` and `llama-completion
--no-warmup`), page cache warm. Prefill is a prompt of random tokens until the first token; decode is greedy, from a
prompt of one token. For llama.cpp both come from `llama-bench`, which does not sample; Tandem's figures include
sampling and the whole engine. Every round starts fresh processes, and the side that goes first changes each round.
What is not given or not there is skipped, and the output says so.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tandem.bench.machine import describe_machine, measure_read_bandwidth
from tandem.bench.report import Summary, run_header, write_result
from tandem.bench.subject import step_weight_bytes
from tandem.engine.sampling_params import SamplingParams
from tandem.llm import BUNDLED_MODEL, LLM
from tandem.models.open import model_spec
from tandem.weights.open import open_checkpoint

REPO = Path(__file__).resolve().parent.parent
PROMPT = "Once upon a time there was a fox who lived at the edge of the forest."
COLD, PREFILL, DECODE = "cold_start_s", "prefill_tokens_per_s", "decode_tokens_per_s"
# A user's installation has its bytecode; a machine that forbids writing it would compile Tandem at each start.
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}


def main() -> None:
    options = parse_arguments()
    if options.worker:
        print(json.dumps(measure_in_process(options.model[0], options)))
        return
    for model in options.model or [BUNDLED_MODEL]:
        compare(model, options)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, action="append", help="a GGUF file; repeatable (default: the bundled one)"
    )
    parser.add_argument("--llama-bin", type=Path, help="the folder of llama-bench and llama-completion")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--output", type=Path, default=REPO / "benchmarks" / "results", help="folder of the JSON files")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def compare(model: Path, options: argparse.Namespace) -> None:
    sides: dict[str, Any] = {"tandem": measure_tandem}
    missing = [name for name in ("llama-bench", "llama-completion") if not llama(options, name).is_file()]
    skipped = None
    if options.llama_bin is None:
        skipped = "no --llama-bin was given"
    elif missing:
        skipped = f"{' and '.join(missing)} not found in --llama-bin"
    else:
        sides["llama.cpp"] = measure_llama
    about: dict[str, str] = {}
    header = run_header(REPO, command_line(model, options))
    samples: dict[str, dict[str, list[float]]] = {side: {COLD: [], PREFILL: [], DECODE: []} for side in sides}
    checkpoint = open_checkpoint(model)
    weights = step_weight_bytes(model_spec(checkpoint), checkpoint)
    bandwidth: list[float] = []
    for turn in range(options.rounds + 1):
        bandwidth.append(measure_read_bandwidth(weights, options.threads))
        for side in sorted(sides, reverse=turn % 2 == 1):
            measured, about[side] = sides[side](model, options)
            if turn:  # the first one fills the page cache and the bytecode cache
                for quantity, value in measured.items():
                    samples[side][quantity].append(value)
        print(f"\r{model.name}: round {turn} of {options.rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    result = {
        **header,
        "sides": about,
        "model": {"file": model.name, "bytes": model.stat().st_size, "weight_bytes_per_token": weights},
        "threads": options.threads,
        "prompt_tokens": options.prompt_tokens,
        "new_tokens": options.new_tokens,
        "read_bandwidth_bytes_per_s": Summary.of(bandwidth).to_json(),
        "skipped": {} if skipped is None else {"llama.cpp": skipped},
        "results": {
            side: {quantity: Summary.of(values).to_json() for quantity, values in quantities.items()}
            for side, quantities in samples.items()
        },
    }
    show(result, samples, skipped)
    path = options.output / f"compare-llama-cpp-{model.stem}.json"
    write_result(path, result)
    print(f"written to {path}\n")


def measure_tandem(model: Path, options: argparse.Namespace) -> tuple[dict[str, float], str]:
    start = [sys.executable, "-c", "from tandem.cli import main; main()", "run", "-m", str(model), PROMPT]
    cold = first_byte([*start, "--threads", str(options.threads), "--max-tokens", "8", "--temperature", "0"])
    worker = [sys.executable, __file__, "--worker", "--model", str(model), "--threads", str(options.threads)]
    sizes = ["--prompt-tokens", str(options.prompt_tokens), "--new-tokens", str(options.new_tokens)]
    measured = json.loads(run([*worker, *sizes]))
    return {COLD: cold, PREFILL: measured[PREFILL], DECODE: measured[DECODE]}, measured["devices"]


def measure_in_process(model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Prefill and decode of a loaded engine, in a process of their own; one run of each before the one that counts."""
    context = options.prompt_tokens + options.new_tokens
    with LLM(model, threads=options.threads, max_sequences=1, context=context, prefix_cache=False) as llm:
        draw = random.Random(0)
        prompt = [draw.randrange(llm.spec.vocab) for _ in range(options.prompt_tokens)]
        for _ in range(2):
            start = time.perf_counter()
            times = chunk_times(llm, prompt, 1)
            prefill = len(prompt) / (times[0] - start)
            times = chunk_times(llm, prompt[:1], options.new_tokens)
            decode = (len(times) - 1) / (times[-1] - times[0])
        return {PREFILL: prefill, DECODE: decode, "devices": "; ".join(device.description for device in llm.devices)}


def chunk_times(llm: LLM, prompt: list[int], tokens: int) -> list[float]:
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    return [time.perf_counter() for _ in llm.stream(prompt, params)]


def measure_llama(model: Path, options: argparse.Namespace) -> tuple[dict[str, float], str]:
    threads = ["-t", str(options.threads)]
    start = [str(llama(options, "llama-completion")), "-m", str(model), *threads, "-p", PROMPT, "-n", "8"]
    cold = first_byte([*start, "--temp", "0", "-no-cnv", "--no-warmup", "--no-display-prompt"])
    bench = [str(llama(options, "llama-bench")), "-m", str(model), *threads, "-r", "1", "-o", "json"]
    tests = json.loads(run([*bench, "-p", str(options.prompt_tokens), "-n", str(options.new_tokens)]))
    by_kind = {PREFILL if test["n_prompt"] else DECODE: test["avg_ts"] for test in tests}
    return {COLD: cold, **by_kind}, f"build {tests[0]['build_number']}, commit {tests[0]['build_commit']}"


def llama(options: argparse.Namespace, name: str) -> Path:
    return (options.llama_bin or Path()) / name


def first_byte(command: list[str]) -> float:
    """Seconds from the start of a process to its first byte on stdout."""
    start = time.perf_counter()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        byte = os.read(process.stdout.fileno(), 1)
        seconds = time.perf_counter() - start
        _, errors = process.communicate()
    if process.returncode != 0 or not byte:
        raise SystemExit(f"{shlex.join(command)} failed:\n{errors.decode(errors='replace')[-2000:]}")
    return seconds


def run(command: list[str]) -> str:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=ENVIRONMENT)
    if done.returncode != 0:
        raise SystemExit(f"{shlex.join(command)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def command_line(model: Path, options: argparse.Namespace) -> str:
    """The command that measures this model again; folders outside the repository are left to the reader."""
    command = ["python", "benchmarks/compare_llama_cpp.py"]
    command += [] if model == BUNDLED_MODEL else ["--model", model.name]
    command += ["--llama-bin", "DIR"] if options.llama_bin else []
    for name in ("threads", "rounds", "prompt_tokens", "new_tokens"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    return shlex.join(command)


def show(result: dict[str, Any], samples: dict[str, dict[str, list[float]]], skipped: str | None) -> None:
    bandwidth, weights = result["read_bandwidth_bytes_per_s"]["median"], result["model"]["weight_bytes_per_token"]
    print(f"\n{result['model']['file']}, {result['model']['bytes'] / 1e6:,.1f} MB, {result['threads']} threads")
    print(f"{describe_machine()}\n{result['command']}\ncommit {result['commit']}")
    for side, about in result["sides"].items():
        print(f"{side}: {about}")
    if result["load_average"] > 0.5:
        print(f"the machine was busy when this began (load average {result['load_average']:.1f}): repeat it in peace")
    labels = {
        COLD: "cold start, s",
        PREFILL: f"prefill of {result['prompt_tokens']}, tokens/s",
        DECODE: f"decode of {result['new_tokens']}, tokens/s",
    }
    print(
        f"{'median (lowest to highest)':30}"
        + "".join(f"{side:>36}" for side in samples)
        + "    first / second" * (len(samples) == 2)
    )
    for quantity, label in labels.items():
        summaries = [Summary.of(quantities[quantity]) for quantities in samples.values()]
        line = f"{label:30}" + "".join(f"{summary!s:>36}" for summary in summaries)
        print(line + (f"{summaries[0].median / summaries[1].median:>18.2f}" if len(summaries) == 2 else ""))
    shares = [Summary.of(quantities[DECODE]).median * weights / bandwidth for quantities in samples.values()]
    print(f"{'decode / read bandwidth':30}" + "".join(f"{share:>36.1%}" for share in shares))
    print(f"read bandwidth of {weights / 1e6:,.1f} MB, again and again: {bandwidth / 1e9:.1f} GB/s")
    if skipped is not None:
        print(f"llama.cpp was not measured: {skipped}")


if __name__ == "__main__":
    main()
