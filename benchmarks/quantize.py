"""`tandem quantize` against llama.cpp's `llama-quantize`: seconds, and the memory that the process takes of its own.

    python benchmarks/quantize.py make gemma3-4b-q4_0.gguf source.gguf --layers 4 --rows 32768
    python benchmarks/quantize.py speed source.gguf --llama-quantize llama-quantize --out results/quantize-speed.json
    python benchmarks/quantize.py memory 6.gguf 12.gguf --out results/quantize-memory.json
    python benchmarks/quantize.py recipes FOLDER --types q8_0 tandem q4_k_m q4_0 --text tests/data/held_out_tales.txt

`make` writes random bf16 weights in the shapes of another GGUF file. The two programs take turns; each writes the same
types, and files of the same size. Tandem's time includes syncing the file to the disk and its checksum, which
llama-quantize does not do.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tandem._native import Scorer
from tandem.bench.perplexity import cut_windows
from tandem.bench.report import Summary, run_header, write_result
from tandem.bench.validate import Reading, distance, read_windows
from tandem.devices.cpu.threads import default_threads
from tandem.engine.build import EngineConfig
from tandem.engine.sampling_params import SamplingParams
from tandem.llm import LLM
from tandem.models.quantize import quantize_model
from tandem.models.recipes import named_recipe
from tandem.weights.gguf import read_gguf, read_stored_metadata
from tandem.weights.gguf_writer import TensorStream, write_gguf
from tandem.weights.open import open_checkpoint
from tandem.weights.quantize import quantize
from tandem.weights.tensor import TensorType

REPO = Path(__file__).resolve().parents[1]
TYPES = ("q4_0", "q4_k_m", "q8_0")
POLL_SECONDS = 0.01


def make(template: Path, target: Path, layers: int, rows: int) -> None:
    """The first `layers` layers of the template's shapes as bf16; of the embedding, at most `rows` rows."""
    pool = quantize("pool", np.random.default_rng(0).normal(0, 0.02, 1 << 24).astype(np.float32), TensorType.BF16).data

    def strips(size: int) -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
        for start in range(0, size, pool.nbytes):
            yield pool[: min(pool.nbytes, size - start)]

    stored = read_stored_metadata(template)
    metadata: dict[str, Any] = {key: value for key, value in stored.items() if not key.startswith("tokenizer.")}
    architecture = read_gguf(template).metadata["general.architecture"]
    metadata[f"{architecture}.block_count"] = layers
    streams = []
    for tensor in read_gguf(template).tensors.values():
        number = re.match(r"blk\.(\d+)\.", tensor.name)
        if number and int(number[1]) >= layers:
            continue
        vector = len(tensor.shape) == 1
        shape = (min(tensor.shape[0], rows), *tensor.shape[1:]) if tensor.name == "token_embd.weight" else tensor.shape
        type = TensorType.F32 if vector else TensorType.BF16
        size = int(np.prod(shape)) * type.block_bytes
        source = (lambda n=shape[0]: [np.ones(n, np.float32).view(np.uint8)]) if vector else partial(strips, size)
        streams.append(TensorStream(tensor.name, type, shape, source))
    write_gguf(target, metadata, streams)


