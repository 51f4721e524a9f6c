"""A simulated schedule: tasks queued in order on lanes that slow each other down while they work at the same time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

# While a lane works on a task of so many rows, the seconds that it takes are multiplied by this; the second lane is the
# other one that works.
Slowdown = Callable[[str, str, int], float]


@dataclass(frozen=True, slots=True)
class Task:
    """One program of one micro-batch. seconds: alone on its lane. after: earlier tasks that it waits for. submit:
    seconds in which the host queues it. what: the kind of work, for a reader.
    """

    lane: str
    seconds: float
    after: tuple[int, ...]
    submit: float
    what: str
    micro_batch: int
    rows: int


@dataclass(frozen=True, slots=True)
class Span:
    """When a task ran, in seconds from the moment at which the host began to queue."""

    task: Task
    start: float
    end: float


@dataclass(slots=True)
class _Running:
    index: int
    start: float
    left: float


def simulate(tasks: Sequence[Task], slowdown: Slowdown, handover: Callable[[str, str], float]) -> list[Span]:
    """Runs the tasks, which the host queues in their order, one after another; each lane takes its own in that order.

    handover: seconds from a task's end until one on another lane that waits for it can begin.
    """
    queued, at = [], 0.0
    for task in tasks:
        at += task.submit
        queued.append(at)
    lanes: dict[str, list[int]] = {}
    for index, task in enumerate(tasks):
        lanes.setdefault(task.lane, []).append(index)
    heads = dict.fromkeys(lanes, 0)
    running: dict[str, _Running] = {}
    ends: list[float | None] = [None] * len(tasks)
    spans: list[Span | None] = [None] * len(tasks)
    now = 0.0

    def ready(index: int) -> float | None:
        """When the task can begin; None while that is not known yet."""
        task, at = tasks[index], queued[index]
        for before in task.after:
            end = ends[before]
            if end is None:
                return None
            other = tasks[before].lane
            at = max(at, end if other == task.lane else end + handover(other, task.lane))
        return at

    left = len(tasks)
    while left:
        coming = []
        for lane, order in lanes.items():
            if lane in running or heads[lane] == len(order):
                continue
            begin = ready(order[heads[lane]])
            if begin is None:
                continue
            if begin <= now:
                index = order[heads[lane]]
                running[lane] = _Running(index, now, tasks[index].seconds)
                heads[lane] += 1
            else:
                coming.append(begin)
        factors = {lane: _factor(lane, tasks[each.index].rows, running, slowdown) for lane, each in running.items()}
        finish = [now + each.left * factors[lane] for lane, each in running.items()]
        if not finish and not coming:
            raise ValueError("the tasks wait for each other in a circle")
        until = min([*finish, *coming])
        for lane in list(running):
            each = running[lane]
            each.left -= (until - now) / factors[lane]
            if each.left <= 1e-12:
                ends[each.index] = until
                spans[each.index] = Span(tasks[each.index], each.start, until)
                del running[lane]
                left -= 1
        now = until
    return [span for span in spans if span is not None]


def _factor(lane: str, rows: int, running: dict[str, _Running], slowdown: Slowdown) -> float:
    factor = 1.0
    for other in running:
        if other != lane:
            factor *= max(1.0, slowdown(lane, other, rows))
    return factor


def busy_seconds(spans: Sequence[Span]) -> dict[str, float]:
    """Of each lane."""
    busy: dict[str, float] = {}
    for span in spans:
        busy[span.task.lane] = busy.get(span.task.lane, 0.0) + span.end - span.start
    return busy
