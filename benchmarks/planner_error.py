"""How far the planner's predictions are off: 20 (placement, workload) pairs, drawn before anything is measured.

    python benchmarks/planner_error.py --devices cpu,vulkan:0 --model gemma3-1b --seconds 600 --out FILE.json

One run profiles the devices, predicts every pair and runs it; nothing is fitted on the pairs. MODEL is a file, or one
of Gemma 3's shapes with random weights. On a CPU, where neighbours take bandwidth and cores, a probe that reads and
multiplies runs beside the profile and beside every pair, and predictions are multiplied by how much slower it was; both
errors are told. Pairs that no longer fit into --seconds are left out, and named.
"""

from __future__ import annotations

import argparse
import random
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from tandem import _native
from tandem.bench.placing import measure_placement, workload_config
from tandem.bench.report import columns, run_header, source_checkout, write_result
from tandem.bench.synthetic import GEMMA3, synthetic_checkpoint
from tandem.devices.cpu.threads import default_threads
from tandem.engine.build import EngineConfig
from tandem.engine.placing import Site, find_site, obtain_profile, predict_site, with_config
from tandem.errors import TandemError
from tandem.models.open import model_spec
from tandem.pipeline.devices import described
from tandem.pipeline.workload import Workload
from tandem.weights.open import open_checkpoint
from tandem.weights.tensor import TensorType

PAIRS = 20


def draw_pairs(seed: int, devices: list[str], context: int) -> list[tuple[str, Workload]]:
    """From the seed and the devices' names alone."""
    draw = random.Random(seed)
    first, second = devices[0], devices[-1]
    pairs: list[tuple[str, Workload]] = []
    while len(pairs) < PAIRS:
        batch = draw.choice((1, 2, 4, 8, 16))
        prompt = draw.choice((16, 32, 64, 128, 256))
        new = draw.choice((8, 16, 32))
        one, other = draw.sample((first, second), 2) if len(devices) > 1 else (first, first)
        kind = draw.choice(("single", "single", "attn|ffn", "columns", "layers")) if one != other else "single"
        m = draw.choice((2, 3, 4))
        ratio, share = draw.choice((0.2, 0.35, 0.5, 0.65, 0.8)), draw.choice((0.25, 0.5, 0.75))
        if prompt + new + 48 > context:
            continue
        text = {
            "single": one,
            "attn|ffn": f"attn={one},ffn={other},m={m}",
            "columns": f"ffn={one}+{other},ratio={ratio}",
            "layers": f"first={one},rest={other},layers={{layers:{share}}},m=2",
        }[kind]
        pairs.append((text, Workload(batch, prompt, new, 256)))
    return pairs


def with_layers(text: str, layers: int) -> str:
    """The text with a share of the layers as a number."""
    if "{layers:" not in text:
        return text
    before, _, rest = text.partition("{layers:")
    share, _, after = rest.partition("}")
    return f"{before}{min(max(1, round(float(share) * layers)), layers - 1)}{after}"


def probe(seconds: float = 0.15) -> float:
    """Work per second of reading and multiplying, on all threads; what neighbours leave of the machine."""
    isa, threads = _native.choose_isa(""), default_threads()
    read = _native.read_rate(isa, threads, 64 << 20, seconds)
    return (read / 1e9) ** 0.5 * (_native.multiply_rates(isa, threads, seconds)["int8"] / 1e9) ** 0.5


