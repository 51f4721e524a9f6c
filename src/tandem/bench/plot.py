"""Results of benchmarks as pictures. Needs matplotlib, which is not one of Tandem's dependencies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tandem.bench.ceilings import Ceilings, highest
from tandem.errors import BenchError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def require_matplotlib() -> None:
    """Raises BenchError where it is missing; call it before measuring for an hour."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise BenchError(
            "--plot needs matplotlib, which is not installed; pip install 'tandem-llm[plot]', or leave --plot out"
        ) from None


def plot_throughput(result: dict[str, Any], path: Path) -> None:
    """Tokens per second over batch size, a panel for each kind of measurement, a line for each depth."""
    workload = result["workload"]

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, len(workload["kinds"]), squeeze=False)[0]
        for kind, axes in zip(workload["kinds"], panels, strict=True):
            for depth in workload["depths"]:
                entries = [entry for entry in result["results"] if entry["depth"] == depth]
                batches = [entry["batch"] for entry in entries]
                rates = [entry[kind]["tokens_per_s"] for entry in entries]
                medians = [rate["median"] for rate in rates]
                below = [rate["median"] - rate["low"] for rate in rates]
                above = [rate["high"] - rate["median"] for rate in rates]
                axes.errorbar(batches, medians, yerr=(below, above), marker=".", capsize=2, label=f"depth {depth:,}")
            axes.set(title=kind, xlabel="sequences", ylabel="tokens per second", xscale="log", ylim=(0, None))
            axes.set_xticks(batches, [str(batch) for batch in batches])
            axes.minorticks_off()
            axes.grid(alpha=0.3)
            axes.legend()

    _save(draw, result, path, width=5.5 * len(workload["kinds"]))


def plot_replay(result: dict[str, Any], path: Path) -> None:
    """Shares of requests and gaps by latency, and the load over time."""
    seen = result["replay"]

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        for key, name in (("ttft_s", "TTFT"), ("itl_s", "ITL"), ("request_s", "whole request")):
            if seen[key] is not None:
                _draw_percentiles(left, seen[key], name)
        left.set(title="latency", xlabel="percentile", ylabel="seconds", yscale="log")
        left.legend()
        left.grid(alpha=0.3)
        per_second = seen["per_second"]
        right.plot(per_second["rows"], label="rows", linewidth=0.8)
        right.plot(per_second["new_tokens"], label="new tokens", linewidth=0.8)
        right.set(title="load", xlabel="seconds", ylabel="per second", ylim=(0, None))
        right.grid(alpha=0.3)
        queue = right.twinx()
        queue.plot(per_second["waiting"], color="grey", linewidth=0.8, linestyle=":", label="waiting")
        queue.plot(per_second["running"], color="black", linewidth=0.8, linestyle=":", label="running")
        queue.set(ylabel="sequences", ylim=(0, None))
        handles = [*right.get_lines(), *queue.get_lines()]
        right.legend(handles=handles, loc="upper left")

    _save(draw, result, path, width=12)


def plot_kernels(result: dict[str, Any], path: Path) -> None:
    """Rooflines: multiply-adds per second over multiply-adds per byte, under the roofs that were measured."""
    ceilings = highest([Ceilings(**measured) for measured in result["ceilings"].values()])
    entries = [entry for entry in result["results"] if entry["macs"] and entry["bytes"]]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        intensity = [entry["macs"] / entry["bytes"] for entry in entries] or [1.0]
        ends = [min(intensity) / 2, max(intensity) * 2]
        at = [ends[0] * (ends[1] / ends[0]) ** (i / 200) for i in range(201)]
        for unit in dict.fromkeys(entry["unit"] for entry in entries):
            roof = [min(ceilings.peak(unit), x * ceilings.read) / 1e9 for x in at]
            axes.plot(at, roof, color="black", linewidth=0.8)
            axes.annotate(unit, (ends[1], roof[-1]), ha="right", va="bottom", fontsize="small")
        for kernel, kind in dict.fromkeys((entry["kernel"], entry["type"]) for entry in entries):
            mine = [entry for entry in entries if (entry["kernel"], entry["type"]) == (kernel, kind)]
            marker = {"product": ".", "decode": "^", "prefill": "s"}.get(kernel, "x")
            x = [entry["macs"] / entry["bytes"] for entry in mine]
            y = [entry["macs_per_s"] / 1e9 for entry in mine]
            axes.plot(x, y, marker=marker, linestyle="", label=f"{kernel} {kind}", alpha=0.8)
        axes.set(xlabel="multiply-adds per byte", ylabel="G multiply-adds per second", xscale="log", yscale="log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="x-small", ncols=2)

    _save(draw, result, path, width=9)


def _draw_percentiles(axes: Axes, spread: dict[str, float], name: str) -> None:
    labels = ("p50", "p90", "p99", "max")
    axes.plot(labels, [spread[label] for label in labels], marker="o", label=name)


def _save(draw: Callable[[Figure], None], result: dict[str, Any], path: Path, width: float) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure)
    machine = result["machine"]
    subject = result["model"]["name"] if "model" in result else "kernels"
    figure.suptitle(
        f"{subject} on {machine['cpu']}, {result['threads']} threads, commit {result['commit'] or '?'}",
        fontsize="small",
    )
    figure.savefig(path, format="png", dpi=120)
