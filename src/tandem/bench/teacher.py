"""Teacher forcing: the logits of given texts, through the same plan, executor and pages as the engine's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from tandem._native import Scorer
from tandem.devices.batch import Batch
from tandem.devices.ref import RefDevice
from tandem.devices.ref.blocks import Observer
from tandem.engine import sequence as engine
from tandem.engine.batch_builder import BatchBuilder
from tandem.engine.build import EngineConfig, plan_engine
from tandem.engine.request import Request
from tandem.engine.sampling_params import SamplingParams
from tandem.engine.scheduler import Schedule
from tandem.errors import BenchError
from tandem.memory.kv_cache import KVCache
from tandem.weights.checkpoint import Checkpoint

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Forced:
    """Some rows of one step. windows: which window each row is of. targets: the token that stands after each row.
    logits: [rows, vocab] float32, valid until the next step.
    """

    windows: npt.NDArray[np.int32]
    targets: npt.NDArray[np.int32]
    logits: Floats


class Teacher:
    """A model, loaded to read windows of `length` tokens, `together` of them at a time. Close it, or use `with`.

    config: `context`, `max_sequences`, `full_sequences` and `prefix_cache` are set here. observer: told of the
    reference device's products. Raises what `plan_engine` and loading raise.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: EngineConfig,
        *,
        length: int,
        together: int = 4,
        observer: Observer | None = None,
    ) -> None:
        config = replace(
            config,
            context=length,
            max_sequences=together,
            full_sequences=together,
            rows=max(config.rows, together),
            prefix_cache=False,
        )
        planned = plan_engine(checkpoint, config)
        for device in planned.devices.values():
            if isinstance(device, RefDevice):
                device.observer = observer
        try:
            self._executor = planned.load_executor()
        except BaseException:
            planned.close()
            raise
        self.spec, self.length, self.together = planned.spec, length, together
        self.threads = self._executor.threads
        self._cache = KVCache(self._executor.pools, prefix_cache=False)
        self._batch = Batch(planned.plan.layout)
        self._builder = BatchBuilder(self._batch, self._cache, length)
        # Rows of logits of a step come in two kinds; those of the engine's own samples are not asked for here.
        self._score_rows = planned.plan.layout.max_samples - together

    def close(self) -> None:
        self._executor.close()

    def __enter__(self) -> Teacher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, windows: Sequence[Sequence[int]], first: int) -> Iterator[Forced]:
        """Rows of positions [first, length - 2], each of which has a token after it to predict.

        windows: of `length` tokens each. The chunks depend on `together` and the batch's capacity alone, so that two
        teachers of equal vocabulary and configuration give the same rows in the same order.
        """
        for start in range(0, len(windows), self.together):
            yield from self._read_together(windows, range(start, min(start + self.together, len(windows))), first)

    def _read_together(self, windows: Sequence[Sequence[int]], which: range, first: int) -> Iterator[Forced]:
        sequences = [self._sequence(windows[number], slot) for slot, number in enumerate(which)]
        schedule = Schedule()
        most = max(1, self._batch.layout.max_rows // self.together)
        most_scored = max(1, min(most, self._score_rows // self.together))
        start = 0
        while start < self.length - 1:
            stop = min(first, start + most) if start < first else min(self.length - 1, start + most_scored)
            schedule.clear()
            for sequence in sequences:
                if not self._cache.grow(sequence.tables, start, stop):
                    raise BenchError("the KV cache is too small for the windows; read fewer together")
                schedule.add(sequence, stop - start, stop - start if start >= first else 0)
            logits = self._run(schedule)
            if start >= first:
                targets = np.concatenate([np.array(s.tokens[start + 1 : stop + 1], np.int32) for s in sequences])
                yield Forced(np.repeat(np.array(which, np.int32), stop - start), targets, logits)
            for sequence in sequences:
                sequence.computed = stop
                self._cache.slide(sequence.tables, stop)
            start = stop
        for sequence in sequences:
            self._cache.free(sequence.tables)

    def _run(self, schedule: Schedule) -> Floats:
        for candidates in self._executor.candidates:
            candidates.asks[:, 0] = 0  # every row whole
        return self._executor.submit(self._builder.fill(schedule)).wait()

    def _sequence(self, tokens: Sequence[int], slot: int) -> engine.Sequence:
        if len(tokens) != self.length:
            raise BenchError(f"a window has {len(tokens):,} tokens; expected {self.length:,}")
        request = Request(id=str(slot), prompt=list(tokens), params=SamplingParams())
        sequence = engine.Sequence(
            request, 0, order=(0, 0, slot), tables=self._cache.new_tables(), stop_ids=frozenset(), max_tokens=1, seed=0
        )
        sequence.slot = slot
        return sequence


def score(scorer: Scorer, forced: Forced) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int32]]:
    """Each row's -log(probability of its target) in nats, and its likeliest token."""
    nll = np.empty(len(forced.targets), np.float64)
    top = np.empty(len(forced.targets), np.int32)
    scorer.score(forced.logits, forced.targets, nll, top)
    return nll, top
