"""`tandem bench`: what it writes, what it refuses. Figures are not looked at."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from commands import error_of, tandem

from paths import SHARED

TRACE = SHARED / "data/prompts/azure_conv_2000.csv"
PNG = b"\x89PNG\r\n\x1a\n"
SIZES = ["--batch", "1,3", "--depth", "0,20", "--prompt-tokens", "8", "--new-tokens", "3", "--rounds", "1"]


@pytest.mark.parametrize("command", [["bench"], ["bench", "throughput"]])
def test_throughput(tmp_path: Path, command: list[str]) -> None:
    result, plot = tmp_path / "result.json", tmp_path / "plot.png"
    done = tandem(*command, *SIZES, "--rows", 16, "--json", result, "--plot", plot)
    assert done.exit_code == 0, done.output
    for word in ("depth 20", "prefill tokens/s", "decode tokens/s", "mixed tokens/s", "overhead", "read bandwidth"):
        assert word in done.stdout
    written = json.loads(result.read_text())
    assert {"date", "commit", "command", "machine", "versions", "workload", "results"} <= set(written)
    assert written["engine"]["rows"] == 16
    assert [entry["batch"] for entry in written["results"]] == [1, 3, 1, 3]
    assert plot.read_bytes().startswith(PNG)


def test_only_what_is_asked_for(tmp_path: Path) -> None:
    done = tandem("bench", *SIZES, "--what", "decode", "--json", tmp_path / "result.json")
    assert done.exit_code == 0, done.output
    assert "prefill" not in done.stdout.split("depth 0")[1]
    written = json.loads((tmp_path / "result.json").read_text())
    assert all(entry.keys() == {"depth", "batch", "decode", "lanes"} for entry in written["results"])


def test_replay(tmp_path: Path) -> None:
    result, plot = tmp_path / "result.json", tmp_path / "plot.png"
    sizes = ["--requests", 6, "--speed", 100, "--sequences", 2, "--context", 256]
    done = tandem("bench", "replay", TRACE, *sizes, "--json", result, "--plot", plot)
    assert done.exit_code == 0, done.output
    for word in ("TTFT, ms", "ITL, ms", "p50", "p90", "p99", "6 requests of azure_conv_2000.csv", "overhead"):
        assert word in done.stdout
    written = json.loads(result.read_text())
    assert written["trace"] == {"file": TRACE.name, "requests": 2000, "length_factor": 256 / 7979, "speed": 100}
    assert written["replay"]["requests"] == 6
    assert written["replay"]["itl_s"]["p50"] <= written["replay"]["itl_s"]["p99"]
    assert plot.read_bytes().startswith(PNG)


def test_kernels(tmp_path: Path) -> None:
    result, plot = tmp_path / "result.json", tmp_path / "plot.png"
    sizes = ["--types", "q4_0,f16", "--rows", "1,64", "--shape", "32x64", "--attention", "2x1x32", "--depth", 32]
    done = tandem("bench", "kernels", *sizes, "--vocab", 500, "--rounds", 1, "--json", result, "--plot", plot)
    assert done.exit_code == 0, done.output
    for word in ("before:", "after:", "product 32x64", "prefill 2x1x32", "of ceiling"):
        assert word in done.stdout
    written = json.loads(result.read_text())
    assert {"date", "commit", "command", "machine", "versions", "ceilings", "results"} <= set(written)
    assert plot.read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["--batch", "1,two"], ["--batch '1,two'", "1,2,8"]),
        (["--batch", "0,1"], ["--batch '0,1'", "1 or more"]),
        (["--depth", ""], ["--depth ''", "0 or more"]),
        (["--what", "decode,dance"], ["'dance'", "prefill, decode, mixed"]),
        (["--batch", "8", "--rows", 8], ["8 rows", "beside 8 sequences"]),
        (["--depth", 2000], ["depth of 2,000", "trained for 2,048"]),
        (["--memory", "1MiB"], ["needs", "1.0 MiB may be used"]),
        (["--json", "/nowhere/x.json"], ["/nowhere/x.json cannot be written"]),
        (["kernels", "--shape", "6912"], ["--shape '6912'", "6912x1152"]),
        (["kernels", "--types", "q9"], ["no type 'Q9'", "Q4_0"]),
        (["replay", "/nowhere/trace.csv"], ["/nowhere/trace.csv cannot be read"]),
        (["replay", TRACE, "--speed", 0], ["--speed 0", "above 0"]),
        (["replay", TRACE, "--plot", "/nowhere/x.png"], ["/nowhere/x.png cannot be written"]),
        (["replay", TRACE, "-m", "/nowhere/model.gguf"], ["no model at"]),
    ],
)
def test_refusals(arguments: list[object], fragments: list[str]) -> None:
    line = error_of(tandem("bench", *arguments))
    for fragment in fragments:
        assert fragment in line


def test_plot_without_matplotlib_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    line = error_of(tandem("bench", "--plot", tmp_path / "plot.png"))
    assert "pip install 'tandem-llm[plot]'" in line


def test_a_command_that_is_none() -> None:
    result = tandem("bench", "trhoughput")
    assert result.exit_code == 2
    assert "trhoughput" in result.stderr


def test_help_lists_the_benchmarks() -> None:
    listing = tandem("bench", "--help").stdout
    assert "throughput" in listing
    assert "replay" in listing
    assert "--batch" in tandem("bench", "throughput", "--help").stdout
