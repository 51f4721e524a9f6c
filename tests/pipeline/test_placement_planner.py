"""Candidates and the choice among them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from profiles import device, model_of, profile

from paths import SHARED
from tandem.errors import MemoryPlanError
from tandem.memory.plan import MemoryPlan
from tandem.pipeline.placement import Placement
from tandem.pipeline.planner import Candidate, choose_measured, choose_unverified, predict_candidates, to_verify
from tandem.pipeline.profile import Profile
from tandem.pipeline.workload import Workload

MODEL = SHARED / "data" / "models" / "TinyStories-656K"
SPEC, WEIGHTS, KEYS = model_of(MODEL)
WORKLOAD = Workload(batch=4, prompt=8, new=8, rows=32)


def fits(placement: Placement) -> MemoryPlan:
    return object()  # type: ignore[return-value]


def candidates(found: Profile, plan: object = fits) -> list[Candidate]:
    return predict_candidates(SPEC, KEYS, found, WORKLOAD, WEIGHTS, plan)  # type: ignore[arg-type]


def two(slow: float) -> Profile:
    return profile([device("cpu", KEYS, 2.0, 3.0), device("vulkan:0", KEYS, 2.0, 3.0)], slow)


def test_every_way_to_split_is_a_candidate() -> None:
    texts = [each.text for each in candidates(two(1.0))]
    assert {"cpu", "vulkan:0"} <= set(texts)
    for start in ("attn=cpu,ffn=vulkan:0,m=", "attn=vulkan:0,ffn=cpu,m="):
        assert sum(text.startswith(start) for text in texts) == 3
    assert any(text.startswith("ffn=cpu+vulkan:0,ratio=0.5") for text in texts)
    assert any(text.startswith("first=cpu,rest=vulkan:0,layers=") for text in texts)
    assert len(set(texts)) == len(texts)


def test_separate_resources_are_worth_a_split_and_shared_ones_are_not() -> None:
    assert not choose_unverified(candidates(two(1.0))).single
    assert choose_unverified(candidates(two(2.0))).single


def test_a_single_device_has_nothing_to_be_compared_with() -> None:
    (only,) = candidates(profile([device("cpu", KEYS, 2.0, 3.0)]))
    assert only.text == "cpu" and choose_unverified([only]) is only


def test_the_best_two_and_the_best_single_device_are_run() -> None:
    found = candidates(two(1.0))
    verified = to_verify(found)
    assert verified[:2] == found[:2]
    assert any(each.single for each in verified) and len(verified) <= 3


def test_never_slower_by_choice() -> None:
    """Whatever was predicted: what is chosen was measured at least as fast as the best single device."""
    found = candidates(two(1.0))
    split, single = next(e for e in found if not e.single), next(e for e in found if e.single)
    assert choose_measured([(split, 90.0), (single, 100.0)]) is single
    assert choose_measured([(split, 101.0), (single, 100.0)]) is single
    assert choose_measured([(split, 110.0), (single, 100.0)]) is split
    other = replace(single, text="vulkan:0")
    assert choose_measured([(split, 110.0), (single, 100.0), (other, 120.0)]) is other


def test_what_does_not_fit_comes_last_and_is_not_run() -> None:
    def only_splits(placement: Placement) -> MemoryPlan:
        if len(placement.names) == 1:
            raise MemoryPlanError("too large")
        return object()  # type: ignore[return-value]

    found = candidates(two(2.0), only_splits)
    assert [each.plan is None for each in found].index(True) == len(found) - 2
    assert all(not each.single for each in to_verify(found))
    assert not choose_unverified(found).single


def test_nothing_that_fits_is_an_error() -> None:
    def nothing(placement: Placement) -> MemoryPlan:
        raise MemoryPlanError("it needs 12 GiB")

    with pytest.raises(MemoryPlanError, match="12 GiB"):
        to_verify(candidates(two(1.0), nothing))
