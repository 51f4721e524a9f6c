"""What `auto` means: one device at no cost, a kept plan, or what a profile predicts."""

from __future__ import annotations

from pathlib import Path

import pytest

from paths import SHARED
from pipeline.profiles import TINY, device, profile
from tandem.cache import read_kept
from tandem.engine import placing
from tandem.engine.build import EngineConfig, plan_engine
from tandem.engine.placing import KeptPlan, KeptPlans, choose_placement, find_site, keep_plan
from tandem.errors import DeviceError
from tandem.models.open import model_spec
from tandem.pipeline.devices import DEVICES_VARIABLE, described, usable_devices
from tandem.pipeline.notation import parse_placement
from tandem.pipeline.profile import Profile
from tandem.pipeline.workload import Workload
from tandem.weights.open import open_checkpoint

MODEL = SHARED / "data" / "models" / "TinyStories-656K"
CHECKPOINT = open_checkpoint(MODEL)
SPEC = model_spec(CHECKPOINT)
# The reference stands for a second device.
TWO = {"cpu": "a CPU", "ref": "numpy"}


def refuse(*arguments: object, **named: object) -> None:
    raise AssertionError("nothing is to be measured")


def test_the_only_device_is_taken_at_no_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "obtain_profile", refuse)
    monkeypatch.setattr(placing, "find_site", refuse)
    planned = plan_engine(CHECKPOINT, EngineConfig(threads=1))
    planned.close()
    assert planned.placement.names == ("cpu",)


def test_a_kept_plan_is_taken_the_one_for_the_nearest_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "usable_devices", lambda threads: TWO)
    config = EngineConfig(threads=1, max_sequences=8)
    site = find_site(CHECKPOINT, SPEC, config, TWO)
    keep_plan(site, Workload(1, 16, 16), "cpu", 100.0, tmp_path)
    keep_plan(site, Workload(16, 16, 16), "attn=cpu,ffn=ref,m=2", 300.0, tmp_path)
    monkeypatch.setattr(placing, "obtain_profile", refuse)
    assert choose_placement(CHECKPOINT, SPEC, config, tmp_path) == "attn=cpu,ffn=ref,m=2"
    alone = EngineConfig(threads=1, max_sequences=2)
    assert choose_placement(CHECKPOINT, SPEC, alone, tmp_path) == "cpu"
    kept, wrong = read_kept(site.path("plans", tmp_path), KeptPlans)
    assert wrong is None and kept is not None
    assert kept.plans[0] == KeptPlan(16, 16, 16, "attn=cpu,ffn=ref,m=2", 300.0)


@pytest.mark.parametrize("fast", ["cpu", "ref"])
def test_without_a_plan_a_profile_decides(fast: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = EngineConfig(threads=1, max_sequences=4)
    keys = find_site(CHECKPOINT, SPEC, config, TWO).keys
    seconds = {name: 1e-6 if name == fast else 1e-3 for name in TWO}

    def measure(*arguments: object, **named: object) -> Profile:
        return profile([device(name, keys, each, each) for name, each in seconds.items()])

    monkeypatch.setattr(placing, "usable_devices", lambda threads: TWO)
    monkeypatch.setattr(placing, "worthwhile", lambda spec, weights, devices: list(devices))
    monkeypatch.setattr(placing, "profile_model", measure)
    assert choose_placement(CHECKPOINT, SPEC, config, tmp_path) == fast
    # It is kept: the next one measures nothing.
    monkeypatch.setattr(placing, "profile_model", refuse)
    assert choose_placement(CHECKPOINT, SPEC, EngineConfig(threads=1, max_sequences=2), tmp_path) == fast


def test_what_is_measured_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "usable_devices", lambda threads: TWO)
    monkeypatch.setattr(placing, "QUICK", TINY)
    config = EngineConfig(threads=1, max_sequences=4)
    chosen = choose_placement(CHECKPOINT, SPEC, config, tmp_path)
    site = find_site(CHECKPOINT, SPEC, config, TWO)
    kept, wrong = read_kept(site.path("profile", tmp_path), Profile)
    assert wrong is None and kept is not None
    assert "cpu" in kept.devices
    assert set(parse_placement(chosen, SPEC, site.weights).names) <= set(kept.devices)
    monkeypatch.setattr(placing, "profile_model", refuse)
    assert choose_placement(CHECKPOINT, SPEC, config, tmp_path) == chosen


def test_when_comparing_fails_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*arguments: object, **named: object) -> None:
        raise DeviceError("vulkan:0 was lost")

    monkeypatch.setattr(placing, "usable_devices", lambda threads: TWO)
    monkeypatch.setattr(placing, "profile_model", lost)
    with pytest.warns(UserWarning, match="was lost"):
        assert choose_placement(CHECKPOINT, SPEC, EngineConfig(threads=1), tmp_path) == "cpu"


def test_the_environment_says_which_devices_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEVICES_VARIABLE, "cpu")
    assert list(usable_devices(1)) == ["cpu"]
    assert list(described(["ref", "cpu", "ref"], 1)) == ["ref", "cpu"]
    monkeypatch.setenv(DEVICES_VARIABLE, "cpu,npu")
    with pytest.raises(DeviceError, match="npu"):
        usable_devices(1)
