"""From a process's start to a model's first token: with nothing kept, and with what the process before has kept.

    python benchmarks/warm_start.py [--model gemma3-4b | --model FILE] [--placement vulkan:0] [--runs 3] [--json FILE]

A known shape's weights are random and made in memory, which is not counted; a file's come from the page cache, if they
are there. Every run is a process of its own. Cold: in an empty folder for what Tandem and the driver keep; warm: in the
same again.

imports   until Tandem's modules are there       planned   headers read, devices opened, memory planned
loaded    weights packed and sent off            linked    all on the device, programs linked, kernels measured
first     the token that follows a prompt of 32  second    the next one
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

PHASES = ("imports", "planned", "loaded", "linked", "first", "second")
PROMPT = 32


def child(args: argparse.Namespace) -> None:
    """Prints one JSON object: seconds since `args.begin` at the end of each phase."""
    marks: dict[str, float] = {}
    aside = 0.0

    def mark(name: str) -> None:
        marks[name] = time.time() - args.begin - aside

    from tandem.bench.synthetic import GEMMA3, synthetic_checkpoint
    from tandem.engine.build import EngineConfig, plan_engine
    from tandem.engine.request import Request
    from tandem.engine.sampling_params import SamplingParams
    from tandem.weights.open import open_checkpoint
    from tandem.weights.tensor import TensorType

    mark("imports")
    if args.model in GEMMA3:
        begin = time.perf_counter()
        checkpoint = synthetic_checkpoint(args.model, GEMMA3[args.model], TensorType[args.type])
        aside = time.perf_counter() - begin
    else:
        checkpoint = open_checkpoint(args.model)
    deterministic = not args.no_deterministic
    config = EngineConfig(placement=args.placement, context=2048, max_sequences=8, deterministic=deterministic)
    planned = plan_engine(checkpoint, config)
    mark("planned")
    blocks: list[float] = []
    engine = planned.load((), progress=lambda done, of: blocks.append(time.time()))
    marks["loaded"] = blocks[-1] - args.begin - aside
    mark("linked")
    try:
        params = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True)
        engine.submit(Request(id="first", prompt=list(range(2, 2 + PROMPT)), params=params))
        for name in ("first", "second"):
            while not any(delta.tokens for delta in engine.step()):
                pass
            mark(name)
        weights = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
        device = engine.executor.spec.name, [device.info.description for device in planned.devices.values()]
        print(json.dumps({"marks": marks, "bytes": weights, "model": device[0], "devices": device[1]}), flush=True)
    finally:
        engine.executor.close()
        planned.close()


def run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    kept = {"XDG_CACHE_HOME": str(folder), "__GL_SHADER_DISK_CACHE_PATH": str(folder)}
    command = [sys.executable, __file__, *sys.argv[1:], "--begin", repr(time.time())]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | kept, check=False)
    if done.returncode != 0:
        sys.exit(f"the process ended with {done.returncode}: {shlex.join(command)}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def phases(found: dict[str, Any]) -> dict[str, float]:
    """Seconds of each phase, and until the first token; bytes of weights a second while loading and linking."""
    marks = found["marks"]
    ends = [0.0, *(marks[name] for name in PHASES)]
    each = dict(zip(PHASES, (after - before for before, after in pairwise(ends)), strict=True))
    loading = each["loaded"] + each["linked"]
    return {**each, "to_first_token": marks["first"], "load_bytes_per_s": found["bytes"] / loading}


def line(title: str, each: dict[str, float]) -> str:
    parts = " ".join(f"{name} {each[name]:.3f}" for name in PHASES)
    rate = f"{each['load_bytes_per_s'] / 1e9:.2f} GB/s"
    return f"{title:8} {parts}  first token after {each['to_first_token']:.3f} s, {rate}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gemma3-4b")
    parser.add_argument("--type", default="Q4_0", help="of a known shape's weights")
    parser.add_argument("--placement", default="vulkan:0")
    parser.add_argument("--no-deterministic", action="store_true")
    parser.add_argument("--runs", type=int, default=3, help="warm ones")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--begin", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.begin is not None:
        child(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        found = [run(args, Path(folder)) for _ in range(1 + args.runs)]
    cold, *warm = [phases(each) for each in found]
    middle = {name: median(each[name] for each in warm) for name in cold} if warm else {}
    print(f"{found[0]['model']}, {found[0]['bytes'] / 1e9:.2f} GB, {'; '.join(found[0]['devices'])}; seconds")
    print(line("cold", cold))
    for each in warm:
        print(line("warm", each))
    if middle:
        print(line("median", middle))
    if args.json:
        command = shlex.join(["python", *sys.argv])
        result = {"command": command, **{key: found[0][key] for key in ("model", "devices", "bytes")}}
        args.json.write_text(json.dumps({**result, "cold": cold, "warm": warm}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
