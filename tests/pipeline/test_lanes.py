"""The simulated schedule, against schedules that can be worked out by hand."""

from __future__ import annotations

import pytest

from tandem.pipeline.lanes import Task, busy_seconds, simulate


def task(lane: str, seconds: float, *after: int, submit: float = 0.0, micro: int = 0) -> Task:
    return Task(lane, seconds, after, submit, "ffn", micro, 1)


def alone(lane: str, other: str, rows: int) -> float:
    return 1.0


def nothing(one: str, other: str) -> float:
    return 0.0


def test_a_lane_takes_its_tasks_in_order() -> None:
    spans = simulate([task("a", 2.0), task("a", 3.0)], alone, nothing)
    assert [(span.start, span.end) for span in spans] == [(0, 2), (2, 5)]


def test_two_micro_batches_overlap_on_two_lanes() -> None:
    """Attention of 2 s and FFN of 3 s: T = T_a + T_f + max(T_a, T_f) (m - 1) for one layer."""
    tasks = [task("a", 2.0), task("a", 2.0, micro=1), task("b", 3.0, 0), task("b", 3.0, 1, micro=1)]
    spans = simulate(tasks, alone, nothing)
    assert [(span.start, span.end) for span in spans] == [(0, 2), (2, 4), (2, 5), (5, 8)]
    assert busy_seconds(spans) == {"a": 4, "b": 6}


def test_handing_over_costs_only_between_lanes() -> None:
    spans = simulate([task("a", 1.0), task("b", 1.0, 0), task("b", 1.0, 1)], alone, lambda one, other: 0.5)
    assert [span.start for span in spans] == [0, 1.5, 2.5]


def test_lanes_slow_each_other_down_only_while_both_work() -> None:
    """Each at half speed: the short one's 1 s takes 2, in which the long one does 1 of its 3."""
    spans = simulate([task("a", 1.0), task("b", 3.0)], lambda lane, other, rows: 2.0, nothing)
    assert [span.end for span in spans] == pytest.approx([2, 4])


def test_a_program_cannot_begin_before_it_is_queued() -> None:
    spans = simulate([task("a", 1.0, submit=0.25), task("b", 1.0, submit=0.25)], alone, nothing)
    assert [span.start for span in spans] == [0.25, 0.5]


def test_tasks_that_wait_for_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="circle"):
        simulate([task("a", 1.0, 1), task("b", 1.0, 0)], alone, nothing)
