"""Mean negative log-likelihood of the held-out tales under the story model: transformers, float32, from bf16 weights.

    python tests/golden/make_perplexity_golden.py ../shared/models/tandem-stories-22m

Needs torch and transformers; writes tests/golden/perplexity.json. The text is split into windows of at most
1,024 tokens, each run by itself after BOS; BOS is not counted.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

TESTS = Path(__file__).parent.parent
WINDOW = 1024
BOS = 2


def main() -> None:
    folder = sys.argv[1]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = (TESTS / "data" / "held_out_tales.txt").read_text(encoding="utf-8")
    ids = tokenizer(text, add_special_tokens=False).input_ids
    windows = [ids[start : start + WINDOW] for start in range(0, len(ids), WINDOW)]
    total = 0.0
    with torch.no_grad():
        for window in windows:
            logits = model(torch.tensor([[BOS, *window]])).logits[0, :-1].double()
            total += torch.nn.functional.cross_entropy(logits, torch.tensor(window), reduction="sum").item()
    golden = {"tokens": len(ids), "windows": len(windows), "mean_nll": total / len(ids)}
    (TESTS / "golden" / "perplexity.json").write_text(json.dumps(golden, indent=2) + "\n")
    print(golden)


if __name__ == "__main__":
    main()
