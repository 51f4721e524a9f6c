"""The batch comparison, run for real on the smallest model, without llama.cpp and with a stand-in for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from paths import REPO, SHARED

MODEL = SHARED / "data/models/TinyStories-656K/TinyStories-656K-Q8_0.gguf"
# Prints what `llama-batched-bench --output-format jsonl` does; its rate falls from 2 sequences to 5.
STAND_IN = """#!{python}
import sys
sizes = sys.argv[sys.argv.index("-npl") + 1].split(",")
for size in sizes:
    print()
    print('{{"pp": 8, "tg": 4, "pl": %s, "speed_tg": %f}}' % (size, {{"1": 10, "2": 20, "5": 15}}[size]))
"""


def compare(output: Path, *more: object) -> tuple[str, dict[str, Any]]:
    script = [sys.executable, REPO / "benchmarks/compare_batches_llama_cpp.py", "--model", MODEL, "--output", output]
    sizes = ["--batch", "1,2,5", "--prompt-tokens", "8", "--new-tokens", "4", "--threads", "1"]
    done = subprocess.run([*script, *sizes, *map(str, more)], capture_output=True, text=True, check=True)
    text = (output / f"compare-batches-llama-cpp-{MODEL.stem}.json").read_text()
    assert str(SHARED) not in text
    return done.stdout, json.loads(text)


def test_alone(tmp_path: Path) -> None:
    shown, result = compare(tmp_path, "--rounds", 1)
    assert "llama.cpp was not measured: no --llama-bin was given" in shown
    assert result["decode_tokens_per_s"].keys() == {"tandem"}
    rates = [result["decode_tokens_per_s"]["tandem"][size]["median"] for size in ("1", "2", "5")]
    least = min(rates[1] / rates[0], rates[2] / max(rates[:2]))
    (check,) = result["checks"].values()
    assert check["passed"] == (least >= 0.95)
    assert ("PASS: each batch" in shown) == check["passed"]


def test_beside_another(tmp_path: Path) -> None:
    stand_in = tmp_path / "llama-batched-bench"
    stand_in.write_text(STAND_IN.format(python=sys.executable))
    stand_in.chmod(0o755)
    shown, result = compare(tmp_path, "--rounds", 2, "--llama-bin", tmp_path)
    assert result["skipped"] == {}
    llama = result["decode_tokens_per_s"]["llama.cpp"]
    assert {size: summary["samples"] for size, summary in llama.items()} == {
        "1": [10, 10],
        "2": [20, 20],
        "5": [15, 15],
    }
    assert result["of_best_smaller"]["llama.cpp"] == {"2": 2.0, "5": 0.75}
    assert "tandem / llama.cpp" in shown
    assert str(tmp_path) not in json.dumps(result)
