"""Run in a process of its own, with the interposed allocator: decodes and prints what every steady step allocates.

python counted_steps.py MODEL SEQUENCES STEPS CONTROL → JSON {allocations, steps, bytes_copied, counted_by_engine,
first}, where `first` says who made the first ones. CONTROL: none, or what to allocate in one of the steps: malloc,
numpy, native, mmap.
"""

from __future__ import annotations

import ctypes
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from tandem import _native
from tandem.engine.build import EngineConfig, plan_engine
from tandem.engine.request import Request
from tandem.engine.sampling_params import SamplingParams
from tandem.weights.open import open_checkpoint

WARM_UP = 24


def control(name: str) -> object:
    """Something of at least 4 KiB."""
    if name == "malloc":
        process = ctypes.CDLL(None)
        process.malloc.restype = ctypes.c_void_p
        return process.malloc(ctypes.c_size_t(4096))
    if name == "numpy":
        return np.empty(4096, dtype=np.uint8)
    if name == "native":
        return _native.SamplerSequence(**SEQUENCE, capacity=4096)
    if name == "mmap":
        return _native.KvPool(group=0, layers=[0], kv_heads=1, head_dim=64, dtype="f16", pages=4)
    return None


SEQUENCE = {
    "vocab": 100_000, "seed": 0, "sample_index": 0, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0,
    "repetition_penalty": 1.5, "presence_penalty": 0.0, "frequency_penalty": 0.0, "min_position": 0, "logprobs": -1,
    "logit_bias": [], "stop_tokens": [], "prompt": np.zeros(1, np.int32),
}  # fmt: skip


def main(model: str, sequences: int, steps: int, what: str) -> None:
    config = EngineConfig(threads=2, max_sequences=sequences, rows=64, context=512)
    engine = plan_engine(open_checkpoint(Path(model)), config).load([])
    for k in range(sequences):
        params = SamplingParams(
            max_tokens=400, ignore_eos=True, seed=k, temperature=k % 2, top_k=k % 3 * 20, repetition_penalty=1.1
        )
        engine.submit(Request(id=str(k), prompt=[100 + k, *range(200, 210)], params=params))
    for _ in range(WARM_UP):
        engine.step()
    watch = ctypes.CDLL(None)
    before = replace(engine.counters)
    kept = []
    watch.start_counting()
    for step in range(steps):
        assert len(engine.step()) == sequences
        if step == steps // 2:
            kept.append(control(what))
    allocations = watch.stop_counting()
    first = []
    for i in range(min(allocations, 16)):
        text = ctypes.create_string_buffer(300)
        watch.describe(i, text, ctypes.c_size_t(300))
        first.append(text.value.decode())
    result = {
        "allocations": allocations,
        "steps": steps,
        "bytes_copied": engine.counters.bytes_copied - before.bytes_copied,
        "counted_by_engine": engine.counters.allocations - before.allocations,
        "first": first,
    }
    print(json.dumps(result))
    engine.executor.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
