"""The scheduler: which sequences get how many rows of the next step, and whose pages go when pages run out.

Sequences run in one order: arrival, with a head start for priority. Going through it,
each decoding sequence gets its one row, and prompts share what is left of the row budget in chunks. Where pages are
short, the last in order is preempted: it gives its pages back, and later computes prompt and answer again. The
first in order can always take everything, so it always advances, and so in time does everyone.

A step may be scheduled *ahead*, while one is in flight whose tokens nobody knows yet: decoding sequences go on with the
token in their slot, unless that was their last for certain, or their rows in flight are stale. Nobody is preempted and
no page copied for such a step; where that were needed, it waits for the one in flight. What a sequence that has ended
holds is given back once no step in flight has rows of it.
"""

from __future__ import annotations

from bisect import insort
from heapq import heappop, heappush

from tandem.engine.sequence import Sequence, State
from tandem.memory.kv_cache import KVCache
from tandem.memory.plan import Limits
from tandem.memory.prefix import extend_keys

# Queued requests that one step may find to wait for a prefix, before it lets the rest of the queue be.
_PARKED = 64


class Schedule:
    """One step's work: sequence i computes positions [starts[i], starts[i] + rows[i]).

    samples[i]: tokens to sample from its last row, one for each sample of the request that the row belongs to, 0 while
    the prompt goes on. scores[i]: rows whose logits score the prompt token after them; they are the last ones that do.
    """

    __slots__ = ("n_rows", "rows", "samples", "scores", "sequences", "starts")

    def __init__(self) -> None:
        self.sequences: list[Sequence] = []
        self.starts: list[int] = []
        self.rows: list[int] = []
        self.samples: list[int] = []
        self.scores: list[int] = []
        self.n_rows = 0

    def clear(self) -> None:
        for column in (self.sequences, self.starts, self.rows, self.samples, self.scores):
            column.clear()
        self.n_rows = 0

    def add(self, sequence: Sequence, rows: int, scores: int = 0) -> None:
        self.sequences.append(sequence)
        self.starts.append(sequence.start)
        self.rows.append(rows)
        samples = rows == sequence.pending and sequence.pool is None
        self.samples.append(1 + len(sequence.forks) if samples else 0)
        self.scores.append(scores)
        self.n_rows += rows


