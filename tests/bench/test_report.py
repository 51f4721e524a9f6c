"""What benchmarks share: summaries, the machine, and the file that keeps a result."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from paths import REPO
from tandem.bench.machine import describe_machine, measure_read_bandwidth
from tandem.bench.report import Summary, git_commit, run_header, write_result


def test_summary_is_the_median_with_its_spread() -> None:
    summary = Summary.of([3.0, 1.0, 20.0])
    assert (summary.median, summary.low, summary.high) == (3.0, 1.0, 20.0)
    assert str(summary) == "3.000 (1.000 to 20.0, n=3)"
    assert str(Summary.of([12345.6])) == "12346 (12346 to 12346, n=1)"


def test_the_machine_in_words() -> None:
    machine = describe_machine()
    assert machine.cores == len(os.sched_getaffinity(0))
    assert machine.memory_bytes > 2**28
    assert machine.cpu in str(machine)


def test_bandwidth_is_of_this_world() -> None:
    for working_set in (1 << 16, 32 << 20):
        assert 1e8 < measure_read_bandwidth(working_set, threads=1, seconds=0.05) < 1e13


def test_commit_of_a_checkout(tmp_path: Path) -> None:
    assert git_commit(tmp_path) is None

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        return subprocess.check_output(["git", "-C", tmp_path, *identity, *arguments], text=True).strip()

    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-qm", "One")
    commit = git("rev-parse", "HEAD")
    assert git_commit(tmp_path) == commit
    (tmp_path / "file").write_text("2")
    assert git_commit(tmp_path) == f"{commit}-dirty"


def test_results_are_json_with_their_origin(tmp_path: Path) -> None:
    path = tmp_path / "results" / "x.json"
    write_result(path, {**run_header(REPO, "python x.py"), "value": 1})
    result = json.loads(path.read_text())
    assert result["value"] == 1
    assert result["command"] == "python x.py"
    assert result["machine"]["cores"] == describe_machine().cores
    assert set(result) == {"date", "commit", "command", "machine", "load_average", "versions", "value"}
