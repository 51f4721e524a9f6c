"""Two processors in tandem on Gemma 3's shapes: attention | FFN and shared columns, against the best single device.

    python benchmarks/pipeline_shapes.py --devices cpu,vulkan:0 --models gemma3-1b,gemma3-4b --seconds 900 --out PREFIX

Weights are random and made in memory. For every model: a profile, then prefill, decode with 8, 32 and 64 sequences, and
decode after a long prompt; for each of these the single devices, the best attention | FFN and the best column split by
prediction, all really run. PREFIX.json has lanes' busy and idle time and what handing over took; PREFIX-….svg shows a
step's lanes as they ran. Whichever way it falls. Cases that no longer fit into --seconds are left out, and named.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tandem.bench.gantt import Panel, measured_bars, predicted_bars, write_gantt
from tandem.bench.placing import measure_placement, workload_config
from tandem.bench.report import columns, run_header, source_checkout, write_result
from tandem.bench.synthetic import GEMMA3, synthetic_checkpoint
from tandem.engine.build import EngineConfig
from tandem.engine.placing import Site, find_site, obtain_profile, predict_site, with_config
from tandem.errors import TandemError
from tandem.models.open import model_spec
from tandem.pipeline.devices import described
from tandem.pipeline.planner import Candidate
from tandem.pipeline.probe import FULL, QUICK
from tandem.pipeline.profile import Profile
from tandem.pipeline.workload import Workload
from tandem.weights.checkpoint import Checkpoint
from tandem.weights.open import open_checkpoint
from tandem.weights.tensor import TensorType


def cases(args: argparse.Namespace) -> dict[str, Workload]:
    found = {"prefill": Workload(1, args.prefill, 1, 512)}
    for batch in (8, 32, 64):
        found[f"decode {batch}"] = Workload(batch, 16, args.new, 512)
    found["long context"] = Workload(8, args.long, args.new, 512)
    return found


def choose(candidates: list[Candidate]) -> list[Candidate]:
    """All single devices, and the best of each way to share by prediction."""
    fitting = [each for each in candidates if each.plan is not None]
    chosen = [each for each in fitting if each.single]
    for start in ("attn=", "ffn="):
        chosen += [each for each in fitting if each.text.startswith(start)][:1]
    return chosen


def run_case(
    site: Site, profile: Profile, name: str, workload: Workload, args: argparse.Namespace, end: float
) -> dict[str, Any]:
    with site.devices() as devices:
        candidates = choose(predict_site(site, profile, workload, devices))
    entry: dict[str, Any] = {"case": name, "workload": asdict(workload), "runs": []}
    panels: list[Panel] = []
    for candidate in candidates:
        expected = candidate.prediction.seconds
        run: dict[str, Any] = {"placement": candidate.text, "predicted_s": expected}
        entry["runs"].append(run)
        if time.perf_counter() + 3 * expected > end:
            run["left_out"] = "no time was left"
            continue
        try:
            ran = measure_placement(site.checkpoint, site.config, workload, candidate.text, rounds=args.rounds)
        except TandemError as error:
            run["left_out"] = str(error)
            continue
        best = min(each.seconds for each in ran.runs)
        tokens = workload.prompt if name == "prefill" else workload.batch * workload.new
        spent = best if name == "prefill" else ran.decode_s
        lanes = {
            lane: {**asdict(each), "busy": each.busy_seconds / ran.times.seconds}
            for lane, each in ran.times.lanes.items()
        }
        run |= {
            "seconds": best, "tokens_per_s": tokens / max(spent, 1e-9), "prefill_s": ran.prefill_s,
            "decode_s": ran.decode_s, "lanes": lanes, "lane_seconds": ran.times.seconds,
        }  # fmt: skip
        step = ran.prefill if name == "prefill" else ran.decode
        cost = candidate.prediction.prefill if name == "prefill" else candidate.prediction.decode
        if step is not None and not candidate.single:
            panels.append(Panel(f"{candidate.text}, as it ran", measured_bars(site.spec, step)))
            if cost is not None:
                panels.append(Panel(f"{candidate.text}, predicted", predicted_bars(cost.spans)))
        print(f"{name}: {candidate.text}: {run['tokens_per_s']:,.1f} tokens/s", flush=True)
    if panels:
        picture = args.out.with_name(f"{args.out.name}-{site.checkpoint.path.name}-{name.replace(' ', '-')}.svg")
        write_gantt(picture, f"{site.spec.name}, {name}", panels)
        entry["picture"] = picture.name
    return entry


def table(model: dict[str, Any]) -> str:
    rows = [("case", "placement", "tokens/s", "to the best single", "lanes busy", "handing over us")]
    for entry in model["cases"]:
        ran = [run for run in entry["runs"] if "seconds" in run]
        singles = [run["tokens_per_s"] for run in ran if "=" not in run["placement"]]
        for run in entry["runs"]:
            if "seconds" not in run:
                rows.append((entry["case"], run["placement"], "left out", "", "", ""))
                continue
            ratio = f"{run['tokens_per_s'] / max(singles):.2f}" if singles else ""
            busy = ", ".join(f"{lane} {each['busy']:.0%}" for lane, each in run["lanes"].items())
            hand = [each for each in run["lanes"].values() if each["hand_overs"]]
            took = sum(each["hand_over_seconds"] for each in hand) / max(1, sum(each["hand_overs"] for each in hand))
            rows.append(
                (entry["case"], run["placement"], f"{run['tokens_per_s']:,.1f}", ratio, busy, f"{took * 1e6:.0f}")
            )
    return columns(rows)


def open_model(name: str, args: argparse.Namespace) -> Checkpoint:
    if name not in GEMMA3:
        return open_checkpoint(name)
    shape = replace(GEMMA3[name], layers=args.layers or GEMMA3[name].layers)
    return synthetic_checkpoint(name, shape, TensorType[args.type])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="gemma3-1b,gemma3-4b", help="shapes of Gemma 3, or files")
    parser.add_argument("--type", default="Q4_0", choices=[kind.name for kind in TensorType])
    parser.add_argument("--devices", default="cpu,vulkan:0", help="two: cpu,vulkan:0 or vulkan:0,vulkan:1")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--quick", action="store_true", help="a quick profile, for a trial")
    parser.add_argument("--layers", type=int, help="only so many, for a trial")
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--long", type=int, default=2048, help="tokens of the long prompts")
    parser.add_argument("--new", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=900.0, help="for everything, about")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/pipeline-shapes"))
    args = parser.parse_args()
    end = time.perf_counter() + args.seconds
    result: dict[str, Any] = run_header(source_checkout(), shlex.join(["python", *sys.argv]))
    result["models"] = {}
    for name in args.models.split(","):
        checkpoint = open_model(name, args)
        spec = model_spec(checkpoint)
        names = described([each.strip() for each in args.devices.split(",")], args.threads)
        site = find_site(checkpoint, spec, EngineConfig(threads=args.threads), names)
        effort = QUICK if args.quick else FULL
        profile, _ = obtain_profile(site, effort, remeasure=True, folder=args.out.parent / "pipeline-shapes-cache")
        model: dict[str, Any] = {"devices": dict(names), "profile_s": profile.seconds, "cases": []}
        result["models"][name] = model
        for case, workload in cases(args).items():
            there = with_config(site, workload_config(workload, spec, site.config))
            try:
                model["cases"].append(run_case(there, profile, case, workload, args, end))
            except TandemError as error:
                model["cases"].append({"case": case, "workload": asdict(workload), "runs": [], "error": str(error)})
            write_result(args.out.with_suffix(".json"), result)
        print(f"{name}\n{table(model)}", flush=True)


if __name__ == "__main__":
    main()
