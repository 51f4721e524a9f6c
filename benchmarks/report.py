"""What compare_engines.py found: medians and ratios by cell, what is demanded of them, and tables.

python benchmarks/report.py benchmarks/results/compare-engines-*.json    # the table of docs/comparison.md
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines import Work
from ideal import CostModel
from tandem.bench.ceilings import Ceilings
from tandem.bench.report import Summary, columns
from tandem.bench.tables import header_lines
from tandem.bench.throughput import relative_to_smaller

OURS = "tandem"
LEAST_OF_SMALLER = 0.95
OVERHEAD_BATCH, MOST_OVERHEAD = 32, 0.05


@dataclass(frozen=True)
class Demand:
    """`measure` of a cell must be at least `least`, better `aim`: "ideal" (ideal time over ours), "read" (the same
    where reading binds) or our rate over an engine's ("best": of the fastest of the others). For models with weights in
    [from_weights, to_weights).
    """

    cell: str
    measure: str
    least: float
    aim: float | None = None
    from_weights: float = 0
    to_weights: float = float("inf")
    context: int = 0  # positions that sequences must have before


SMALL, LARGE = 0.8e9, 3.5e9
DEMANDS = (
    Demand("prefill", "ideal", 0.62, 0.68, from_weights=LARGE),
    Demand("prefill", "ideal", 0.58, 0.68, from_weights=SMALL, to_weights=LARGE),
    Demand("prefill", "ideal", 0.52, 0.68, to_weights=SMALL),
    Demand("prefill", "llama.cpp", 2.0),
    Demand("prefill", "openvino", 1.15),
    Demand("decode 32", "ideal", 0.50, 0.60),
    Demand("decode 32", "best", 1.3),
    Demand("decode 8", "best", 1.6, 2.3),
    Demand("decode 4", "best", 1.4, 1.8),
    Demand("decode 2", "best", 1.4, 1.8),
    Demand("decode 1", "ik_llama.cpp", 1.05, to_weights=LARGE),
    Demand("decode 1", "read", 0.0, 0.90, to_weights=LARGE),
    Demand("decode 1", "best", 1.0, from_weights=LARGE),
    Demand("decode 1", "read", 0.0, 0.95, from_weights=LARGE),
    Demand("decode 8", "best", 1.2, context=8192),
)
# Our rate with another type over our own with Q4_0, at prefill and with 16 sequences and more: least, aim.
TYPES = {
    "Q8_0": (0.90, 0.95), "Q4_K": (0.85, 0.92), "Q5_K": (0.85, 0.92), "Q5_0": (0.85, 0.92), "Q6_K": (0.70, 0.78),
}  # fmt: skip


def evaluate(result: dict[str, Any], cost: CostModel, work: Work, measured: Sequence[Ceilings]) -> dict[str, Any]:
    """By cell: each engine's rates, the ideal, ratios and demands. Ceilings: the median of those of this run."""
    ceilings = median_ceilings(measured)
    cells: dict[str, Any] = {}
    samples: dict[str, dict[str, list[float]]] = {}
    for turn in result["turns"]:
        for cell, rate in turn["rates"].items():
            samples.setdefault(cell, {}).setdefault(turn["engine"], []).append(rate)
    for cell, by_engine in sorted(samples.items(), key=lambda item: _order(item[0])):
        engines = {engine: Summary.of(rates).to_json() for engine, rates in by_engine.items()}
        cells[cell] = entry = {"engines": engines}
        if (ideal := cost.ideal(cell, work, ceilings)) is not None:
            tokens = work.prefill if cell == "prefill" else int(cell.split()[1]) * work.new
            entry["ideal_tokens_per_s"], entry["bound_by"] = tokens / ideal[0], ideal[1]
            entry["of_ideal"] = {name: engines[name]["median"] * ideal[0] / tokens for name in engines}
        peers = {name: engine["median"] for name, engine in engines.items() if name != OURS}
        if OURS in engines and peers and cell != "cold":
            best = max(peers, key=lambda name: peers[name])
            entry["best_peer"] = best
            entry["ratios"] = {name: engines[OURS]["median"] / rate for name, rate in peers.items()}
        if OURS in engines:
            entry["demands"] = list(_demands(cell, entry, result["model"]["weights"], work.prompt))
    return cells


