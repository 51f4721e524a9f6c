"""Gemma 3's shapes on a GPU: prefill and decode beside what the device can do at best. Needs no model and no network.

    python benchmarks/vulkan_shapes.py [--models gemma3-1b,gemma3-4b] [--placement vulkan:0] [--out PREFIX]

Weights are random and made in memory. Each model runs in a process of its own; results are written to PREFIX.json and
PREFIX.md as they come, and a case that takes too long, does not fit or fails is noted there and left out.

achieved   bytes of weights, keys and values that a step must read, over its time; and its multiply-adds
KV GB/s    bytes of keys and values that attention must read, over the time of its kernels
of read    the first, over the rate at which the device was measured to read its memory
host       Python of the engine's thread; sampling: the sampler's calls; both while the next step runs, where one can
           run ahead (--one-in-flight lets none). kernels: the sum of a profiled step's kernels
idle       the device's time between the end of a step and the begin of the next
"""

from __future__ import annotations

import argparse
import json
import queue
import shlex
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tandem.bench.profile import measure_ceilings, summarize
from tandem.bench.report import columns, run_header, source_checkout, write_result
from tandem.bench.subject import Subject, open_subject
from tandem.bench.synthetic import GEMMA3, synthetic_checkpoint
from tandem.bench.throughput import GREEDY, Span, ThroughputBench, Workload
from tandem.devices.base import WAKING_SECONDS, Ceilings
from tandem.errors import MemoryPlanError, TandemError
from tandem.models.open import model_spec
from tandem.weights.tensor import TensorType

DECODE_STEPS = 16
SAMPLING = {
    "greedy": GREEDY,
    "plain": {"temperature": 1.0},
    "top-p": {"temperature": 0.7, "top_p": 0.9},
    "top-k": {"temperature": 1.0, "top_k": 64, "top_p": 0.95},
    "penalized": {"temperature": 1.0, "top_p": 0.95, "presence_penalty": 0.5},
}
# Loading, compiling and the first step of each size have no rate to be known before.
PATIENCE = 240.0


def measure_model(args: argparse.Namespace) -> None:
    """The child: prints one JSON object a line, as soon as it is known."""

    def tell(**what: Any) -> None:
        print(json.dumps(what), flush=True)

    begin = time.perf_counter()
    shape = GEMMA3[args.child]
    shape = replace(shape, layers=args.layers or shape.layers)
    checkpoint = synthetic_checkpoint(args.child, shape, TensorType[args.type])
    spec = model_spec(checkpoint)
    batches = [int(each) for each in args.batches.split(",")]
    made = time.perf_counter()
    ceilings: dict[str, Ceilings] = {}
    while batches:
        kinds, rows = ("prefill", "decode"), max(args.prefill, max(batches) + 1)
        workload = Workload(kinds, tuple(batches), (args.depth,), args.prefill, DECODE_STEPS, rows=rows)
        config = workload.engine_config(spec, placement=args.placement, deterministic=not args.no_deterministic)
        ceilings = ceilings or measure_ceilings(spec, config)
        try:
            with open_subject(checkpoint, config) as subject:
                tell(
                    ceilings={name: asdict(each) for name, each in ceilings.items()},
                    subject=subject.to_json(),
                    made_s=made - begin,
                    loaded_s=time.perf_counter() - made,
                )
                subject.engine.run_ahead = not args.one_in_flight
                measure_cases(subject, workload, args, tell)
            return
        except MemoryPlanError as refusal:
            tell(refused=f"batches up to {max(batches)}: {refusal}")
            batches.remove(max(batches))


