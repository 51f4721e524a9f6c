"""The engines that compare_engines.py measures: each in processes of its own, the same work for all.

A turn measures prefill of one prompt of random tokens, and decode of B sequences: each has a prompt of its own, then
gets `new` tokens. Keys and values are float16, flash attention is on.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Of a step of Tandem, at least.
ROWS = 512
PROMPT = "Once upon a time there was a fox who lived at the edge of the forest."
# A user's installation has its bytecode; a machine that forbids writing it would compile Tandem at each start.
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}


@dataclass(frozen=True)
class Work:
    """What one turn measures. prefill: tokens of the prompt, 0 for none, and repeats, of which the median counts.

    batches: sizes to decode. cold: the start too.

    prompt, new: tokens of each decoding sequence, before and measured. vocab: of the model. copied: of an engine that
    can, only one prompt is computed, and each other sequence has a copy of its keys and values, or shares them.
    """

    threads: int
    prefill: int
    batches: tuple[int, ...]
    prompt: int
    new: int
    vocab: int
    cold: bool = False
    repeats: int = 1
    copied: bool = False


@dataclass(frozen=True)
class Turn:
    """rates: tokens per second of "prefill" and "decode B", seconds of "cold". about: the engine, in words.

    overhead: Tandem's share of time between native calls, by batch size.
    """

    rates: dict[str, float]
    about: str
    overhead: dict[str, float]


class EngineError(Exception):
    """An engine that cannot do this model, or failed; the message says what it printed last."""


class Tandem:
    name = "tandem"
    missing = None

    def measure(self, model: Path, work: Work) -> Turn:
        worker = [sys.executable, str(Path(__file__).resolve()), str(model), json.dumps(asdict(work))]
        measured = json.loads(run(worker))
        if work.cold:
            start = [sys.executable, "-c", "from tandem.cli import main; main()", "run", "-m", str(model), PROMPT]
            start += ["--threads", str(work.threads), "--max-tokens", "8", "--temperature", "0"]
            measured["rates"]["cold"] = first_byte(start)
        return Turn(**measured)


class LlamaCpp:
    name = "llama.cpp"
    option = "--llama-bin"
    bench = ("-fa", "on")
    batched = ("-fa", "on")
    starts = True
    one_cache = False

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder or Path()
        absent = [name for name in self._programs() if not (self._folder / name).is_file()]
        self.missing = f"no {self.option} was given" if folder is None else None
        if folder is not None and absent:
            self.missing = f"{' and '.join(absent)} not found in {self.option}"

    def _programs(self) -> list[str]:
        return ["llama-bench", "llama-batched-bench", *(["llama-completion"] if self.starts else [])]

    def measure(self, model: Path, work: Work) -> Turn:
        rates: dict[str, float] = {}
        about = ""
        common = ["-m", str(model.resolve()), "-t", str(work.threads)]
        if work.prefill:
            sizes = ["-p", str(work.prefill), "-n", "0", "-r", str(work.repeats), "-o", "json"]
            (test,) = json.loads(run([str(self._folder / "llama-bench"), *common, *self.bench, *sizes]))
            if (test["n_prompt"], test["n_threads"], test["type_k"]) != (work.prefill, work.threads, "f16"):
                raise EngineError(f"{self.name} measured something else than it was asked for")
            rates["prefill"] = statistics.median(test["samples_ts"])
            about = f"build {test['build_number']}, commit {test['build_commit']}"
        if work.batches:
            sizes = ["-npp", str(work.prompt), "-ntg", str(work.new), "-npl", ",".join(map(str, work.batches))]
            if work.copied:
                if self.one_cache:
                    raise EngineError(
                        "all sequences have one cache here: a prompt that they share would be read once for all of "
                        "them, and computing each takes too long"
                    )
                sizes.append("-pps")
            command = [str(self._folder / "llama-batched-bench"), *common, *self.batched, *sizes]
            found = self.decode_rates([*command, "-c", str(self.context(work))], work)
            if found.keys() != set(work.batches):
                raise EngineError(f"{self.name} decoded batches of {sorted(found)}, not of {list(work.batches)}")
            rates |= {f"decode {batch}": rate for batch, rate in found.items()}
        if work.cold and self.starts:
            start = [str(self._folder / "llama-completion"), *common, "-p", PROMPT, "-n", "8", "--temp", "0"]
            rates["cold"] = first_byte([*start, "-no-cnv", "--no-warmup", "--no-display-prompt"])
        return Turn(rates, about, {})

    def context(self, work: Work) -> int:
        # Shared out evenly among the sequences, in portions that are multiples of 256.
        return -(-(work.prompt + work.new) // 256) * 256 * max(work.batches)

    def decode_rates(self, command: list[str], work: Work) -> dict[int, float]:
        lines = run([*command, "--output-format", "jsonl"]).splitlines()
        tests = [json.loads(line) for line in lines if line.startswith("{")]
        return {test["pl"]: test["speed_tg"] for test in tests if (test["pp"], test["tg"]) == (work.prompt, work.new)}


class IkLlamaCpp(LlamaCpp):
    name = "ik_llama.cpp"
    option = "--ik-bin"
    bench = ("-fa", "1", "-rtr", "1")
    batched = ("-fa", "on", "-rtr")
    starts = False
    one_cache = True

    def context(self, work: Work) -> int:
        # One cache for all sequences.
        return -(-(work.prompt + work.new) * max(work.batches) // 256) * 256

    def decode_rates(self, command: list[str], work: Work) -> dict[int, float]:
        row = re.compile(rf"\| +{work.prompt} \| +{work.new} \| +(\d+) \|(?:[^|]*\|){{4}} +([\d.]+) \|")
        return {int(batch): float(rate) for batch, rate in row.findall(run(command, errors=True))}


class OpenVino:
    name = "openvino"

    def __init__(self, python: Path | None) -> None:
        self._python = python
        self.missing = "no --openvino-python was given" if python is None else None
        if python is not None and not python.is_file():
            self.missing = "--openvino-python is not there"

    def measure(self, model: Path, work: Work) -> Turn:
        driver = Path(__file__).resolve().with_name("openvino_driver.py")
        measured = json.loads(
            run([str(self._python), str(driver), str(model), json.dumps(asdict(work))]).splitlines()[-1]
        )
        return Turn(**measured, overhead={})


def run(command: list[str], errors: bool = False) -> str:
    """stdout of a command, with stderr behind it if asked for. Runs in a folder of its own: some write logs."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=ENVIRONMENT, cwd=folder
        )
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise EngineError(f"{Path(command[0]).name} failed: {said[-300:]}")
    return done.stdout + (done.stderr if errors else "")


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
        raise EngineError(f"{shlex.join(command)} failed: {errors.decode(errors='replace')[-300:]}")
    return seconds