def median_ceilings(measured: Sequence[Ceilings]) -> Ceilings:
    first = measured[0]
    bf16 = [c.bf16 for c in measured if c.bf16 is not None]
    return Ceilings(
        first.isa, first.threads, statistics.median(c.int8 for c in measured),
        statistics.median(bf16) if bf16 else None, statistics.median(c.f32 for c in measured),
        statistics.median(c.read for c in measured),
    )  # fmt: skip


def _demands(cell: str, entry: dict[str, Any], weights: int, context: int) -> Iterable[dict[str, Any]]:
    here = [
        d for d in DEMANDS
        if d.cell == cell and d.from_weights <= weights < d.to_weights and d.context <= context
    ]  # fmt: skip
    longest = max((d.context for d in here), default=0)
    for demand in here:
        if demand.context != longest:
            continue
        if demand.measure in ("ideal", "read"):
            value = entry["of_ideal"][OURS]
        else:
            ratios = entry.get("ratios", {})
            value = ratios.get(entry.get("best_peer") if demand.measure == "best" else demand.measure)
        if value is not None:
            yield {
                "measure": demand.measure, "value": value, "least": demand.least, "aim": demand.aim,
                "held": value >= demand.least, "aim_reached": demand.aim is None or value >= demand.aim,
            }  # fmt: skip


def _order(cell: str) -> tuple[int, int]:
    kinds = ("cold", "prefill", "decode")
    kind, _, size = cell.partition(" ")
    return kinds.index(kind), int(size or 0)


def checks(result: dict[str, Any]) -> dict[str, tuple[bool, str]]:
    """Tandem by itself: no dip from one batch size to a larger one, and little time between native calls."""
    found: dict[str, tuple[bool, str]] = {}
    rates = {
        int(cell.split()[1]): entry["engines"][OURS]["median"]
        for cell, entry in result["cells"].items()
        if cell.startswith("decode ") and OURS in entry["engines"]
    }
    if relative := relative_to_smaller(rates):
        dips = {batch: round(share, 3) for batch, share in relative.items() if share < LEAST_OF_SMALLER}
        name = f"each batch at least {LEAST_OF_SMALLER} x the best of all smaller"
        found[name] = not dips, f"least {min(relative.values()):.3f}, dips {dips}"
    overheads = [turn["overhead"].get(str(OVERHEAD_BATCH)) for turn in result["turns"]]
    if known := [overhead for overhead in overheads if overhead is not None]:
        median = statistics.median(known)
        name = f"overhead under {MOST_OVERHEAD:.0%} at {OVERHEAD_BATCH} sequences"
        found[name] = median < MOST_OVERHEAD, f"{median:.2%}"
    return found


