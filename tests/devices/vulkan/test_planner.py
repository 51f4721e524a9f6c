"""The planner with the CPU and a Vulkan device: on cores that both use there is nothing to win, and it says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from paths import SHARED
from pipeline.profiles import TINY
from tandem.bench.placing import outcome_table, plan_workload, verdict, workload_config
from tandem.devices.vulkan.facts import describe_gpus
from tandem.engine.build import EngineConfig
from tandem.engine.placing import find_site, obtain_profile, with_config
from tandem.models.open import model_spec
from tandem.pipeline.devices import DEVICES_VARIABLE, described, usable_devices
from tandem.pipeline.workload import Workload
from tandem.weights.open import open_checkpoint

MODEL = SHARED / "data" / "models" / "TinyStories-656K"


def test_cpu_and_a_software_device_choose_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if describe_gpus()[0]["type"] != "cpu":
        pytest.skip("here the first Vulkan device is a GPU: what wins is for measuring to say")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    checkpoint = open_checkpoint(MODEL)
    spec = model_spec(checkpoint)
    workload = Workload(batch=4, prompt=8, new=4, rows=32)
    site = find_site(checkpoint, spec, EngineConfig(), described(["cpu", "vulkan:0"]))
    site = with_config(site, workload_config(workload, spec, site.config))
    profile, _ = obtain_profile(site, TINY)
    outcome = plan_workload(site, profile, workload, rounds=1)
    assert outcome.chosen.single
    assert "nothing is to be won by splitting here" in verdict(outcome)
    assert any(not each.single for each in outcome.candidates)
    rates = {text: each.tokens_per_s for text, each in outcome.measured.items()}
    assert rates[outcome.chosen.text] >= max(
        rates[each.text] for each in outcome.candidates if each.single and each.text in rates
    )
    assert f"* {outcome.chosen.text}" in outcome_table(outcome)


def test_a_software_device_is_no_second_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    if any(gpu["type"] != "cpu" for gpu in describe_gpus()):
        pytest.skip("here is a GPU")
    monkeypatch.delenv(DEVICES_VARIABLE)
    assert list(usable_devices(1)) == ["cpu"]
    monkeypatch.setenv(DEVICES_VARIABLE, "cpu,vulkan:0")
    assert list(usable_devices(1)) == ["cpu", "vulkan:0"]
