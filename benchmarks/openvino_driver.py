"""Measures OpenVINO GenAI; run by compare_engines.py under an interpreter that has `openvino_genai`.

    python openvino_driver.py MODEL.gguf '{"threads": 2, "prefill": 512, "batches": [1, 8], "prompt": 16, "new": 32}'

Prints one JSON line: rates in tokens per second by cell, and the version. Prompts are random tokens, each is new, and
the prefix cache is off; but "copied" sequences share one prompt, whose pages each of them reads. Keys and values are
float16, which is not OpenVINO's default on a CPU.
"""

import json
import statistics
import sys
import time

import numpy as np
import openvino as ov
import openvino_genai as genai


def main() -> None:
    model, work = sys.argv[1], json.loads(sys.argv[2])
    scheduler = genai.SchedulerConfig()
    scheduler.enable_prefix_caching = work["copied"]
    scheduler.dynamic_split_fuse = False
    positions = max([work["prefill"] or 1, *(batch * (work["prompt"] + work["new"]) for batch in work["batches"])])
    # All prompts in one step, but where they are long and the same.
    together = 1 if work["copied"] else max(work["batches"], default=1)
    scheduler.max_num_batched_tokens = max(work["prefill"] or 1, together * work["prompt"])
    scheduler.max_num_seqs = max(work["batches"], default=1)
    scheduler.num_kv_blocks = positions // 32 + 4 * scheduler.max_num_seqs + 64
    pipeline = genai.LLMPipeline(
        model, "CPU", scheduler_config=scheduler, INFERENCE_NUM_THREADS=work["threads"], KV_CACHE_PRECISION="f16"
    )
    draw = np.random.default_rng()
    shared = draw.integers(0, work["vocab"], size=work["prompt"])

    def run(batch: int, prompt: int, new: int) -> tuple[float, list[float]]:
        """Seconds until all is there, and when each step's tokens were, in ms."""
        ids = draw.integers(0, work["vocab"], size=(batch, prompt)).astype(np.int64)
        if work["copied"] and prompt == work["prompt"]:
            ids[:] = shared
        config = genai.GenerationConfig(max_new_tokens=new, min_new_tokens=new, ignore_eos=True, do_sample=False)
        start = time.perf_counter()
        done = pipeline.generate(genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids))), config)
        seconds = time.perf_counter() - start
        if [len(tokens) for tokens in done.tokens] != [new] * batch:
            raise SystemExit("OpenVINO GenAI computed another number of tokens than was asked for")
        return seconds, done.perf_metrics.raw_metrics.m_new_token_times

    rates = {}
    run(1, work["prefill"] or min(work["prompt"], 512), 2)  # warm-up
    if work["prefill"]:
        seconds = [run(1, work["prefill"], 1)[0] for _ in range(work["repeats"])]
        rates["prefill"] = work["prefill"] / statistics.median(seconds)
    if work["copied"]:
        run(1, work["prompt"], 1)
    for batch in work["batches"]:
        # Steps of prompts come first; the last ones are of all sequences.
        times = run(batch, work["prompt"], work["new"] + 1)[1][-work["new"] - 1 :]
        rates[f"decode {batch}"] = batch * (len(times) - 1) / (times[-1] - times[0]) * 1e3
    print(json.dumps({"rates": rates, "about": f"openvino-genai {genai.__version__}, KV f16"}))


if __name__ == "__main__":
    main()