def show(result: dict[str, Any]) -> str:
    """One model's result for the screen."""
    model = result["model"]
    about = [f"{engine}: {what}" for engine, what in result["engines"].items()]
    about += [f"{engine} was not measured: {reason}" for engine, reason in result["skipped"].items()]
    lines = [f"{model['file']}: {model['name']}, {model['weights'] / 1e9:.2f} G weights", *about]
    lines += [f"ceilings: {Ceilings(**measured)}" for measured in result["ceilings"]]
    names = list(result["engines"])
    rows = [["tokens/s", *names, "ideal", "ours of it", "bound by", "over the best"]]
    for cell, entry in result["cells"].items():
        row = [{"cold": "cold start, s"}.get(cell, cell)]
        row += [str(_summary(entry["engines"][name])) if name in entry["engines"] else "" for name in names]
        row += [f"{entry['ideal_tokens_per_s']:.1f}" if "of_ideal" in entry else ""]
        row += [f"{entry['of_ideal'][OURS]:.1%}" if OURS in entry.get("of_ideal", {}) else ""]
        row += [entry.get("bound_by", "")]
        row += [f"{entry['ratios'][entry['best_peer']]:.2f} x {entry['best_peer']}" if "ratios" in entry else ""]
        rows.append(row)
    verdicts = [
        f"{_verdict(demand)}: {cell}, {demand['measure']} {demand['value']:.2f} (at least {demand['least']:g}"
        + (")" if demand["aim"] is None else f", aim {demand['aim']:g})")
        for cell, entry in result["cells"].items()
        for demand in entry.get("demands", [])
    ]
    verdicts += [f"{'PASS' if held else 'FAIL'}: {name} ({what})" for name, (held, what) in checks(result).items()]
    return "\n".join([header_lines({**result, "model": None}), *lines, "", columns(rows), "", *verdicts])


def _verdict(demand: dict[str, Any]) -> str:
    return "FAIL" if not demand["held"] else "AIM " if demand["aim_reached"] else "PASS"


def _summary(found: dict[str, Any]) -> Summary:
    return Summary(found["median"], found["low"], found["high"], tuple(found["samples"]))


def markdown(results: Sequence[dict[str, Any]]) -> str:
    """Results of several models as one table, and the types of one model against its Q4_0."""
    lines = [
        "| model | cell | tandem | llama.cpp | ik_llama.cpp | OpenVINO | over the best | of ideal | demanded |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        model = result["model"]
        for cell, entry in result["cells"].items():
            rates = [entry["engines"].get(name) for name in (OURS, "llama.cpp", "ik_llama.cpp", "openvino")]
            shown = [f"{rate['median']:.3g}" if rate else "-" for rate in rates]
            ratio = f"{entry['ratios'][entry['best_peer']]:.2f} x" if "ratios" in entry else "-"
            share = f"{entry['of_ideal'][OURS]:.2f}" if OURS in entry.get("of_ideal", {}) else "-"
            demands = entry.get("demands", [])
            missed = [f"{d['measure']} {d['value']:.2f} < {d['least']:g}" for d in demands if not d["held"]]
            verdict = "; ".join(missed) or ("held" if demands else "-")
            name = f"{model['name'].removeprefix('synthetic-')} {model['type']}"
            label = (
                cell
                if not cell.startswith("decode") or result["work"]["prompt"] < 1024
                else f"{cell} at {result['work']['prompt']}"
            )
            lines.append(f"| {name} | {label} | {' | '.join(shown)} | {ratio} | {share} | {verdict} |")
    types = list(_types(results))
    if types:
        lines += ["", "| model | type | cell | over our Q4_0 | at least | aim |", "|---|---|---|---|---|---|", *types]
    return "\n".join(lines)


def _types(results: Sequence[dict[str, Any]]) -> Iterable[str]:
    """Lines for each result whose model is there in Q4_0 too; rates of other runs, so ceilings may have moved."""
    plain = {(r["model"]["name"], r["work"]["prompt"]): r for r in results if r["model"]["type"] == "Q4_0"}
    for result in results:
        model = result["model"]
        other = plain.get((model["name"], result["work"]["prompt"]))
        if other is None or model["type"] not in TYPES:
            continue
        least, aim = TYPES[model["type"]]
        for cell, entry in result["cells"].items():
            counts = cell == "prefill" or (cell.startswith("decode ") and int(cell.split()[1]) >= 16)
            if counts and OURS in entry["engines"] and OURS in other["cells"].get(cell, {"engines": {}})["engines"]:
                ratio = entry["engines"][OURS]["median"] / other["cells"][cell]["engines"][OURS]["median"]
                name = model["name"].removeprefix("synthetic-")
                yield f"| {name} | {model['type']} | {cell} | {ratio:.2f} | {least} | {aim} |"


if __name__ == "__main__":
    print(markdown([json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:]]))
