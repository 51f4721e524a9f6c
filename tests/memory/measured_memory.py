"""Run in a process of its own: loads a model, touches all of its KV cache, runs the largest steps, and prints what the
process has grown by.

python measured_memory.py MODEL CONTEXT SEQUENCES ROWS → JSON {planned, grown}, in bytes
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tandem.engine.build import EngineConfig, plan_engine
from tandem.engine.request import Request
from tandem.engine.sampling_params import SamplingParams
from tandem.weights.open import open_checkpoint


def anonymous_bytes() -> int:
    """Resident anonymous memory; the mapped model file is not part of it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the kernel does not say RssAnon")


def main(model: str, context: int, sequences: int, rows: int) -> None:
    config = EngineConfig(max_sequences=sequences, full_sequences=sequences, context=context, rows=rows)
    planned = plan_engine(open_checkpoint(Path(model)), config)
    before = anonymous_bytes()
    engine = planned.load([])
    for pool in engine.cache.pools:
        for page in range(1, pool.pages):
            pool.copy_page(0, page)
    # Full chunks, a full batch, every kind of sampling, and scored prompts: they fill the logits.
    for k in range(sequences):
        params = SamplingParams(
            max_tokens=4, ignore_eos=True, temperature=k % 2, top_p=0.9, repetition_penalty=1.1, prompt_logprobs=1
        )
        prompt = [(7 * i + k) % 200 + 10 for i in range(2 * rows // sequences)]
        engine.submit(Request(id=str(k), prompt=prompt, params=params))
    while not engine.idle:
        assert all(delta.error is None for delta in engine.step())
    print(json.dumps({"planned": planned.plan.total, "grown": anonymous_bytes() - before}))
    engine.executor.close()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]))
