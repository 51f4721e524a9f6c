"""A device whose model is a hash: quick, exact, and wrong at once when a page, a window or a position is wrong.

Two layers. Layer 0 (full attention) stores x0 = mix(token, position) in its page and sums x0 over all positions up to
the row's; layer 1 (sliding window) stores x1 = mix(that sum) and sums x1 over its window. Logits are a hash of the
second sum. So logits depend on every token before, and all of them are read through the batch's page tables: the
values of one row come from what earlier steps wrote. Pages that nobody wrote, or that somebody else wrote, change them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from devices.candidates_model import answer
from tandem.devices.base import DeviceInfo, Event, KVGroupSpec, MemorySpace, StepBuffers
from tandem.devices.batch import Batch
from tandem.devices.candidates import NOISE, TAKEN, CandidateBuffers
from tandem.devices.spec import AttentionSpec, EmbedSpec, FFNSpec, HeadSpec, NormSpec
from tandem.memory.plan import Limits, MemoryPlan, Planner
from tandem.models.spec import ModelSpec
from tandem.pipeline.executor import Executor
from tandem.pipeline.placement import on_one

HIDDEN = 4


def mix(*values: Any) -> np.ndarray:
    """splitmix64 over the values in turn; wraps."""
    with np.errstate(over="ignore"):
        h = np.uint64(0x9E3779B97F4A7C15)
        for value in values:
            h = (h ^ np.asarray(value).astype(np.uint64)) * np.uint64(0xBF58476D1CE4E5B9)
            h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            h = h ^ (h >> np.uint64(31))
        return h


def toy_spec(vocab: int = 64, window: int | None = 24, context: int = 512) -> ModelSpec:
    norm = NormSpec(1e-6)

    def attention(layer: int, window: int | None) -> AttentionSpec:
        return AttentionSpec(
            layer=layer, hidden=HIDDEN, heads=1, kv_heads=1, head_dim=4, scale=1.0, norm=norm, rope=None, window=window
        )

    blocks = (
        EmbedSpec(vocab, HIDDEN),
        attention(0, None),
        FFNSpec(0, HIDDEN, 8, "silu", norm),
        attention(1, window),
        FFNSpec(1, HIDDEN, 8, "silu", norm),
        HeadSpec(vocab, HIDDEN, norm),
    )
    return ModelSpec("toy", "toy", context, vocab, HIDDEN, blocks, tuple({} for _ in blocks))


class ToyPool:
    def __init__(self, group: KVGroupSpec, pages: int) -> None:
        self.group = group
        self.pages = pages
        self.values = np.full((len(group.layers), pages, group.page_size), 0xDEAD, dtype=np.uint64)

    def copy_page(self, source: int, target: int) -> None:
        assert source != target
        self.values[:, target] = self.values[:, source]


class ToyBlock:
    bytes = 0
    slice = None

    def __init__(self, spec: Any) -> None:
        self.spec = spec


class ToyProgram:
    def __init__(self, spec: list[Any], rows: int, buffers: StepBuffers, pools: dict[int, ToyPool]) -> None:
        self.rows = rows
        self._head = spec[-1]
        self._attention = [block for block in spec if isinstance(block, AttentionSpec)]
        self._buffers = buffers
        self._pools = pools
        self.steps = 0
        self.rows_computed = 0
        self.fail_next: str | None = None
        # Of so many guesses of what noise chooses one is wrong; 0: none.
        self.wrong_guess_in = 0
        self._guesses = 0
        # By turn: the last batch and what it asked, and copies of them.
        self._seen: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}

    def submit(self, batch: Batch, wait: Any = (), signal: Event | None = None) -> None:
        assert signal is not None
        self._look(batch)
        if self.fail_next is not None:
            reason, self.fail_next = self.fail_next, None
            signal.timeline.fail(signal.value, reason)
            return
        self._run(batch)
        signal.timeline.signal(signal.value)

    def _look(self, batch: Batch) -> None:
        """What was submitted in other turns may still be read, so nobody may have touched it."""
        for turn, arrays in self._seen.items():
            assert turn == batch.turn or all(np.array_equal(array, copy) for array, copy in arrays)
        arrays = [batch.data]
        if self._buffers.candidates:
            asked = self._buffers.candidates[batch.turn]
            arrays += [asked.asks, asked.adjustments, asked.masks]
        self._seen[batch.turn] = [(array, array.copy()) for array in arrays]

    def _run(self, batch: Batch) -> None:
        assert 0 < batch.n_rows <= self.rows
        self.steps += 1
        self.rows_computed += batch.n_rows
        state = np.zeros(batch.n_rows, dtype=np.uint64)
        written: set[tuple[int, int]] = set()
        rows_seen = 0
        for s in range(batch.n_sequences):
            first, count, length, _ = (int(v) for v in batch.sequences[s, :4])
            assert count > 0 and first == rows_seen, "rows of sequences must be consecutive"
            rows_seen += count
            start = length - count
            rows = batch.rows[first : first + count]
            assert (rows[:, 0] == s).all() and (rows[:, 1] == np.arange(start, length)).all()
            tokens = rows[:, 2].copy()
            for at in np.flatnonzero(tokens < 0):
                tokens[at] = self._buffers.slots[-1 - tokens[at]]
            carry = mix(tokens, rows[:, 1])
            for attention in self._attention:
                pool = self._pools[attention.layer]
                page_size = pool.group.page_size
                offset, first_page = (int(v) for v in batch.sequences[s, 4 + 2 * pool.group.index :][:2])
                low = 0 if attention.window is None else max(0, start - attention.window + 1)
                assert first_page <= low // page_size, "a page of the window is missing"
                positions = np.arange(low, length)
                pages = batch.pages[offset + positions // page_size - first_page]
                assert (pages >= 0).all() and (pages < pool.pages).all()
                new = positions >= start
                for page in np.unique(pages[new]):
                    key = (attention.layer, int(page))
                    assert key not in written, "two sequences write into one page"
                    written.add(key)
                stored = pool.values[pool.group.layers.index(attention.layer)]
                stored[pages[new], positions[new] % page_size] = carry
                values = stored[pages, positions % page_size]
                sums = np.concatenate([[np.uint64(0)], np.cumsum(values, dtype=np.uint64)])
                ends = np.arange(start, length) + 1
                begins = (
                    np.zeros(count, np.int64) if attention.window is None else np.maximum(0, ends - attention.window)
                )
                carry = mix(sums[ends - low] - sums[begins - low] if attention.window else sums[ends - low])
            state[first : first + count] = carry
        assert rows_seen == batch.n_rows
        sampled = batch.samples[: batch.n_samples, 0]
        tokens = np.arange(self._head.vocab)
        noise = mix(state[sampled][:, None], tokens[None, :]) >> np.uint64(40)
        self._logits = noise.astype(np.float32) * np.float32(8 / 2**24)
        wanted = np.ones(batch.n_samples, bool)
        if self._buffers.candidates:
            asked = self._buffers.candidates[batch.turn]
            answer(self._logits, asked, self._buffers.slots, batch.samples[:, 1])
            self._guess(asked, batch)
            wanted = asked.asks[: batch.n_samples, 0] == 0
        self._buffers.logits[: batch.n_samples] = np.where(wanted[:, None], self._logits, np.float32(np.nan))

    def _guess(self, asked: CandidateBuffers, batch: Batch) -> None:
        for at in range(batch.n_samples):
            if not self.wrong_guess_in or not asked.asks[at, 1] & NOISE or asked.answers[at, TAKEN] < 0:
                continue
            self._guesses += 1
            if self._guesses % self.wrong_guess_in == 0:
                wrong = (asked.answers[at, TAKEN] + 1) % self._head.vocab
                asked.answers[at, TAKEN] = self._buffers.slots[batch.samples[at, 1]] = wrong

    def fetch(self, samples: Any) -> None:
        self._buffers.logits[samples] = self._logits[samples]


class ToyDevice:
    """Implements tandem.devices.base.Device; `programs` are those linked so far."""

    def __init__(self, candidates: int = 0) -> None:
        self.info = DeviceInfo(
            "toy", "toy", "a hash", (MemorySpace("host", 1 << 30, 1 << 30, True),), candidates=candidates
        )
        self.programs: list[ToyProgram] = []

    def load(self, spec: Any, weights: Any, slice: Any = None) -> ToyBlock:
        return ToyBlock(spec)

    def plan_weights(self, blocks: Any) -> int:
        return 0

    def plan_workspace(self, programs: Any, samples: int) -> int:
        return 0

    def plan_host(self, programs: Any, layout: Any) -> int:
        return 0

    def allocate_kv(self, group: KVGroupSpec, pages: int) -> ToyPool:
        return ToyPool(group, pages)

    def link(self, blocks: Any, *, rows: int, buffers: StepBuffers, kv: Any = ()) -> ToyProgram:
        pools = {layer: pool for pool in kv for layer in pool.group.layers}
        self.programs.append(ToyProgram([block.spec for block in blocks], rows, buffers, pools))
        return self.programs[-1]

    def close(self) -> None:
        pass


def toy_plan(spec: ModelSpec, limits: Limits, kv_positions: int | None = None, *, candidates: int = 0) -> MemoryPlan:
    planner = Planner(spec, on_one(spec, "toy").stages(), {"toy": ToyDevice(candidates)}, lambda index: {})
    return planner.plan(limits, kv_positions or limits.context * limits.sequences)


def toy_executor(spec: ModelSpec, plan: MemoryPlan, *, candidates: int = 0) -> tuple[Executor, ToyProgram]:
    device = ToyDevice(candidates)
    executor = Executor(spec, plan, on_one(spec, "toy"), {"toy": device}, lambda index: {})
    return executor, device.programs[0]
