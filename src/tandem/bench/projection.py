"""A projection for a reader, and as JSON values."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import msgspec

from tandem.bench.report import columns
from tandem.memory.system import format_bytes
from tandem.pipeline.project import ASSUMPTIONS, ENDS, Projection, impossible

_SHOWN = 8
LABEL = "A projection, not a measurement"


def projection_json(projection: Projection, model: str, target: float) -> dict[str, Any]:
    bound = projection.bound
    return {
        "label": LABEL,
        "model": model,
        "hardware": msgspec.to_builtins(projection.hardware),
        "workload": asdict(projection.workload),
        "memory": projection.memory,
        "fits": projection.fits,
        "best": projection.best,
        "tokens_per_s": {
            text: {end: each[end].tokens_per_s for end in ENDS} for text, each in projection.predictions.items()
        },
        "bound": asdict(bound),
        "impossible": impossible(projection, target),
        "assumptions": list(ASSUMPTIONS),
    }


def projection_report(projection: Projection, model: str, target: float) -> str:
    """With its bound, its assumptions, its sources and its band."""
    hardware, workload, bound = projection.hardware, projection.workload, projection.bound
    ranked = sorted(projection.predictions, key=lambda text: -projection.predictions[text]["middle"].tokens_per_s)
    rows = [("projected", "tok/s", "from", "to", "decode ms a step", "prefill tok/s")]
    for text in ranked[:_SHOWN]:
        each = projection.predictions[text]
        middle = each["middle"]
        step = middle.decode.total if middle.decode else 0.0
        rows.append(
            (
                text,
                f"{middle.tokens_per_s:,.1f}",
                f"{each['low'].tokens_per_s:,.1f}",
                f"{each['high'].tokens_per_s:,.1f}",
                f"{step * 1e3:,.2f}",
                f"{middle.prefill_tokens_per_s:,.1f}",
            )
        )
    memory = f"{format_bytes(projection.memory)} of weights and KV"
    parts = [
        f"{LABEL}: {model} on {hardware.name}.",
        f"{workload.batch} prompts of {workload.prompt:,} tokens, answers of {workload.new:,}; {memory} "
        + (f"fit {format_bytes(hardware.memory.bytes)}" if projection.fits
           else f"do not fit {format_bytes(hardware.memory.bytes)}") + f" ({hardware.memory.bytes_note})",
        columns(rows),
        f"Roofline: at {hardware.memory.bytes_per_s / 1e9:.1f} GB/s and {hardware.macs_per_s / 1e12:.1f} T "
        f"multiply-adds/s no software decodes this batch faster than {bound.decode:,.1f} tokens/s, nor any batch "
        f"faster than {bound.any_batch:,.0f}.",
        (impossible(projection, target) or f"{target:,.0f} tokens/s is below what the arithmetic alone allows") + ".",
        "\n".join(["Assumed:", *(f"- {each}" for each in ASSUMPTIONS)]),
        "\n".join(["Figures:", *_sources(projection)]),
    ]  # fmt: skip
    return "\n\n".join(parts)


def _sources(projection: Projection) -> list[str]:
    hardware = projection.hardware
    lines = [f"- memory, {hardware.memory.bytes_per_s / 1e9:.1f} GB/s: {hardware.memory.source}"]
    for device in hardware.device:
        lines.append(f"- {device.name}, {device.description}, {device.macs_per_s / 1e12:.2f} T/s: {device.source}")
        for what, band in (("bandwidth", device.read), ("arithmetic", device.macs)):
            lines.append(f"  {what} reached: {band.low:.0%} ({band.low_from}) to {band.high:.0%} ({band.high_from})")
    lines += [f"- {each.name}, not used: {each.why}; {each.source}" for each in hardware.unused]
    return lines
