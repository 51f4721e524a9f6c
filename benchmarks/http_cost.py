#!/usr/bin/env python3
"""What HTTP costs: the same load on the offline API, on `tandem serve` and on llama-server, in turns in one run.

    python benchmarks/http_cost.py --model FILE.gguf [--llama-bin DIR] [--streams 32] [--new-tokens 64] [--rounds 3]

Every turn is a fresh process. The client is `tandem bench serve`, a closed loop of --streams requests that are sent at
once and streamed; server CPU is that of the HTTP process alone (the engine is a process of its own), read from /proc
around the load. llama-server computes in the process that serves, so its CPU cannot be told apart.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tandem.bench.report import columns, run_header, write_result
from tandem.llm import BUNDLED_MODEL

REPO = Path(__file__).resolve().parent.parent
CLI = [sys.executable, "-c", "from tandem.cli import main; main()"]
READY_S = 300
# Requests that nobody counts, before a server's turn.
WARM = 4


def main() -> None:
    args = parse_arguments()
    if args.offline_worker:
        print(json.dumps({"new_tokens_per_s": offline(args)}))
        return
    result: dict[str, Any] = {**run_header(REPO, command_line(args)), "turns": []}
    subjects = ["offline", "tandem serve", *(["llama-server"] if args.llama_bin else [])]
    for turn in range(args.rounds):
        for subject in subjects[::-1] if turn % 2 else subjects:
            measured = measure_offline() if subject == "offline" else measure_server(subject, args)
            result["turns"].append({"round": turn, "subject": subject, **measured})
            print(json.dumps(result["turns"][-1]), file=sys.stderr, flush=True)
    result["medians"] = medians(result["turns"], subjects)
    write_result(args.output / f"http-cost-{args.model.stem}.json", result)
    print(table(result["medians"]))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUNDLED_MODEL)
    parser.add_argument("--llama-bin", type=Path, help="a folder with llama.cpp's llama-server")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--output", type=Path, default=REPO / "benchmarks" / "results", help="folder of the JSON file")
    parser.add_argument("--offline-worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def context(args: argparse.Namespace) -> int:
    # Chat templates and words that are several tokens need more than was asked for.
    return 2 * args.prompt_tokens + args.new_tokens + 64


def offline(args: argparse.Namespace) -> float:
    """New tokens per second of the same batch through LLM, prompts included."""
    from tandem import LLM, SamplingParams

    draw = random.Random(0)
    with LLM(args.model, threads=args.threads, max_sequences=args.streams, context=context(args)) as llm:
        prompts = [[draw.randrange(10, 1000) for _ in range(args.prompt_tokens)] for _ in range(args.streams)]
        llm.generate(prompts, SamplingParams(temperature=1, max_tokens=4, ignore_eos=True))
        start = time.perf_counter()
        llm.generate(prompts[::-1], SamplingParams(temperature=1, max_tokens=args.new_tokens, ignore_eos=True))
        return args.streams * args.new_tokens / (time.perf_counter() - start)


def measure_offline() -> dict[str, Any]:
    worker = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--offline-worker"]
    return dict(json.loads(subprocess.run(worker, check=True, capture_output=True, text=True).stdout))


def measure_server(subject: str, args: argparse.Namespace) -> dict[str, Any]:
    port = free_port()
    if subject == "llama-server":
        command = [
            str(args.llama_bin / "llama-server"), "-m", str(args.model), "-t", str(args.threads), "-fa", "on",
            "-np", str(args.streams), "-c", str(args.streams * context(args)), "--port", str(port),
        ]  # fmt: skip
    else:
        command = [
            *CLI, "serve", str(args.model), "--port", str(port), "--threads", str(args.threads), "--context",
            str(context(args)), "--max-sequences", str(args.streams), "--log-level", "error",
        ]  # fmt: skip
    with running(command, port) as process:
        load(port, args, WARM, 4)
        before = cpu_seconds(process.pid)
        seen = load(port, args, args.streams, args.new_tokens)
        spent = cpu_seconds(process.pid) - before
    if seen["completed"] != args.streams:
        raise SystemExit(f"{subject}: {seen['failures']} {seen['failure_examples']}")
    measured = {key: seen[key] for key in ("new_tokens", "new_tokens_per_s", "client_cpu_us_per_token")}
    if subject != "llama-server":
        measured["server_cpu_us_per_token"] = 1e6 * spent / seen["new_tokens"]
    return measured | {"ttft_p50_s": seen["ttft_s"]["p50"], "itl_p50_s": seen["itl_s"]["p50"]}


def load(port: int, args: argparse.Namespace, requests: int, new: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "load.json"
        command = [
            *CLI, "bench", "serve", "--url", f"http://127.0.0.1:{port}", "--api", "completions", "--concurrency",
            str(args.streams), "--requests", str(requests), "--prompt-tokens", str(args.prompt_tokens), "--new-tokens",
            str(new), "--ignore-eos", "--json", str(path),
        ]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return dict(json.loads(path.read_text())["serve"])


@contextmanager
def running(command: list[str], port: int) -> Any:
    """A server that is ready; killed at the end."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        begin = time.monotonic()
        ready = f"http://127.0.0.1:{port}/{'ready' if command[0] == sys.executable else 'health'}"
        while True:
            if process.poll() is not None or time.monotonic() - begin > READY_S:
                raise SystemExit(f"the server is not ready: {shlex.join(command)}")
            with suppress(OSError), urllib.request.urlopen(ready, timeout=5):
                break
            time.sleep(0.2)
        yield process
    finally:
        process.terminate()
        process.wait(60)


def cpu_seconds(pid: int) -> float:
    """Of one process, its children not counted."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def medians(turns: list[dict[str, Any]], subjects: list[str]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for subject in subjects:
        mine = [turn for turn in turns if turn["subject"] == subject]
        keys = [key for key in mine[0] if key not in ("round", "subject", "new_tokens")]
        found[subject] = {key: statistics.median(turn[key] for turn in mine) for key in keys}
        rates = {turn["round"]: turn["new_tokens_per_s"] for turn in turns if turn["subject"] == "offline"}
        found[subject]["of_offline"] = statistics.median(
            turn["new_tokens_per_s"] / rates[turn["round"]] for turn in mine
        )
    return found


def table(found: dict[str, dict[str, float]]) -> str:
    keys = {
        "new_tokens_per_s": "tokens/s", "of_offline": "of offline", "server_cpu_us_per_token": "server us/token",
        "client_cpu_us_per_token": "client us/token", "ttft_p50_s": "TTFT p50 s", "itl_p50_s": "ITL p50 s",
    }  # fmt: skip
    rows = [["", *keys.values()]]
    rows += [[name, *(f"{row[key]:.3g}" if key in row else "" for key in keys)] for name, row in found.items()]
    return columns(rows)


def command_line(args: argparse.Namespace) -> str:
    command = ["python", "benchmarks/http_cost.py", "--model", args.model.name]
    command += ["--llama-bin", "DIR"] if args.llama_bin else []
    for name in ("streams", "prompt_tokens", "new_tokens", "rounds", "threads"):
        command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    return shlex.join(command)


if __name__ == "__main__":
    main()
