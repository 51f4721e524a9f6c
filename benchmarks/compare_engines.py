#!/usr/bin/env python3
"""Tandem beside other engines on the same GGUF files, with the same threads, in turns in one run.

    python benchmarks/compare_engines.py --model FILE.gguf … [--llama-bin DIR] [--ik-bin DIR] [--openvino-python PYTHON]
    python benchmarks/compare_engines.py --table benchmarks/results/compare-engines-*.json

Every turn is a fresh process (llama.cpp's programs: one for prefill, one for decode); engines take turns, and the order
turns around every round. Prefill is one prompt of random tokens; decode is B sequences with prompts of --prompt-tokens
that get --new-tokens each. llama.cpp's tools do not sample; the figures of Tandem and OpenVINO include sampling, those
of Tandem the whole engine. Before each round and after the last the machine's ceilings are measured. --long measures
decode of 8 sequences at a long context instead; there llama.cpp and Tandem compute one prompt and copy what it left,
with OpenVINO all share its pages, and ik_llama.cpp, whose cache is one for all sequences, is left out.

The result is written after every turn; the same command with --resume goes on where it stopped. What is not given, not
there or refuses the model is left out, and the output says so. --table prints results as markdown, with what is
demanded of them.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from engines import EngineError, IkLlamaCpp, LlamaCpp, OpenVino, Tandem, Work
from ideal import CostModel
from report import evaluate, markdown, show
from tandem.bench.ceilings import Ceilings, measure_ceilings
from tandem.bench.report import run_header, write_result
from tandem.llm import BUNDLED_MODEL
from tandem.weights.open import open_checkpoint

REPO = Path(__file__).resolve().parent.parent
LONG_BATCH = 8


def main() -> None:
    options = parse_arguments()
    if options.table:
        print(markdown([json.loads(path.read_text()) for path in options.table]))
        return
    engines = [
        Tandem(), LlamaCpp(options.llama_bin), IkLlamaCpp(options.ik_bin), OpenVino(options.openvino_python)
    ]  # fmt: skip
    models = options.model or [BUNDLED_MODEL]
    costs = [CostModel(open_checkpoint(model)) for model in models]
    ceilings = measure_ceilings(options.threads)
    works = [work_of(options, cost) for cost in costs]
    present = sum(engine.missing is None for engine in engines)
    rough = sum(
        present * options.rounds * (model.stat().st_size / 1e9 + 4 * cost.turn_seconds(work, ceilings))
        for model, cost, work in zip(models, costs, works, strict=True)
    )
    print(f"{ceilings}\nabout {rough / 60:.0f} minutes, if engines reach a quarter of that", file=sys.stderr)
    for model, cost, work in zip(models, costs, works, strict=True):
        compare(model, cost, work, engines, options)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, nargs="+", help="GGUF files (default: the bundled one)")
    parser.add_argument("--llama-bin", type=absolute, help="llama.cpp's llama-bench, -batched-bench and -completion")
    parser.add_argument("--ik-bin", type=absolute, help="ik_llama.cpp's llama-bench and llama-batched-bench")
    parser.add_argument("--openvino-python", type=absolute, help="a Python that has openvino-genai")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--batch", type=sizes_of, default=(1, 2, 4, 8, 32), help="decode sizes, like 1,2,8; '' for none"
    )
    parser.add_argument("--prefill", type=int, default=512, help="tokens of the prompt; 0 for none")
    parser.add_argument("--repeats", type=int, default=3, help="prefills of one turn; their median is its figure")
    parser.add_argument("--prompt-tokens", type=int, default=16, help="before a sequence decodes")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--cold", action="store_true", help="also: process start to the first byte of text")
    parser.add_argument("--long", type=int, default=0, metavar="CONTEXT", help="only: decode 8 sequences this long")
    parser.add_argument("--output", type=Path, default=REPO / "benchmarks" / "results", help="folder of the JSON files")
    parser.add_argument("--resume", action="store_true", help="keep the turns that the JSON files already hold")
    parser.add_argument(
        "--table", type=Path, nargs="+", metavar="JSON", help="print results as markdown, measure nothing"
    )
    return parser.parse_args()


def absolute(text: str) -> Path:
    # Not resolved: an environment's interpreter is a link that must be called by its own name.
    return Path(text).absolute()


def sizes_of(text: str) -> tuple[int, ...]:
    return tuple(sorted({int(part) for part in text.split(",") if part}))


def work_of(options: argparse.Namespace, cost: CostModel) -> Work:
    if options.long:
        return Work(
            options.threads, 0, (LONG_BATCH,), options.long, options.new_tokens, cost.spec.vocab, copied=True
        )  # fmt: skip
    return Work(
        options.threads, options.prefill, options.batch, options.prompt_tokens, options.new_tokens, cost.spec.vocab,
        options.cold, options.repeats,
    )  # fmt: skip


def compare(model: Path, cost: CostModel, work: Work, engines: list[Any], options: argparse.Namespace) -> None:
    path = options.output / f"compare-engines-{model.stem}{'-long' if options.long else ''}.json"
    result = begin(path, model, cost, work, options)
    for engine in engines:
        if engine.missing is not None:
            result["skipped"][engine.name] = engine.missing
    taken = {(turn["round"], turn["engine"]) for turn in result["turns"]}
    for turn in range(options.rounds):
        due = [e for e in engines if e.name not in result["skipped"] and (turn, e.name) not in taken]
        if due:
            result["ceilings"].append(measure_ceilings(options.threads).to_json())
        for engine in due[::-1] if turn % 2 else due:
            # Sizes turn around as well: what a machine does gets slower as it gets hot.
            sizes = work.batches[::-1] if turn % 2 else work.batches
            load, start = os.getloadavg()[0], time.perf_counter()
            try:
                measured = asdict(engine.measure(model, replace(work, batches=sizes)))
            except EngineError as error:
                result["skipped"][engine.name] = (
                    str(error).replace(str(model.resolve().parent), "").replace(str(model), model.name)
                )
            else:
                seconds = time.perf_counter() - start
                entry = {"round": turn, "engine": engine.name, "load_average": load, "seconds": seconds}
                result["turns"].append({**entry, **measured})
            save(path, result, cost, work)
            print(f"\r\033[K{model.name}: round {turn + 1} of {options.rounds}, {engine.name}", end="", file=sys.stderr)
    if result["turns"]:
        result["ceilings"].append(measure_ceilings(options.threads).to_json())
    save(path, result, cost, work)
    print(f"\r\033[K{show(result)}\nwritten to {path}\n")


def begin(path: Path, model: Path, cost: CostModel, work: Work, options: argparse.Namespace) -> dict[str, Any]:
    """A new result, or with --resume the one that is there, if it is of the same work."""
    result: dict[str, Any] = {
        **run_header(REPO, command_line(model, options)),
        "model": {"file": model.name, "bytes": model.stat().st_size, **cost.to_json()},
        "work": json.loads(json.dumps(asdict(work))),
        "skipped": {},
        "ceilings": [],
        "turns": [],
    }
    if not options.resume or not path.is_file():
        return result
    kept: dict[str, Any] = json.loads(path.read_text())
    for what in ("model", "work", "commit"):
        if kept[what] != result[what]:
            raise SystemExit(f"{path} is of another {what} ({kept[what]}); leave --resume out, or move it away")
    return {**kept, "skipped": {}}


def save(path: Path, result: dict[str, Any], cost: CostModel, work: Work) -> None:
    result["engines"] = {turn["engine"]: turn["about"] for turn in result["turns"]}
    ceilings = [Ceilings(**measured) for measured in result["ceilings"]]
    result["cells"] = evaluate(result, cost, work, ceilings) if result["turns"] else {}
    write_result(path, result)


def command_line(model: Path, options: argparse.Namespace) -> str:
    """The command that measures this model again; folders outside the repository are left to the reader."""
    command = ["python", "benchmarks/compare_engines.py"]
    command += [] if model == BUNDLED_MODEL else ["--model", model.name]
    for option, given in (("--llama-bin", options.llama_bin), ("--ik-bin", options.ik_bin)):
        command += [option, "DIR"] if given else []
    command += ["--openvino-python", "PYTHON"] if options.openvino_python else []
    command += ["--threads", str(options.threads), "--rounds", str(options.rounds)]
    if options.long:
        return shlex.join([*command, "--long", str(options.long), "--new-tokens", str(options.new_tokens)])
    command += ["--batch", ",".join(map(str, options.batch)), "--prefill", str(options.prefill)]
    command += ["--repeats", str(options.repeats)]
    command += ["--prompt-tokens", str(options.prompt_tokens), "--new-tokens", str(options.new_tokens)]
    return shlex.join([*command, *(["--cold"] if options.cold else [])])


if __name__ == "__main__":
    main()