def measure_tandem(model: Path, work: Work) -> dict[str, Any]:
    """One turn of Tandem in this process: the whole engine, scheduler and sampler included."""
    from tandem.bench.subject import open_subject
    from tandem.bench.throughput import ThroughputBench, Workload
    from tandem.models.open import model_spec
    from tandem.weights.open import open_checkpoint

    checkpoint = open_checkpoint(model)
    depth = work.prompt - 1
    workload = Workload(
        batches=work.batches or (1,),
        depths=(depth,),
        prompt_tokens=work.prefill or ROWS,
        new_tokens=work.new,
        rounds=1,
        rows=max(ROWS, 2 * max(work.batches, default=1)),
    )
    config = workload.engine_config(model_spec(checkpoint), threads=work.threads)
    rates: dict[str, float] = {}
    overhead: dict[str, float] = {}
    with open_subject(checkpoint, config) as subject:
        bench = ThroughputBench(subject.engine, workload, copied=work.copied)
        if work.prefill:
            bench.measure("prefill", 1, 0)  # warm-up
            spans = [bench.measure("prefill", 1, 0) for _ in range(work.repeats)]
            rates["prefill"] = statistics.median(span.rows / span.seconds for span in spans)
        for batch in work.batches:
            span = bench.measure("decode", batch, depth)
            rates[f"decode {batch}"] = span.rows / span.seconds
            overhead[str(batch)] = span.overhead
        return {"rates": rates, "about": "; ".join(subject.devices), "overhead": overhead}


if __name__ == "__main__":
    print(json.dumps(measure_tandem(Path(sys.argv[1]), Work(**json.loads(sys.argv[2])))))