def measure_cases(subject: Subject, workload: Workload, args: argparse.Namespace, tell: Any) -> None:
    cases = [("decode", batch) for batch in workload.batches]
    cases.insert(1, ("prefill", 1))
    cases = [case for case in cases if case[0] in args.kinds.split(",")]
    bench = ThroughputBench(subject.engine, workload, copied=True, sampling=SAMPLING[args.sampling])
    for kind, batch in cases:
        tell(begins=f"{kind} {batch}")
        case = {"kind": kind, "batch": batch, "rows": batch if kind == "decode" else args.prefill}
        try:
            tell(case={**case, **measure_case(subject, bench, kind, batch, args)})
        except TandemError as error:
            tell(case={**case, "error": str(error)})


def measure_case(
    subject: Subject, bench: ThroughputBench, kind: str, batch: int, args: argparse.Namespace
) -> dict[str, Any]:
    """As many rounds as fit into the time, five at most; one that is short where even that is long."""
    depth = args.depth
    first = bench.measure(kind, batch, depth, new_tokens=2)
    # The first makes pipelines, too, and a GPU that had nothing to do meanwhile takes a while to be as fast again.
    second, awake = first, time.perf_counter() + WAKING_SECONDS
    while time.perf_counter() < awake and first.seconds < 4 * args.seconds:
        second = bench.measure(kind, batch, depth, new_tokens=2 if kind == "prefill" else DECODE_STEPS)
    spans, steps = [second], 2
    if kind == "decode" and second.seconds / second.steps * DECODE_STEPS < args.seconds / 2:
        spans, steps = [], DECODE_STEPS
    begin = time.perf_counter()
    while len(spans) < 5 and (not spans or time.perf_counter() - begin + spans[-1].seconds < args.seconds):
        spans.append(bench.measure(kind, batch, depth, new_tokens=steps))
    best = min(spans, key=lambda span: span.seconds / span.rows)
    executor = subject.engine.executor
    executor.profile, executor.time_kernels = [], True
    try:
        bench.measure(kind, batch, depth, new_tokens=2)
        profiled = executor.profile
    finally:
        executor.profile, executor.time_kernels = None, False
    profiled = [step for step in profiled if kind == "prefill" or step.rows == step.samples == batch]
    profiled = profiled[-1:] if kind == "prefill" else profiled[-2:]
    return {
        **numbers(best),
        "rounds": len(spans),
        "profile": summarize(profiled) if profiled else None,
        "first_s": first.seconds,
    }


def numbers(span: Span) -> dict[str, float]:
    return {
        "tokens_per_s": (span.rows - span.wasted_rows) / span.seconds,
        "wasted": span.wasted_rows / span.rows,
        "whole": span.whole_rows / span.rows,
        "step_s": span.seconds / span.steps,
        "host_s": (span.seconds - span.waited - span.sampling) / span.steps,
        "sampling_s": span.sampling / span.steps,
        "idle_s": (span.seconds - span.pipeline.seconds) / span.steps,
    }


def watch(args: argparse.Namespace, name: str, found: dict[str, Any], save: Any) -> None:
    """Runs one model's process and notes what it tells; ends it when it says nothing for too long."""
    command = [sys.executable, __file__, *sys.argv[1:], "--child", name]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        assert child.stdout is not None
        for line in child.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    end = time.monotonic() + args.model_seconds
    try:
        while (line := lines.get(timeout=max(1.0, min(PATIENCE, end - time.monotonic())))) is not None:
            said = json.loads(line)
            print(f"{name}: {line.strip()[:160]}", flush=True)
            if "case" in said:
                found["cases"].append(said["case"])
            else:
                found |= said
            save()
        if child.wait() != 0:
            found["error"] = f"the process ended with {child.returncode}"
    except queue.Empty:
        found["error"] = "it took too long and was ended"
    finally:
        child.kill()
        child.wait()
        save()


