"""The comparison script, run for real on the smallest model, without llama.cpp."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from paths import REPO, SHARED

MODEL = SHARED / "data/models/TinyStories-656K/TinyStories-656K-Q8_0.gguf"


def test_it_measures_tandem_and_says_what_it_skipped(tmp_path: Path) -> None:
    script = [sys.executable, REPO / "benchmarks/compare_llama_cpp.py", "--model", MODEL, "--output", tmp_path]
    sizes = ["--rounds", "1", "--prompt-tokens", "24", "--new-tokens", "8", "--threads", "1"]
    done = subprocess.run([*script, *sizes], capture_output=True, text=True, check=True)
    assert "llama.cpp was not measured: no --llama-bin was given" in done.stdout
    result = json.loads((tmp_path / f"compare-llama-cpp-{MODEL.stem}.json").read_text())
    assert result["skipped"] == {"llama.cpp": "no --llama-bin was given"}
    assert result["results"].keys() == {"tandem"}
    for summary in result["results"]["tandem"].values():
        assert 0 < summary["low"] <= summary["median"] <= summary["high"]
    # The output matrix, two layers and the last norm; the file is little more.
    assert 0.9 * 698_880 < result["model"]["weight_bytes_per_token"] < result["model"]["bytes"]
    assert str(SHARED) not in json.dumps(result)
