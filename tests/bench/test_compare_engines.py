"""The comparison of engines, run for real on the smallest model, alone and with stand-ins for the others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from paths import REPO, SHARED

MODEL = SHARED / "data/models/TinyStories-656K/TinyStories-656K-Q8_0.gguf"
SIZES = ["--batch", "1,2,5", "--prefill", "24", "--prompt-tokens", "8", "--new-tokens", "4", "--threads", "1"]
# What llama.cpp's programs print; the rate of decoding falls from 2 sequences to 5.
BENCH = """#!{python}
import json, sys
tokens = int(sys.argv[sys.argv.index("-p") + 1])
about = dict(build_number=1, build_commit="abc")
print(json.dumps([dict(n_prompt=tokens, n_threads=1, type_k="f16", samples_ts=[7.0], **about)]))
"""
BATCHED = """#!{python}
import sys
ik = "-rtr" in sys.argv
for size in sys.argv[sys.argv.index("-npl") + 1].split(","):
    rate = {{"1": 10.0, "2": 20.0, "5": 15.0}}[size] * (2 if ik else 1)
    if ik:
        print("|     8 |      4 | %4s |     24 |    0.388 |    41.21 |    0.484 | %8.2f |    0.873 |    27.51 |"
              % (size, rate), file=sys.stderr)
    else:
        print('{{"pp": 8, "tg": 4, "pl": %s, "speed_tg": %f}}' % (size, rate))
"""
COMPLETION = """#!{python}
print("text")
"""


def command(output: Path, *more: object) -> list[str]:
    script = [sys.executable, str(REPO / "benchmarks/compare_engines.py"), "--model", str(MODEL)]
    return [*script, "--output", str(output), *SIZES, *map(str, more)]


def compare(output: Path, *more: object) -> tuple[str, dict[str, Any]]:
    done = subprocess.run(command(output, *more), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = (output / f"compare-engines-{MODEL.stem}.json").read_text()
    assert str(SHARED) not in text
    assert str(output) not in text
    return done.stdout, json.loads(text)


def stand_in(path: Path, program: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(program.format(python=sys.executable))
    path.chmod(0o755)
    return path


@pytest.fixture
def others(tmp_path: Path) -> list[object]:
    for folder in ("llama", "ik"):
        stand_in(tmp_path / folder / "llama-bench", BENCH)
        stand_in(tmp_path / folder / "llama-batched-bench", BATCHED)
    stand_in(tmp_path / "llama/llama-completion", COMPLETION)
    return ["--llama-bin", tmp_path / "llama", "--ik-bin", tmp_path / "ik"]


def test_alone(tmp_path: Path) -> None:
    shown, result = compare(tmp_path, "--rounds", 1)
    for name, option in (
        ("llama.cpp", "--llama-bin"), ("ik_llama.cpp", "--ik-bin"), ("openvino", "--openvino-python"),
    ):  # fmt: skip
        assert f"{name} was not measured: no {option} was given" in shown
    assert result["cells"].keys() == {"prefill", "decode 1", "decode 2", "decode 5"}
    for entry in result["cells"].values():
        assert entry["engines"].keys() == {"tandem"}
        rate = entry["engines"]["tandem"]["median"]
        assert entry["of_ideal"]["tandem"] == pytest.approx(rate / entry["ideal_tokens_per_s"])
    assert len(result["ceilings"]) == 2
    # The output matrix, two layers and the last norm; the file is little more.
    assert 0.9 * 698_880 < result["model"]["weight_bytes_per_step"] < result["model"]["bytes"]
    assert "each batch at least 0.95 x" in shown


def test_beside_others(tmp_path: Path, others: list[object]) -> None:
    shown, result = compare(tmp_path, "--rounds", 2, "--cold", *others, "--openvino-python", stand_in(
        tmp_path / "python", "#!{python}\nraise SystemExit('no such architecture')\n"
    ))  # fmt: skip
    assert result["skipped"] == {"openvino": "python failed: no such architecture"}
    order = [(turn["round"], turn["engine"]) for turn in result["turns"]]
    names = ["tandem", "llama.cpp", "ik_llama.cpp"]
    assert order == [(0, name) for name in names] + [(1, name) for name in names[::-1]]
    cell = result["cells"]["decode 5"]
    assert cell["engines"]["llama.cpp"]["samples"] == [15, 15]
    assert cell["engines"]["ik_llama.cpp"]["samples"] == [30, 30]
    assert cell["best_peer"] == "ik_llama.cpp"
    ours = cell["engines"]["tandem"]["median"]
    assert cell["ratios"] == pytest.approx({"llama.cpp": ours / 15, "ik_llama.cpp": ours / 30})
    assert result["cells"]["cold"]["engines"].keys() == {"tandem", "llama.cpp"}
    demands = {demand["measure"]: demand for demand in result["cells"]["prefill"]["demands"]}
    assert demands["llama.cpp"]["value"] == result["cells"]["prefill"]["engines"]["tandem"]["median"] / 7
    assert demands["llama.cpp"]["held"] == (demands["llama.cpp"]["value"] >= 2)
    assert "x ik_llama.cpp" in shown


def test_an_interrupted_run_goes_on(tmp_path: Path, others: list[object]) -> None:
    compare(tmp_path, "--rounds", 1, *others)
    path = tmp_path / f"compare-engines-{MODEL.stem}.json"
    stopped = json.loads(path.read_text())
    stopped["turns"][0]["rates"]["prefill"] = 123.0
    stopped["turns"] = stopped["turns"][:1]
    path.write_text(json.dumps(stopped))
    _, result = compare(tmp_path, "--rounds", 1, "--resume", *others)
    assert [turn["engine"] for turn in result["turns"]] == ["tandem", "llama.cpp", "ik_llama.cpp"]
    assert result["cells"]["prefill"]["engines"]["tandem"]["samples"] == [123.0]
    refused = subprocess.run(
        command(tmp_path, "--rounds", 1, "--resume", "--new-tokens", 5), capture_output=True, text=True
    )
    assert refused.returncode == 1
    assert "of another work" in refused.stderr


def test_an_engine_that_measures_something_else_is_left_out(tmp_path: Path, others: list[object]) -> None:
    stand_in(tmp_path / "llama/llama-batched-bench", BATCHED.replace('"pl": %s', '"pl": 1%s'))
    _, result = compare(tmp_path, "--rounds", 1, *others)
    assert "decoded batches of [11, 12, 15], not of [1, 2, 5]" in result["skipped"]["llama.cpp"]
    assert "llama.cpp" not in result["cells"]["prefill"]["engines"]


def test_table(tmp_path: Path, others: list[object]) -> None:
    compare(tmp_path, "--rounds", 1, *others)
    path = tmp_path / f"compare-engines-{MODEL.stem}.json"
    result = json.loads(path.read_text())
    prefill = result["cells"]["prefill"]["engines"]["tandem"]
    result["model"]["type"] = "Q4_0"
    prefill["median"] *= 2
    path.with_name("other.json").write_text(json.dumps(result))
    script = [
        sys.executable,
        str(REPO / "benchmarks/compare_engines.py"),
        "--table",
        path,
        path.with_name("other.json"),
    ]
    lines = subprocess.run(script, capture_output=True, text=True, check=True).stdout.splitlines()
    assert sum("| decode 5 |" in line for line in lines) == 2
    assert lines[-1].endswith("| Q8_0 | prefill | 0.50 | 0.9 | 0.95 |")