def kv_rate(kernels: list[dict[str, Any]]) -> str:
    attention = [kernel for kernel in kernels if kernel["kernel"].startswith("attention")]
    seconds, read = (sum(kernel[key] for kernel in attention) for key in ("seconds_per_step", "bytes_per_step"))
    return f"{read / seconds / 1e9:,.1f}" if seconds else ""


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    parts = [f"# Gemma 3's shapes on a GPU\n\n    {result['command']}\n\ncommit {result['commit']}, {result['date']}"]
    for name, model in result["models"].items():
        parts.append(f"## {name}")
        for key in ("refused", "error"):
            if key in model:
                parts.append(f"{key}: {model[key]}")
        if "subject" not in model:
            continue
        subject = model["subject"]
        ceilings = next(iter(model["ceilings"].values()), {})
        read, dots = ceilings.get("read_bytes_per_s"), ceilings.get("int8_macs_per_s")
        parts.append(
            f"{'; '.join(subject['devices'])}; {subject['model']['weight_bytes_per_step'] / 1e9:.2f} GB of weights a "
            f"step, loaded in {model['loaded_s']:.1f} s. Measured at best: "
            f"{'unknown' if not read else f'{read / 1e9:,.0f} GB/s read'}, "
            f"{'unknown' if not dots else f'{dots / 1e12:,.1f} T integer multiply-adds/s'}."
        )
        lines = [
            (
                *("", "rows/s", "step ms", "kernels ms", "idle ms", "host ms", "sampling ms"),
                *("GB/s", "of read", "KV GB/s", "TMAC/s", "of dots"),
            )
        ]
        for case in model["cases"]:
            title = f"{case['kind']} {case['rows']}"
            if "error" in case:
                lines.append((title, case["error"][:60], *[""] * 10))
                continue
            kernels = (case["profile"] or {}).get("kernels", [])
            steps = case["step_s"]
            seconds, bytes, macs = (
                sum(kernel[key] for kernel in kernels)
                for key in ("seconds_per_step", "bytes_per_step", "macs_per_step")
            )
            lines.append(
                (
                    title,
                    f"{case['tokens_per_s']:,.1f}",
                    f"{steps * 1e3:.2f}",
                    f"{seconds * 1e3:.2f}",
                    f"{case['idle_s'] * 1e3:.3f}",
                    f"{case['host_s'] * 1e3:.3f}",
                    f"{case['sampling_s'] * 1e3:.3f}",
                    f"{bytes / steps / 1e9:.1f}",
                    f"{bytes / steps / read:.1%}" if read else "",
                    kv_rate(kernels),
                    f"{macs / steps / 1e12:.2f}",
                    f"{macs / steps / dots:.1%}" if dots else "",
                )
            )
        parts.append("```\n" + columns(lines) + "\n```")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(GEMMA3))
    parser.add_argument("--type", default="Q4_0", choices=[kind.name for kind in TensorType])
    parser.add_argument("--placement", default="vulkan:0")
    parser.add_argument("--no-deterministic", action="store_true", help="faster kernels for steps of many rows")
    parser.add_argument("--batches", default="1,2,4,8,16,32,64")
    parser.add_argument("--kinds", default="prefill,decode")
    parser.add_argument("--prefill", type=int, default=512, help="tokens of the prompt")
    parser.add_argument("--one-in-flight", action="store_true", help="no step runs ahead of the host")
    parser.add_argument("--sampling", default="greedy", choices=SAMPLING)
    parser.add_argument("--layers", type=int, help="only so many, for a trial")
    parser.add_argument(
        "--depth", type=int, default=0, help="positions that sequences have before; computed once and copied"
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="for the rounds of a case, about")
    parser.add_argument("--model-seconds", type=float, default=420.0, help="for all cases of a model and its loading")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/vulkan-shapes"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        measure_model(args)
        return
    result: dict[str, Any] = run_header(source_checkout(), shlex.join(["python", *sys.argv]))
    result["models"] = {}

    def save() -> None:
        write_result(args.out.with_suffix(".json"), result)
        args.out.with_suffix(".md").write_text(table(result), encoding="utf-8")

    for name in args.models.split(","):
        result["models"][name] = {"cases": []}
        watch(args, name, result["models"][name], save)
    print(table(result))


if __name__ == "__main__":
    main()