class Scheduler:
    """Queue, running set and slots. It moves sequences between states; the engine looks after their tokens."""

    def __init__(self, cache: KVCache, limits: Limits, samples: int) -> None:
        """samples: logits rows that a step can bring, more than `limits.sequences`."""
        self.cache = cache
        self.limits = limits
        self._score_rows = samples - limits.sequences
        self.running: list[Sequence] = []
        self.preemptions = 0
        # Ended, and a step in flight still has rows of them.
        self._leaving: list[Sequence] = []
        self._waiting: list[tuple[tuple[int, int, int], Sequence]] = []
        self._parked: dict[bytes, list[Sequence]] = {}
        self._n_waiting = 0
        self._n_parked = 0
        self._slots = list(range(limits.sequences - 1, -1, -1))

    @property
    def waiting(self) -> int:
        """Sequences in the queue, those that wait for a prefix included."""
        return self._n_waiting + self._n_parked

    @property
    def idle(self) -> bool:
        return not self.running and not self.waiting and not self._leaving

    def add(self, sequence: Sequence) -> None:
        sequence.state = State.WAITING
        self._n_waiting += 1
        heappush(self._waiting, (sequence.order, sequence))

    def schedule(self, step: Schedule, *, ahead: bool = False) -> None:
        """Fills `step`, which is in flight from now on, until it has come to `land`.

        ahead: another one is in flight. If not, `step` stays empty only when there is nothing to do.
        """
        step.clear()
        budget = self.limits.rows - sum(1 for sequence in self.running if sequence.pending == 1)
        score_rows = self._score_rows
        short = False
        # Victims come from the end of the list, so whoever has been scheduled in this step stays.
        i = 0
        while i < len(self.running):
            sequence = self.running[i]
            i += 1
            if sequence.stale or (sequence.ahead and sequence.generated + sequence.ahead >= sequence.max_tokens):
                continue
            decodes = sequence.pending == 1
            rows, scores = (1, 0) if decodes else self._chunk(sequence, budget, score_rows)
            if rows == 0:
                continue
            if self._make_room(sequence, rows, ahead):
                budget -= 0 if decodes else rows
                score_rows -= scores
                step.add(sequence, rows, scores)
            elif ahead:
                step.clear()
                return
            else:
                short = True
        if not short:
            self._admit(step, budget, score_rows)
        for sequence, rows, samples in zip(step.sequences, step.rows, step.samples, strict=True):
            sequence.flying += rows
            sequence.ahead += samples > 0

    def _chunk(self, sequence: Sequence, budget: int, score_rows: int) -> tuple[int, int]:
        """Rows of a prompt's next chunk, and how many of them score the prompt token after them."""
        rows = min(sequence.pending, budget)
        if sequence.scored == sequence.prompt_len:
            return rows, 0
        first = max(sequence.computed, sequence.scored - 1)
        last = sequence.prompt_len - 1  # the row after the last one that scores
        scores = max(0, min(sequence.computed + rows, last) - first)
        if scores > score_rows:
            return first + score_rows - sequence.computed, score_rows
        return rows, scores

    def _make_room(self, sequence: Sequence, rows: int, ahead: bool) -> bool:
        """Pages for the sequence's next rows, if need be from those behind it. False: it sits this step out.

        ahead: from nobody, and without a copy.
        """
        start, stop = sequence.start, sequence.start + rows
        if ahead:
            return not self.cache.must_copy(sequence.tables, start) and self.cache.grow(sequence.tables, start, stop)
        while not self.cache.grow(sequence.tables, start, stop):
            victim = self.running[-1]
            if victim is sequence:
                return False
            self._preempt(victim)
        return True

    def _preempt(self, victim: Sequence) -> None:
        self.preemptions += 1
        self._leave(victim)
        self.add(victim)

    def _admit(self, step: Schedule, budget: int, score_rows: int) -> None:
        reserved = None
        parked = 0
        while self._waiting and budget > 0 and parked < _PARKED:
            sequence = self._waiting[0][1]
            if sequence.state is not State.WAITING:
                heappop(self._waiting)
                continue
            if len(self._slots) < 1 + len(sequence.forks):
                return
            hits = self._find_prefix(sequence)
            if hits is None:
                parked += 1
                continue
            if self.running:
                needed = self.cache.pages_to_start(sequence.keys, hits, len(sequence.tokens), self.limits.rows)
                reserved = reserved or self._reserved()
                if any(
                    need + kept > allocator.available
                    for need, kept, allocator in zip(needed, reserved, self.cache.allocators, strict=True)
                ):
                    return
                reserved = [need + kept + 1 for need, kept in zip(needed, reserved, strict=True)]
            heappop(self._waiting)
            self._n_waiting -= 1
            self._start(sequence, hits)
            rows, scores = self._chunk(sequence, budget, score_rows)
            if rows and self.cache.grow(sequence.tables, sequence.computed, sequence.computed + rows):
                budget -= rows
                score_rows -= scores
                step.add(sequence, rows, scores)

    def _find_prefix(self, sequence: Sequence) -> int | None:
        """Cached leading pages to start on; None if the sequence was parked, as more of them are being computed."""
        needs_all = sequence.scored < sequence.prompt_len or (
            sequence.pool is not None and sequence.pool.kind == "mean"
        )
        if not self.cache.prefix_cache or needs_all:
            return 0
        page_size = self.cache.page_size
        extend_keys(sequence.keys, sequence.tokens, page_size, sequence.root)
        # The last token is always computed: its logits are what the prompt is read for.
        usable = sequence.keys[: (len(sequence.tokens) - 1) // page_size]
        hits = self.cache.index.match(usable)
        awaited = self.cache.index.last_expected(usable, hits)
        if awaited is None or self._n_parked >= self.limits.sequences:
            return hits
        heappop(self._waiting)
        self._n_waiting -= 1
        self._n_parked += 1
        sequence.state = State.PARKED
        self._parked.setdefault(awaited, []).append(sequence)
        return None

    def _start(self, sequence: Sequence, hits: int) -> None:
        sequence.state = State.RUNNING
        sequence.slot = self._slots.pop()
        for fork in sequence.forks:
            fork.slot = self._slots.pop()
        sequence.computed = self.cache.attach(sequence.tables, sequence.keys, hits)
        if sequence.computed and not sequence.generated:
            sequence.cached_tokens = sequence.computed
        usable = sequence.keys[hits : (len(sequence.tokens) - 1) // self.cache.page_size]
        sequence.announced = self.cache.index.expect(usable)
        insort(self.running, sequence, key=lambda other: other.order)

    def _reserved(self) -> list[int]:
        """Pages that the running sequences will take for what they have, and one more each to go on."""
        reserved = [0] * len(self.cache.groups)
        for sequence in self.running:
            lacks = self.cache.pages_lacking(
                sequence.tables, len(sequence.tokens) + sequence.ahead + 1, self.limits.rows
            )
            for g, lack in enumerate(lacks):
                reserved[g] += max(1, lack)
        return reserved

    def land(self, step: Schedule) -> None:
        """The step has ended, well or not: nothing of it touches pages any more."""
        for sequence, rows, samples in zip(step.sequences, step.rows, step.samples, strict=True):
            sequence.flying -= rows
            sequence.ahead -= samples > 0
            if sequence.state is State.DONE and not sequence.flying:
                self._leaving.remove(sequence)
                self._give_back(sequence)

    def advance(self, sequence: Sequence, rows: int) -> None:
        """The sequence's next `rows` positions are computed: full pages become findable, pages out of the window go."""
        before = sequence.computed
        sequence.computed = before + rows
        page_size = self.cache.page_size
        if self.cache.prefix_cache and sequence.computed // page_size > before // page_size:
            extend_keys(sequence.keys, sequence.tokens, page_size, sequence.root)
            self.cache.publish(sequence.tables, sequence.keys, sequence.computed)
            if sequence.announced:
                settled = sequence.announced.intersection(
                    sequence.keys[before // page_size : sequence.computed // page_size]
                )
                sequence.announced -= settled
                self._settle(settled)
        self.cache.slide(sequence.tables, sequence.computed)

    def fork(self, sequence: Sequence) -> list[Sequence]:
        """The prompt is computed: the request's other samples start on its pages. Returns all, this one first."""
        forks, sequence.forks = sequence.forks, []
        for twin in forks:
            twin.tables = self.cache.fork(sequence.tables)
            twin.computed = sequence.computed
            twin.cached_tokens = sequence.cached_tokens
            twin.keys = list(sequence.keys)
            twin.state = State.RUNNING
            insort(self.running, twin, key=lambda other: other.order)
        return [sequence, *forks]

    def end(self, sequence: Sequence) -> None:
        """Ends a sequence in whatever state it is; its pages are free once no step in flight has rows of it."""
        if sequence.state is State.RUNNING and sequence.flying:
            self.running.remove(sequence)
            self._leaving.append(sequence)
        elif sequence.state is State.RUNNING:
            self._leave(sequence)
        elif sequence.state is State.WAITING:
            self._n_waiting -= 1  # its entry in the queue is dropped when it comes up
        elif sequence.state is State.PARKED:
            for key, parked in self._parked.items():
                if sequence in parked:
                    parked.remove(sequence)
                    if not parked:
                        del self._parked[key]
                    break
            self._n_parked -= 1
        sequence.state = State.DONE

    def _leave(self, sequence: Sequence) -> None:
        """Out of the running set, with all that it holds."""
        self.running.remove(sequence)
        self._give_back(sequence)

    def _give_back(self, sequence: Sequence) -> None:
        """Pages, slots and announcements."""
        self.cache.free(sequence.tables)
        self._slots.append(sequence.slot)
        self._slots.extend(fork.slot for fork in sequence.forks)
        sequence.slot = -1
        sequence.computed = 0
        announced, sequence.announced = sequence.announced, set()
        self._settle(announced)

    def _settle(self, keys: set[bytes]) -> None:
        """Keys that are published, or given up: whoever waited for them goes back into the queue."""
        if not keys:
            return
        self.cache.index.settle(keys)
        for key in keys & self._parked.keys():
            woken = self._parked.pop(key)
            self._n_parked -= len(woken)
            for sequence in woken:
                self.add(sequence)

    def check(self) -> None:
        """Invariants, for tests: conservation of pages and slots, order, nothing in two places."""
        held = self.running + self._leaving
        self.cache.check(sequence.tables for sequence in held)
        assert self.running == sorted(self.running, key=lambda sequence: sequence.order)
        assert all(sequence.state is State.RUNNING for sequence in self.running)
        assert all(sequence.state is State.DONE and sequence.flying for sequence in self._leaving)
        assert all(sequence.stale in (0, sequence.flying) for sequence in self.running)
        slots = [sequence.slot for sequence in held]
        slots += [fork.slot for sequence in held for fork in sequence.forks]
        assert sorted(slots + self._slots) == list(range(self.limits.sequences)), "slots lost or doubled"
        live = [sequence for _, sequence in self._waiting if sequence.state is State.WAITING]
        assert len(live) == len(set(map(id, live))) == self._n_waiting
        assert sum(map(len, self._parked.values())) == self._n_parked
        assert self._n_parked == 0 or held, "sequences wait for a prefix that nobody computes"
