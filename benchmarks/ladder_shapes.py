"""`tandem bench ladder` on Gemma 3's shapes with random weights made in memory: no file is needed.

    python benchmarks/ladder_shapes.py --model gemma3-27b --devices vulkan:0 --rounds 1 --out FILE.json

See `tandem.bench.ladder` for what the rungs are.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from tandem.bench.ladder import ROUNDS, ladder_table, run_ladder
from tandem.bench.placing import workload_config
from tandem.bench.report import run_header, source_checkout, write_result
from tandem.bench.synthetic import GEMMA3, synthetic_checkpoint
from tandem.engine.build import EngineConfig
from tandem.engine.placing import find_site, obtain_profile, with_config
from tandem.models.open import model_spec
from tandem.pipeline.devices import described
from tandem.pipeline.probe import FULL, QUICK
from tandem.pipeline.workload import Workload
from tandem.weights.tensor import TensorType


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gemma3-27b", choices=list(GEMMA3))
    parser.add_argument("--type", default="Q4_0", choices=[kind.name for kind in TensorType])
    parser.add_argument("--devices", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--batch", type=int, default=2, help="prompts")
    parser.add_argument("--prompt", type=int, default=4, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=2, help="tokens of each answer")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--quick", action="store_true", help="a quick profile")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/ladder-shapes.json"))
    args = parser.parse_args()
    result: dict[str, Any] = run_header(source_checkout(), shlex.join(["python", *sys.argv]))
    checkpoint = synthetic_checkpoint(args.model, GEMMA3[args.model], TensorType[args.type])
    spec = model_spec(checkpoint)
    names = described([each.strip() for each in args.devices.split(",")], args.threads)
    workload = Workload(args.batch, args.prompt, args.new, max(256, args.batch))
    site = find_site(checkpoint, spec, EngineConfig(threads=args.threads), names)
    site = with_config(site, workload_config(workload, spec, site.config))
    profile, _ = obtain_profile(site, QUICK if args.quick else FULL)
    found = run_ladder(site, profile, workload, lambda what: print(what, flush=True), args.rounds)
    write_result(args.out, {**result, **found})
    print(ladder_table(found))


if __name__ == "__main__":
    main()