def measured(command: list[str]) -> dict[str, float]:
    """Wall seconds, and the largest anonymous and whole resident memory seen in /proc, in bytes."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    # llama-quantize tells much: read, or it would wait.
    errors: list[bytes] = []
    reader = threading.Thread(target=lambda: errors.append(process.stderr.read()))  # type: ignore[union-attr]
    reader.start()
    most = {"RssAnon": 0, "VmRSS": 0}
    while process.poll() is None:
        try:
            memory = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        for key in most:
            if found := re.search(rf"^{key}:\s+(\d+) kB", memory, re.MULTILINE):
                most[key] = max(most[key], int(found[1]) * 1024)
        time.sleep(POLL_SECONDS)
    status = process.wait()
    reader.join()
    if status:
        raise SystemExit(f"{' '.join(command)} ended with {status}: {errors[0][-1000:].decode(errors='replace')}")
    return {
        "seconds": time.perf_counter() - start,
        "anonymous_bytes": most["RssAnon"],
        "resident_bytes": most["VmRSS"],
    }


def tandem(source: Path, target: Path, type: str, threads: int) -> list[str]:
    program = "from tandem.cli import main; main()"
    options = ["--type", type, "--threads", str(threads), "--force"]
    return [sys.executable, "-c", program, "quantize", str(source), str(target), *options]


def speed(source: Path, llama: str, types: list[str], repeats: int, threads: int, scratch: Path) -> dict[str, Any]:
    result: dict[str, Any] = {"source_bytes": source.stat().st_size, "threads": threads}
    for type in types:
        ours, theirs = scratch / "tandem.gguf", scratch / "llama.gguf"
        runs: dict[str, list[dict[str, float]]] = {"tandem": [], "llama_quantize": []}
        for _ in range(repeats):
            runs["tandem"].append(measured(tandem(source, ours, type, threads)))
            runs["llama_quantize"].append(measured([llama, str(source), str(theirs), type.upper(), str(threads)]))
        if ours.stat().st_size != theirs.stat().st_size:
            raise SystemExit(f"{type}: the files differ in size; the programs chose other types")
        result[type] = {
            name: {
                "seconds": Summary.of([run["seconds"] for run in done]).to_json(),
                "anonymous_bytes": max(run["anonymous_bytes"] for run in done),
            }
            for name, done in runs.items()
        }
        result[type]["file_bytes"] = ours.stat().st_size
        best = {name: result[type][name]["seconds"]["low"] for name in runs}
        print(f"{type}: {best['tandem']:.1f} s, llama-quantize {best['llama_quantize']:.1f} s", flush=True)
    return result


def memory(sources: list[Path], type: str, threads: int, scratch: Path) -> dict[str, Any]:
    result: dict[str, Any] = {"type": type, "threads": threads, "files": []}
    for source in sources:
        run = measured(tandem(source, scratch / "tandem.gguf", type, threads))
        result["files"].append({"source": source.name, "source_bytes": source.stat().st_size} | run)
        print(f"{source.name}: {run['anonymous_bytes'] / 2**20:.0f} MiB anonymous, {run['seconds']:.1f} s", flush=True)
    return result


def recipes(
    model: Path, start: Path | None, types: list[str], text: Path, window: int, repeats: int, scratch: Path
) -> dict[str, Any]:
    """Size, perplexity, distance from the unquantized weights and decode speed of one sequence, by recipe."""
    result: dict[str, Any] = {"model": model.name, "text": text.name, "window": window, "recipes": {}}
    source, words = open_checkpoint(model), text.read_text(encoding="utf-8")
    files = {"unquantized": model} | {type: scratch / f"{type}.gguf" for type in types}
    for type in types:
        quantize_model(open_checkpoint(start) if start else source, files[type], named_recipe(type))
    speeds: dict[str, list[float]] = {type: [] for type in files}
    params = SamplingParams(temperature=0, max_tokens=128, ignore_eos=True)
    for _ in range(repeats):
        for type, path in files.items():
            with LLM(path, max_sequences=1) as llm:
                began = time.perf_counter()
                llm.generate("Once", params)
                speeds[type].append(128 / (time.perf_counter() - began))
    config, scorer = EngineConfig(), Scorer(default_threads())
    windows = cut_windows(source, words, window)
    whole: Reading | None = None
    for type, path in files.items():
        found = read_windows(open_checkpoint(path), config, windows, scorer, together=4)
        whole = whole or found
        kl, top1 = distance(whole, found, scorer)
        size = sum(tensor.nbytes for tensor in source.tensors.values()) if path == model else path.stat().st_size
        facts = {"bytes": size, "perplexity": found.perplexity, "kl": kl, "top1": top1}
        result["recipes"][type] = facts | {"tokens_per_second": Summary.of(speeds[type]).to_json()}
        print(type, facts, Summary.of(speeds[type]), flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make")
    making.add_argument("template", type=Path)
    making.add_argument("target", type=Path)
    making.add_argument("--layers", type=int, required=True)
    making.add_argument("--rows", type=int, default=1 << 30, help="of the embedding")
    for name in ("speed", "memory"):
        command = commands.add_parser(name)
        command.add_argument("sources", type=Path, nargs="+" if name == "memory" else 1)
        command.add_argument("--types", nargs="+", default=list(TYPES) if name == "speed" else ["q4_0"])
        command.add_argument("--threads", type=int, default=2)
        command.add_argument("--scratch", type=Path, help="where the results are written and removed")
        command.add_argument("--out", type=Path, help="a JSON file for the result")
        if name == "speed":
            command.add_argument("--llama-quantize", required=True)
            command.add_argument("--repeats", type=int, default=2)
    table = commands.add_parser("recipes")
    table.add_argument("model", type=Path, help="a folder with unquantized weights")
    table.add_argument("--source", type=Path, help="a GGUF file to quantize instead of the folder")
    table.add_argument("--types", nargs="+", required=True)
    table.add_argument("--text", type=Path, required=True)
    table.add_argument("--window", type=int, default=256)
    table.add_argument("--repeats", type=int, default=3)
    table.add_argument("--scratch", type=Path)
    table.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.command == "make":
        make(options.template, options.target, options.layers, options.rows)
        return
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        if options.command == "speed":
            result = speed(
                options.sources[0],
                options.llama_quantize,
                options.types,
                options.repeats,
                options.threads,
                Path(scratch),
            )
        elif options.command == "recipes":
            result = recipes(
                options.model,
                options.source,
                options.types,
                options.text,
                options.window,
                options.repeats,
                Path(scratch),
            )
        else:
            result = memory(options.sources, options.types[0], options.threads, Path(scratch))
    if options.out:
        arguments = " ".join(Path(word).name if word.startswith("/") else word for word in sys.argv[1:])
        write_result(options.out, run_header(REPO, f"benchmarks/quantize.py {arguments}") | result)


if __name__ == "__main__":
    main()
