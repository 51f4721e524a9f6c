"""`tandem profile`, `plan`, `project` and `bench ladder`: what they say and refuse. Figures are not looked at."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from commands import error_of, tandem

from paths import SHARED
from pipeline.profiles import TINY
from tandem.engine import placing

MODEL = SHARED / "data" / "models" / "TinyStories-656K"
SIZES = ["--batch", 2, "--prompt", 6, "--new", 3]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all: the profile is measured by the first test, and kept."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _use_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(placing, "FULL", replace(TINY, name="full"))


def test_a_profile_is_measured_and_kept(cache: Path) -> None:
    first = tandem("profile", MODEL)
    assert first.exit_code == 0, first.output
    for word in ("cpu: ", "ffn ", "attention ", "head ", "the host between two steps"):
        assert word in first.stdout
    again = tandem("profile", MODEL, "--json")
    assert "kept in" in again.stderr
    assert json.loads(again.stdout)["model_name"] in first.stdout
    assert list(cache.glob("tandem/profile/*.json"))


def test_one_device_is_run_and_chosen_and_a_picture_drawn(tmp_path: Path, cache: Path) -> None:
    picture = tmp_path / "lanes.svg"
    done = tandem("plan", MODEL, *SIZES, "--picture", picture)
    assert done.exit_code == 0, done.output
    assert "* cpu" in done.stdout and "there is no second device" in done.stdout
    drawn = picture.read_text()
    assert drawn.startswith("<svg") and drawn.count("predicted") == 2 and drawn.count("measured") == 2
    assert list(cache.glob("tandem/plans/*.json"))


def test_placements_that_are_named_are_compared() -> None:
    done = tandem(
        "plan", MODEL, *SIZES, "--devices", "cpu", "--placement", "cpu;cpu,m=2", "--json", "--no-run"
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert sorted(each["placement"] for each in found["candidates"]) == ["cpu", "cpu,m=2"]
    assert all(each["measured"] is None and each["memory"]["host"] > 0 for each in found["candidates"])


def test_what_does_not_fit_together_is_refused() -> None:
    assert "ends in .svg" in error_of(tandem("plan", MODEL, "--picture", "lanes.txt"))
    assert "trained for" in error_of(tandem("plan", MODEL, "--prompt", 100_000))
    assert "is not known" in error_of(tandem("plan", MODEL, "--devices", "cpu,npu"))


def test_the_ladder_has_four_rungs(tmp_path: Path) -> None:
    result = tmp_path / "ladder.json"
    done = tandem("bench", "ladder", "--model", MODEL, *SIZES, "--json", result)
    assert done.exit_code == 0, done.output
    written = json.loads(result.read_text())
    assert [rung["name"] for rung in written["rungs"]] == ["baseline", "batch", "resident", "pipeline"]
    baseline, batch, resident, pipeline = written["rungs"]
    assert baseline["moved"] > batch["moved"] > 0 == resident["moved"]
    assert baseline["steps"] == 2 * batch["steps"]
    assert "reconstruction" in baseline["what"] and written["moving"] == "copies within the host's memory"
    # With one device there is no other placement: the rung says that it is the same run.
    assert written["same_run"] and {**pipeline, "name": "", "what": ""} == {**resident, "name": "", "what": ""}
    assert set(written["reached"]) == {"50", "200", "500"}


def test_projections_are_labelled() -> None:
    done = tandem("project", "gemma3-27b", "--placement", "vulkan:0")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("A projection, not a measurement")
    assert "10,000 tokens/s is impossible on this hardware" in done.stdout
    values = json.loads(tandem("project", "gemma3-1b", "--placement", "cpu", "--json").stdout)
    assert values["label"] == "A projection, not a measurement"
    assert "is not known" in error_of(tandem("project", "--hardware", "abacus"))
