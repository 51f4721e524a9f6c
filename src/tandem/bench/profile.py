"""Where the time of a step goes: kernels by kind of block, and what they reach of the device's ceilings.

Kernels run one after another while they are timed, so that what overlaps in a step does not here: shares are right, and
their sum is more than a step takes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tandem.bench.report import columns
from tandem.bench.subject import Subject
from tandem.bench.throughput import ThroughputBench, Workload
from tandem.devices.base import Ceilings, KernelTime, MeasuredDevice
from tandem.engine.build import EngineConfig
from tandem.errors import BenchError
from tandem.models.spec import ModelSpec
from tandem.pipeline.devices import open_device
from tandem.pipeline.notation import parse_placement
from tandem.pipeline.timing import StepTime


def measure_ceilings(spec: ModelSpec, config: EngineConfig) -> dict[str, Ceilings]:
    """Of the placement's devices, those that can tell; before a model fills their memory."""
    found = {}
    for name in parse_placement(config.placement, spec).names:
        device = open_device(name, threads=config.threads)
        try:
            if isinstance(device, MeasuredDevice):
                found[name] = device.measure_ceilings()
        finally:
            device.close()
    return found


def run_profile(
    subject: Subject, workload: Workload, ceilings: dict[str, Ceilings], progress: Callable[[int, int], None] | None
) -> tuple[dict[str, Any], list[StepTime]]:
    """Profiles the workload's kinds at each batch size and depth; the result as JSON values, and every step."""
    executor = subject.engine.executor
    bench = ThroughputBench(subject.engine, workload)
    points = [
        (kind, batch, depth) for depth in workload.depths for batch in workload.batches for kind in workload.kinds
    ]
    results, all_steps = [], []
    for done, (kind, batch, depth) in enumerate(points):
        bench.measure(kind, batch, depth)  # recordings, pages and beginnings are there from now on
        executor.profile, executor.time_kernels = [], True
        try:
            span = bench.measure(kind, batch, depth)
            steps = executor.profile
        finally:
            executor.profile, executor.time_kernels = None, False
        if kind == "decode":
            steps = [step for step in steps if step.rows == step.samples == batch]
        steps = steps[-span.steps :]
        if not steps:
            raise BenchError(f"no step of {kind} with {batch} sequences was seen")
        results.append({"kind": kind, "batch": batch, "depth": depth, "steps": len(steps), **summarize(steps)})
        all_steps += steps
        if progress is not None:
            progress(done + 1, len(points))
    result = {
        **subject.to_json(),
        "workload": asdict(workload),
        "ceilings": {name: asdict(each) for name, each in ceilings.items()},
        "results": results,
    }
    return result, all_steps


def summarize(steps: Sequence[StepTime]) -> dict[str, Any]:
    """Seconds a step by device, and its kernels by block kind, kernel and variant, the longest first."""
    devices: dict[str, float] = {}
    kernels: dict[tuple[str, str, str, str], list[KernelTime]] = {}
    for step in steps:
        for program in step.programs:
            devices[program.device] = devices.get(program.device, 0.0) + program.seconds / len(steps)
            for kernel in program.kernels:
                kind = kernel.block.partition(" ")[0]
                kernels.setdefault((program.device, kind, kernel.kernel, kernel.variant), []).append(kernel)
    rows = [
        {
            "device": device,
            "block": kind,
            "kernel": name,
            "variant": variant,
            "per_step": len(times) / len(steps),
            "seconds_per_step": sum(time.seconds for time in times) / len(steps),
            "bytes_per_step": sum(time.bytes for time in times) / len(steps),
            "macs_per_step": sum(time.macs for time in times) / len(steps),
        }
        for (device, kind, name, variant), times in kernels.items()
    ]
    rows.sort(key=lambda row: -row["seconds_per_step"])  # type: ignore[operator]
    return {"device_seconds_per_step": devices, "kernels": rows}


def profile_table(result: dict[str, Any]) -> str:
    """The result for a reader."""
    parts = []
    for name, ceilings in result["ceilings"].items():
        rates = [
            (ceilings["read_bytes_per_s"], "GB/s read"),
            (ceilings["copy_bytes_per_s"], "GB/s copied (read and written)"),
            (ceilings["int8_macs_per_s"], "G integer multiply-adds/s"),
        ]
        known = [f"{rate / 1e9:,.1f} {what}" for rate, what in rates if rate]
        if known:
            parts.append(f"{name} at its best, measured: {', '.join(known)}")
    for entry in result["results"]:
        spent = ", ".join(
            f"{name} {seconds * 1e3:.3f} ms" for name, seconds in entry["device_seconds_per_step"].items()
        )
        title = f"{entry['kind']}, batch {entry['batch']}, depth {entry['depth']}: {spent} a step, by the host's clock"
        lines = [("block", "kernel", "variant", "a step", "ms", "share", "GB/s", "of read", "GMAC/s")]
        whole = sum(row["seconds_per_step"] for row in entry["kernels"])
        for row in entry["kernels"]:
            seconds = row["seconds_per_step"]
            bandwidth, macs = (row[key] / seconds if seconds else 0.0 for key in ("bytes_per_step", "macs_per_step"))
            ceiling = result["ceilings"].get(row["device"], {}).get("read_bytes_per_s")
            lines.append(
                (
                    row["block"],
                    row["kernel"],
                    row["variant"],
                    f"{row['per_step']:.3g}",
                    f"{seconds * 1e3:.3f}",
                    f"{seconds / whole:.1%}" if whole else "",
                    f"{bandwidth / 1e9:.2f}" if bandwidth else "",
                    f"{bandwidth / ceiling:.1%}" if bandwidth and ceiling else "",
                    f"{macs / 1e9:.2f}" if macs else "",
                )
            )
        parts.append(f"{title}\n{columns(lines)}" if entry["kernels"] else f"{title}\nno device here tells of kernels")
    parts.append(
        "Kernels were timed one after another, so what overlaps in a step does not here. GB/s: weights, keys and\n"
        "values that a kernel must read; GMAC/s: its multiply-adds; both only where they are known."
    )
    return "\n\n".join(parts)


def write_trace(path: Path, steps: Iterable[StepTime]) -> None:
    """Chrome's trace format (chrome://tracing, ui.perfetto.dev): a lane for each device, one for its kernels.

    A GPU's clock is not the host's: its kernels are laid end to end, the last one to where the host saw them all done.
    """
    events: list[dict[str, Any]] = []
    lanes: dict[str, int] = {}

    def lane(name: str) -> int:
        if name not in lanes:
            lanes[name] = len(lanes) + 1
            events.append({"ph": "M", "name": "thread_name", "pid": 1, "tid": lanes[name], "args": {"name": name}})
        return lanes[name]

    for step in steps:
        for program in step.programs:
            title = f"{step.rows} rows"
            events.append(_span(lane(program.device), title, program.start, program.seconds, {"samples": step.samples}))
            at = program.start + program.seconds - sum(kernel.seconds for kernel in program.kernels)
            for kernel in program.kernels:
                about = {"variant": kernel.variant, "block": kernel.block, "bytes": kernel.bytes, "macs": kernel.macs}
                events.append(
                    _span(
                        lane(f"{program.device} kernels"), f"{kernel.block}: {kernel.kernel}", at, kernel.seconds, about
                    )
                )
                at += kernel.seconds
    text = json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def _span(lane: int, name: str, start: float, seconds: float, about: dict[str, Any]) -> dict[str, Any]:
    return {"ph": "X", "name": name, "pid": 1, "tid": lane, "ts": start * 1e6, "dur": seconds * 1e6, "args": about}
