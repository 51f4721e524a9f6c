"""What a profile is, and where it is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from profiles import TINY, device, model_of, profile

from paths import SHARED
from tandem.cache import read_kept, write_kept
from tandem.engine.build import EngineConfig
from tandem.engine.placing import find_site, obtain_profile
from tandem.models.open import model_spec
from tandem.pipeline import probe
from tandem.pipeline.probe import _without_spikes
from tandem.pipeline.profile import BlockProfile, Curve, Profile, block_key, constant
from tandem.weights.open import open_checkpoint

MODEL = SHARED / "data" / "models" / "TinyStories-656K"
SPEC, WEIGHTS, KEYS = model_of(MODEL)


def test_a_curve_is_linear_between_what_was_measured_and_goes_on_beyond() -> None:
    curve = Curve((1.0, 2.0, 4.0), (10.0, 10.0, 30.0))
    assert [curve(at) for at in (0.5, 1, 1.5, 3, 4, 6)] == [10, 10, 10, 20, 30, 50]
    # A second measurement that was faster by chance does not make more rows cheaper.
    assert Curve((1.0, 2.0), (10.0, 9.0))(8) == 9
    assert constant(3.0)(100) == 3


@pytest.mark.parametrize("at, values", [((), ()), ((1.0, 1.0), (1.0, 2.0)), ((1.0,), (1.0, 2.0))])
def test_what_is_no_curve_is_refused(at: tuple[float, ...], values: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="ascending"):
        Curve(at, values)


def test_a_slice_lies_on_the_line_through_what_was_measured() -> None:
    """Half the columns took 0.6 of the whole: 0.2 is a cost of its own, the rest goes with the columns."""
    block = BlockProfile(constant(10.0), constant(0.6), 0.5)
    assert [block.part(1, share) for share in (0.25, 0.5, 0.75, 1.0)] == pytest.approx([4, 6, 8, 10])


def test_blocks_that_cost_the_same_share_a_key_and_others_do_not() -> None:
    assert len(set(KEYS)) == 4
    assert block_key(SPEC.blocks[1], WEIGHTS(1)) == block_key(SPEC.blocks[3], WEIGHTS(3))


def test_a_profile_survives_being_kept(tmp_path: Path) -> None:
    made = profile([device("cpu", KEYS, 2.0, 3.0), device("ref", KEYS, 1.0, 1.0)], slow=1.5)
    path = tmp_path / "deep" / "profile.json"
    assert write_kept(path, made)
    assert read_kept(path, Profile) == (made, None)
    assert [each.name for each in path.parent.iterdir()] == ["profile.json"]


@pytest.mark.parametrize("damage", [b"", b"{", b'{"version": 3}', b"\xff\xfe", b'{"devices": null}'])
def test_a_damaged_one_is_said_to_be_damaged(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "profile.json"
    path.write_bytes(damage)
    found, wrong = read_kept(path, Profile)
    assert found is None and wrong is not None and "damaged" in wrong


def test_what_cannot_be_kept_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    made = profile([device("cpu", KEYS, 2.0, 3.0)])
    assert not write_kept(tmp_path / "file" / "profile.json", made)


def test_measured_once_and_again_when_damaged(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(MODEL)
    names = {"cpu": "a CPU", "ref": "numpy"}
    site = find_site(checkpoint, model_spec(checkpoint), EngineConfig(threads=1), names)
    said: list[str] = []
    first, told = obtain_profile(site, TINY, folder=tmp_path, say=said.append)
    assert told == "measured now" and any("at once" in what for what in said)
    assert list(first.devices) == ["cpu", "ref"]
    for measured in first.devices.values():
        assert set(KEYS) < set(measured.blocks)
        ffn = next(block for key, block in measured.blocks.items() if key.startswith("ffn"))
        assert ffn.seconds(1) > 0 and ffn.seconds(16) > 0
    assert min(min(curve.values) for curve in first.pair("cpu", "ref").slow.values()) >= 1
    path = site.path("profile", tmp_path)
    path.write_text("{}")
    again, told = obtain_profile(site, TINY, folder=tmp_path)
    assert "damaged" in told and "measured now" in told
    assert again.model == first.model
    # Another driver is another machine.
    other = find_site(checkpoint, model_spec(checkpoint), EngineConfig(threads=1), {**names, "cpu": "another CPU"})
    assert other.path("profile", tmp_path) != path


def test_a_busy_moment_leaves_no_spike() -> None:
    """Far slower than with more rows is the machine; a little slower may be another kernel."""
    curve = _without_spikes([(1.0, 2.0), (2.0, 50.0), (4.0, 5.0), (8.0, 4.5), (16.0, 9.0)])
    assert curve.values == (2.0, 4.5, 5.0, 4.5, 9.0)


class _Timed:
    """Stands for a rig: a device whose block takes so long."""

    def __init__(self, device: float, loadables: object, rows: int) -> None:
        self._seconds = device

    def batch(self, sequences: int, rows: int, length: int) -> int:
        return sequences

    def time_queued(self, batch: int, patience: object) -> float:
        return self._seconds if batch == 1 else 2 * self._seconds if self._seconds < 5 else 100 * self._seconds


def test_a_device_that_is_ten_times_slower_throughout_is_hopeless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "BlockRig", _Timed)
    devices = {"cpu": 1.0, "near": 4.0, "few rows": 9.0, "far": 11.0}
    assert probe.worthwhile(SPEC, WEIGHTS, devices) == ["cpu", "near", "few rows"]  # type: ignore[arg-type]
