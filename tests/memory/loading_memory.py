"""Run in a process of its own: loads a model and prints the most memory that it held on the way.

python loading_memory.py MODEL → JSON {packed, anonymous, mapped}, in bytes; the last two are the largest growth of
that kind of memory seen after any block
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tandem.engine.build import EngineConfig, plan_engine
from tandem.weights.open import open_checkpoint


def resident() -> tuple[int, int]:
    """Bytes of anonymous memory and of mapped files that the process holds."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    anonymous, mapped = (int(status[key].split()[0]) * 1024 for key in ("RssAnon", "RssFile"))
    return anonymous, mapped


def main(model: str) -> None:
    planned = plan_engine(open_checkpoint(Path(model)), EngineConfig(max_sequences=1, context=256))
    before = resident()
    peak = before

    def progress(done: int, blocks: int) -> None:
        nonlocal peak
        now = resident()
        peak = max(peak[0], now[0]), max(peak[1], now[1])

    engine = planned.load([], progress=progress)
    packed = sum(need.weights for need in planned.plan.devices)
    print(json.dumps({"packed": packed, "anonymous": peak[0] - before[0], "mapped": peak[1] - before[1]}))
    engine.executor.close()


if __name__ == "__main__":
    main(sys.argv[1])