def measure(site: Site, pairs: list[tuple[str, Workload]], args: argparse.Namespace, save: Any) -> dict[str, Any]:
    begin = time.perf_counter()
    beside = probe()
    profile, _ = obtain_profile(site, remeasure=True, folder=args.out.parent / "planner-error-cache")
    beside = (beside + probe()) / 2
    found: dict[str, Any] = {
        "model": site.spec.name,
        "devices": dict(site.names),
        "seed": args.seed,
        "profile_s": profile.seconds,
        "probe": beside,
        "pairs": [],
    }
    print(f"profile: {profile.seconds:.1f} s", flush=True)
    predicted = []
    for text, workload in pairs:
        there = with_config(site, workload_config(workload, site.spec, site.config))
        text = with_layers(text, site.spec.layers)
        try:
            with there.devices() as devices:
                (candidate,) = predict_site(there, profile, workload, devices, [text])
            predicted.append((there, text, workload, candidate.prediction.seconds, candidate.refused))
        except TandemError as error:
            predicted.append((there, text, workload, 0.0, str(error)))
    for there, text, workload, seconds, refused in predicted:
        entry: dict[str, Any] = {
            "placement": text, "batch": workload.batch, "prompt": workload.prompt, "new": workload.new,
            "predicted_s": seconds,
        }  # fmt: skip
        found["pairs"].append(entry)
        if refused:
            entry["left_out"] = refused
        elif time.perf_counter() - begin + 3 * seconds > args.seconds:
            entry["left_out"] = f"no time was left of {args.seconds:.0f} s"
        else:
            try:
                before = probe()
                ran = measure_placement(there.checkpoint, there.config, workload, text, rounds=args.rounds)
                slowed = beside / ((before + probe()) / 2)
                best = min(run.seconds for run in ran.runs)
                entry |= {
                    "measured_s": best,
                    "error": seconds / best - 1,
                    "slowed": slowed,
                    "normalized_error": seconds * slowed / best - 1,
                }
            except TandemError as error:
                entry["left_out"] = str(error)
        print(entry, flush=True)
        save(found)
    return found


def summarize(found: dict[str, Any]) -> None:
    """Adds the median and the worst of both errors."""
    for key in ("error", "normalized_error"):
        errors = [abs(pair[key]) for pair in found["pairs"] if key in pair]
        if errors:
            found[f"median_{key}"], found[f"worst_{key}"] = statistics.median(errors), max(errors)


def table(found: dict[str, Any]) -> str:
    rows = [("placement", "batch", "prompt", "new", "predicted s", "measured s", "error", "normalized")]
    for pair in found["pairs"]:
        head = (
            pair["placement"],
            *(str(pair[key]) for key in ("batch", "prompt", "new")),
            f"{pair['predicted_s']:.3f}",
        )
        if "error" in pair:
            rows.append(
                (*head, f"{pair['measured_s']:.3f}", f"{pair['error']:+.1%}", f"{pair['normalized_error']:+.1%}")
            )
        else:
            rows.append((*head, "left out", "", ""))
    lines = [columns(rows)]
    if "median_error" in found:
        lines.append(
            f"median error {found['median_error']:.1%}, worst {found['worst_error']:.1%}; normalized by the probe "
            f"{found['median_normalized_error']:.1%}, {found['worst_normalized_error']:.1%}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gemma3-1b", help="a file, or one of " + ", ".join(GEMMA3))
    parser.add_argument("--type", default="Q4_0", choices=[kind.name for kind in TensorType])
    parser.add_argument("--devices", default="cpu,vulkan:0", help="one, or two that placements share")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=20261122)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=600.0, help="for everything, about")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/planner-error.json"))
    args = parser.parse_args()
    devices = [name.strip() for name in args.devices.split(",")]
    result: dict[str, Any] = run_header(source_checkout(), shlex.join(["python", *sys.argv]))
    if args.model in GEMMA3:
        checkpoint = synthetic_checkpoint(args.model, GEMMA3[args.model], TensorType[args.type])
    else:
        checkpoint = open_checkpoint(args.model)
    spec = model_spec(checkpoint)
    pairs = draw_pairs(args.seed, devices, spec.context)
    site = find_site(checkpoint, spec, EngineConfig(threads=args.threads), described(devices, args.threads))

    def save(found: dict[str, Any]) -> None:
        summarize(found)
        write_result(args.out, {**result, **found})

    found = measure(site, pairs, args, save)
    save(found)
    print(table(found))


if __name__ == "__main__":
    main()
