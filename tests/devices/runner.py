"""Runs whole prompts through any devices and placements, for tests: the engine in miniature.

    halves = {2: [(ref, 0, 64), (cpu, 64, 128)]}
    runner = Runner(spec, checkpoint, [(ref, range(0, 5)), (cpu, range(5, 10))], slices=halves)
    logits = runner.forward([[1, 5, 9], [1, 7]], chunk=2)

Pages are handed out in a shuffled order, and pages behind a window are reused at once, so that a device that
ignores its page tables fails.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tandem._native import Timeline
from tandem.devices.base import Device, Event, Float32Array, KVGroupSpec, StepBuffers
from tandem.devices.batch import Batch, BatchLayout
from tandem.devices.candidates import CandidateBuffers, candidate_shapes
from tandem.devices.slicing import combine_spec, combine_weights
from tandem.devices.spec import AttentionSpec, KVDtype, Slice
from tandem.models.load import block_weights
from tandem.models.spec import ModelSpec
from tandem.weights.checkpoint import Checkpoint

Placement = Sequence[tuple[Device, range]]
Slices = Mapping[int, Sequence[tuple[Device, int, int]]]


@dataclass
class SequenceState:
    """`tables`: for each KV group its live pages, `first` the logical number of the first one."""

    slot: int
    length: int = 0
    tables: list[list[int]] = field(default_factory=list)
    first: list[int] = field(default_factory=list)


class Runner:
    """One model, loaded.

    placement: which device runs which blocks (indices into `spec.blocks`), covering the model in order.
    slices: for a block index, the devices that share it as (device, start, stop); the device it is placed on
    adds the parts. rows, sequences, context: the largest batch, and the longest sequence. candidates: the head is asked
    as `buffers.candidates` says, at first for whole rows.
    """

    def __init__(
        self,
        spec: ModelSpec,
        checkpoint: Checkpoint,
        placement: Placement,
        *,
        slices: Slices | None = None,
        rows: int = 64,
        sequences: int = 4,
        context: int = 256,
        page_size: int = 16,
        kv_dtype: KVDtype = "f32",
        seed: int = 0,
        candidates: bool = False,
    ) -> None:
        self.spec = spec
        self.rows = rows
        self._random = random.Random(seed)
        self._slices = slices or {}
        self._owners = [device for device, blocks in placement for _ in blocks]
        assert [i for _, blocks in placement for i in blocks] == list(range(len(spec.blocks)))
        most_slices = max((len(parts) for parts in self._slices.values()), default=0)
        self.buffers = StepBuffers(
            hidden=aligned_zeros((rows, spec.hidden)),
            logits=aligned_zeros((rows, spec.vocab)),
            partials=aligned_zeros((most_slices, rows, spec.hidden)),
            slots=aligned_zeros((1, sequences)).view(np.int32)[0],
        )
        if candidates:
            shapes = candidate_shapes(rows, sequences, spec.vocab)
            asked = {name: aligned_zeros(shape).view(np.int32) for name, shape in shapes.items()}
            self.buffers.candidates = (CandidateBuffers(**asked),)
        self._page_size = page_size
        self._plan_kv(kv_dtype, sequences, context)
        self._batch = Batch(BatchLayout(rows, sequences, rows, sequences * sum(self._table_pages), len(self.groups)))
        self._stages = self._link_all(checkpoint)
        self._timelines = {id(device): Timeline() for device, _ in self._pools.values()}
        self._timelines |= {id(device): Timeline() for stage in self._stages for device, _ in stage}
        self._values = dict.fromkeys(self._timelines, 0)
        self._free_slots = list(range(sequences))

    def _plan_kv(self, dtype: KVDtype, sequences: int, context: int) -> None:
        """KV groups: layers with equal device, window and shape; with the pages that `sequences` can need."""
        layers: dict[tuple[int, int | None, int, int], list[int]] = {}
        devices: dict[int, Device] = {}
        for index, block in enumerate(self.spec.blocks):
            if not isinstance(block, AttentionSpec):
                continue
            whole = [(self._owners[index], 0, block.kv_heads)]
            for device, start, stop in self._slices.get(index, whole):
                devices[id(device)] = device
                layers.setdefault((id(device), block.window, stop - start, block.head_dim), []).append(block.layer)
        self.groups: list[KVGroupSpec] = []
        self._pools: dict[int, tuple[Device, Any]] = {}
        self._table_pages: list[int] = []
        self._free: list[list[int]] = []
        for (device_id, window, kv_heads, head_dim), members in layers.items():
            index = len(self.groups)
            group = KVGroupSpec(index, tuple(members), kv_heads, head_dim, window, self._page_size, dtype)
            live = context if window is None else min(context, window - 1 + self.rows)
            pages = -(-live // self._page_size) + 1
            self.groups.append(group)
            self._table_pages.append(pages)
            self._free.append(self._random.sample(range(sequences * pages), sequences * pages))
            self._pools[index] = (
                devices[device_id],
                devices[device_id].allocate_kv(group, sequences * pages),
            )

    def _link_all(self, checkpoint: Checkpoint) -> list[list[tuple[Device, Any]]]:
        """Stages that run one after another; the programs of one stage run side by side."""
        stages: list[list[tuple[Device, Any]]] = []
        run: list[Any] = []
        for index, block in enumerate(self.spec.blocks):
            owner = self._owners[index]
            weights = block_weights(checkpoint, self.spec, index)
            if run and (owner is not self._owners[index - 1] or index in self._slices):
                stages.append([(self._owners[index - 1], self._link(self._owners[index - 1], run))])
                run = []
            if index not in self._slices:
                run.append(owner.load(block, weights))
                continue
            parts = self._slices[index]
            loaded = [
                (device, device.load(block, weights, Slice(number, start, stop)))
                for number, (device, start, stop) in enumerate(parts)
            ]
            stages.append([(device, self._link(device, [part])) for device, part in loaded])
            run.append(owner.load(combine_spec(block, len(parts)), combine_weights(weights)))
        stages.append([(self._owners[-1], self._link(self._owners[-1], run))])
        return stages

    def _link(self, device: Device, blocks: list[Any]) -> Any:
        pools = [pool for owner, pool in self._pools.values() if owner is device]
        return device.link(blocks, rows=self.rows, buffers=self.buffers, kv=pools)

    def start(self) -> SequenceState:
        return SequenceState(self._free_slots.pop(), tables=[[] for _ in self.groups], first=[0] * len(self.groups))

    def finish(self, sequence: SequenceState) -> None:
        self._free_slots.append(sequence.slot)
        for group, table in enumerate(sequence.tables):
            for page in table:
                self._release(group, page)
            table.clear()

    def step(self, work: Sequence[tuple[SequenceState, Sequence[int]]]) -> list[Float32Array]:
        """Appends tokens to sequences, in one batch; every row's logits, [tokens, vocab] a sequence."""
        self._fill(work)
        events: list[Event] = []
        for stage in self._stages:
            signals = []
            for device, program in stage:
                self._values[id(device)] += 1
                signals.append(Event(self._timelines[id(device)], self._values[id(device)]))
                program.submit(self._batch, wait=events, signal=signals[-1])
            events = signals
        for event in events:
            event.wait()
        ends = np.cumsum([len(tokens) for _, tokens in work])
        return np.split(self.buffers.logits[: ends[-1]].copy(), ends[:-1])

    def forward(self, prompts: Sequence[Sequence[int]], *, chunk: int = 16, decode: int = 0) -> list[Float32Array]:
        """Logits at every position of every prompt, [len(prompt), vocab] each.

        Prompts run in chunks of `chunk` tokens, their last `decode` tokens one by one; each prompt starts one
        step after the one before, so that batches mix prefill and decode.
        """
        sequences = [self.start() for _ in prompts]
        parts: list[list[Float32Array]] = [[] for _ in prompts]
        turn = 0
        while any(s.length < len(prompt) for s, prompt in zip(sequences, prompts, strict=True)):
            chosen, work, left = [], [], self.rows
            for index, (sequence, prompt) in enumerate(zip(sequences, prompts, strict=True)):
                prefill = max(len(prompt) - decode - sequence.length, 1)
                count = min(chunk, prefill, len(prompt) - sequence.length, left)
                if index <= turn and count > 0:
                    chosen.append(index)
                    work.append((sequence, prompt[sequence.length : sequence.length + count]))
                    left -= count
            for index, logits in zip(chosen, self.step(work) if work else [], strict=True):
                parts[index].append(logits)
            turn += 1
        for sequence in sequences:
            self.finish(sequence)
        return [np.concatenate(each) for each in parts]

    def greedy(self, prompt: Sequence[int], count: int) -> tuple[list[int], list[float]]:
        """`count` greedy tokens, and for each the margin of its logit over the second best."""
        sequence = self.start()
        tokens: list[int] = []
        margins: list[float] = []
        pending = list(prompt)
        while len(tokens) < count:
            (logits,) = self.step([(sequence, pending[: self.rows])])
            pending = pending[self.rows :]
            if not pending:
                second, best = np.partition(logits[-1], -2)[-2:]
                tokens.append(int(np.argmax(logits[-1])))
                margins.append(float(best - second))
                pending = [tokens[-1]]
        self.finish(sequence)
        return tokens, margins

    def _fill(self, work: Sequence[tuple[SequenceState, Sequence[int]]]) -> None:
        batch = self._batch
        row = page = 0
        for index, (sequence, tokens) in enumerate(work):
            stop = sequence.length + len(tokens)
            batch.sequences[index, :4] = (row, len(tokens), stop, sequence.slot)
            for group in range(len(self.groups)):
                self._advance(sequence, group, stop)
                table = sequence.tables[group]
                batch.sequences[index, 4 + 2 * group : 6 + 2 * group] = (page, sequence.first[group])
                batch.pages[page : page + len(table)] = table
                page += len(table)
            for position, token in enumerate(tokens, sequence.length):
                batch.rows[row] = (index, position, token, 0)
                batch.samples[row] = (row, row, 0, 0)
                row += 1
            sequence.length = stop
        batch.set_counts(row, len(work), row)

    def _advance(self, sequence: SequenceState, group: int, stop: int) -> None:
        """Frees the pages behind the window of the next row, then takes pages up to position `stop`."""
        window = self.groups[group].window
        table = sequence.tables[group]
        if window is not None:
            first = max(0, sequence.length - window + 1) // self._page_size
            while sequence.first[group] < first:
                self._release(group, table.pop(0))
                sequence.first[group] += 1
        while (sequence.first[group] + len(table)) * self._page_size < stop:
            table.append(self._free[group].pop())

    def _release(self, group: int, page: int) -> None:
        free = self._free[group]
        free.insert(self._random.randint(0, len(free)), page)


def aligned_zeros(shape: tuple[int, ...]) -> Float32Array:
    """Zeros in page-aligned memory, as a planned arena would give them."""
    size = int(np.prod(shape)) * 4
    raw = np.zeros(size + 4096, dtype=np.uint8)
    start = -raw.ctypes.data % 4096
    return raw[start : start + size].view(np.float32).reshape(shape)
