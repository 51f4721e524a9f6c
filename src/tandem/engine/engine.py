"""The engine: requests of token ids in, deltas of token ids out, one step at a time.

engine.submit → scheduler.schedule → Batch → executor → programs on lanes → logits or candidates → sampler → commit →
deltas

Where the device itself puts the tokens of a step where the next one finds them (its head picks candidates), the next
step is scheduled and submitted before this one is waited for, so that the device never waits. It names the tokens by
slot. A sequence that turns out to have ended has computed a row for nothing, which is dropped. So is one from a sampled
token that the device guessed wrongly, or could not choose, and then the right one is computed. A step with rows that
need the host (grammars, penalties, a prompt that goes on, is scored, embedded or forked) is waited for.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from tandem._native import allocations
from tandem.devices.base import Float32Array
from tandem.devices.batch import Batch
from tandem.devices.candidates import TAKEN
from tandem.engine.admission import check_request
from tandem.engine.batch_builder import BatchBuilder
from tandem.engine.masks import GrammarMasks
from tandem.engine.outcomes import Outcomes
from tandem.engine.pooling import FinalNorm
from tandem.engine.request import Delta, Request
from tandem.engine.sampling import Sampled, Sampler, SamplingState, draw_seed
from tandem.engine.scheduler import Schedule, Scheduler
from tandem.engine.sequence import HEAD_START, Sequence, State
from tandem.engine.step import Counters, Step
from tandem.errors import DeviceError, RequestError
from tandem.memory.kv_cache import KVCache
from tandem.pipeline.executor import Executor, StepHandle
from tandem.text.grammar import GrammarCompiler
from tandem.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher


class Engine:
    """One model's engine. Not thread-safe; EngineLoop runs it on a thread.

    Every accepted request ends exactly once: each of its samples brings one delta with a finish_reason, the request's
    last delta has `ended` set.
    """

    def __init__(
        self,
        executor: Executor,
        *,
        eos_ids: Iterable[int] = (),
        prefix_cache: bool = True,
        tokenizer: Callable[[], Tokenizer] | None = None,
        recover: Callable[[frozenset[str]], Executor] | None = None,
        final_norm: FinalNorm | None = None,
    ) -> None:
        """eos_ids: tokens that end a generation, unless a request ignores them. tokenizer: gives the model's, once a
        request has a grammar; without it none may have one. recover: given the devices that were lost, the same model
        for the same limits on others; without it what comes after a loss fails, too. final_norm: the model's; without
        it nothing is embedded.
        """
        layout, limits = executor.plan.layout, executor.plan.limits
        self.limits = limits
        self.vocab = executor.spec.vocab
        self.counters = Counters()
        self._prefix_cache = prefix_cache
        self._recover = recover
        self._lost = False
        self._attach(executor)
        # A tokenizer may know more tokens than the model has rows for.
        self._eos_ids = tuple(sorted(token for token in eos_ids if token < self.vocab))
        self._sampler = Sampler(self.vocab, layout.max_samples, threads=executor.threads)
        self._outcomes = Outcomes(self.scheduler, self.counters, self._sampler, self._eos_ids, final_norm)
        self._masks = GrammarMasks(self.vocab, limits.sequences, executor.threads)
        self._grammars: GrammarCompiler | None = None
        if tokenizer is not None:
            self._grammars = GrammarCompiler(tokenizer, vocab=self.vocab, eos_ids=self._eos_ids)
        # Submitted and not committed, in order.
        self._flying: deque[Step] = deque()
        # False keeps one step in flight, for measurements.
        self.run_ahead = True
        self._allocations = 0
        self._serial = 0

    def _attach(self, executor: Executor) -> None:
        """From now on this executor runs the steps, with a cache in which there is nothing yet."""
        layout = executor.plan.layout
        self.executor = executor
        self.counters.pipeline = executor.times
        self.cache = KVCache(executor.pools, prefix_cache=self._prefix_cache)
        self.scheduler = Scheduler(self.cache, self.limits, layout.max_samples)
        self._steps = [
            Step(
                Schedule(),
                BatchBuilder(Batch(layout, turn), self.cache, self.limits.context),
                executor.candidates[turn] if executor.candidates else None,
            )
            for turn in range(layout.turns)
        ]

    @property
    def idle(self) -> bool:
        """Nothing to compute and nothing to report."""
        return self.scheduler.idle and self._outcomes.collected

    def check(self, request: Request) -> LLMatcher | None:
        """Raises RequestError for a request that this engine does not accept; may be called from any thread.

        Returns the request's grammar, compiled, for `submit`.
        """
        check_request(request, self.limits, self.vocab, embeds=self._outcomes.final_norm is not None)
        if request.params.grammar is None:
            return None
        if self._grammars is None:
            raise RequestError("this engine has no tokenizer, without which it cannot follow a grammar")
        return self._grammars.compile(request.params.grammar)

    def submit(self, request: Request, grammar: LLMatcher | None = None) -> None:
        """Accepts a request. Raises RequestError as `check` does, and for an id that is in use.

        grammar: what `check` returned of it, so that compiling does not hold up the steps.
        """
        if grammar is None:
            grammar = self.check(request)
        if request.id in self._outcomes.live:
            raise RequestError(f"a request with the id {request.id!r} is running already")
        self._serial += 1
        params = request.params
        rank = self.counters.steps + request.priority * HEAD_START
        seed = draw_seed()
        samples = [
            Sequence(
                request,
                index,
                order=(rank, self._serial, index),
                tables=self.cache.new_tables(),
                stop_ids=params.stop_ids(self._eos_ids),
                max_tokens=min(params.max_tokens or self.limits.context, self.limits.context - len(request.prompt)),
                seed=seed,
                matcher=grammar,
            )
            for index in range(params.n)
        ]
        samples[0].forks = samples[1:]
        self._outcomes.live[request.id] = samples
        self.scheduler.add(samples[0])

    def cancel(self, request_id: str, index: int | None = None) -> bool:
        """Ends a request, or one sample of it once that has brought a token. Its pages are free when this returns, or
        with the end of the steps in flight; the next step reports it. False if there is nothing to cancel.
        """
        chosen = [
            sequence
            for sequence in self._outcomes.live.get(request_id, ())
            if sequence.state is not State.JOINED
            and (index is None or (sequence.index == index and sequence.generated))
        ]
        for sequence in chosen:
            self._outcomes.end(sequence, Delta(request_id=request_id, index=sequence.index), "cancelled")
        return bool(chosen)

    def step(self) -> list[Delta]:
        """One turn: commits the step that was submitted first, once the next is submitted where that can run ahead."""
        flying = self._flying
        if not flying:
            self.submit_step()
        while flying and flying[-1].leads and len(flying) < len(self._steps) and self.run_ahead and not self._lost:
            if self.submit_step() is None:
                break
        if flying:
            self.commit(flying.popleft())
        return self._outcomes.collect()

    def submit_step(self) -> Step | None:
        """Schedules and queues the next step; None when there is nothing to compute, or nothing that can run ahead.
        Raises what `recover` does.
        """
        flying = self._flying
        if self._lost and not flying:
            self._fail_over()
        started = time.perf_counter()
        counters = self.counters
        if not flying:
            self._allocations = allocations()
        step = next(step for step in self._steps if step not in flying)
        self.scheduler.schedule(step.schedule, ahead=bool(flying))
        if not step.schedule.sequences:
            return None
        batch = step.builder.fill(step.schedule)
        counters.preemptions = self.scheduler.preemptions
        counters.bytes_copied = self.cache.bytes_copied
        positions = self._collect_states(step)
        if step.candidates is not None:
            # The device applies the masks.
            step.masks = self._masks.fill(step.states)
            self._sampler.ask(step.candidates, step.states, batch.n_samples, step.masks, positions)
        submitted = time.perf_counter()
        counters.host_seconds += submitted - started
        step.handle = self.executor.submit(batch)
        if step.candidates is None:
            step.masks = self._masks.fill(step.states)
        step.leads = self._leads(step)
        if flying:
            counters.host_seconds += time.perf_counter() - submitted
        else:
            counters.wait_seconds += time.perf_counter() - submitted
        flying.append(step)
        return step

    def _collect_states(self, step: Step) -> list[int]:
        """The states of the step's sampled rows, into the step; returns the positions of what they will sample."""
        states, positions, schedule = step.states, [], step.schedule
        states.clear()
        for i, samples in enumerate(schedule.samples):
            if samples:
                sequence = schedule.sequences[i]
                states.append(self._state(sequence))
                states.extend([self._state(fork) for fork in sequence.forks])
                positions += [schedule.starts[i] + schedule.rows[i]] * samples
        return positions

    @staticmethod
    def _leads(step: Step) -> bool:
        return (
            step.candidates is not None
            and all(samples == 1 for samples in step.schedule.samples)
            and not any(step.schedule.scores)
            and not any(state.needs_token for state in step.states)
            and step.candidates.fills_slots(len(step.states))
        )

    def commit(self, step: Step) -> None:
        """Waits for a step, samples, and moves every sequence on that has not ended meanwhile."""
        assert step.handle is not None
        schedule, counters = step.schedule, self.counters
        counters.steps += 1
        counters.rows += schedule.n_rows
        began = time.perf_counter()
        try:
            logits = step.handle.wait()
            waited = time.perf_counter()
            sampled = self._sample(step, step.handle, logits) if step.states else None
        except DeviceError as error:
            self.scheduler.land(schedule)
            self._fail_step(schedule, str(error))
            return
        # Scoring uses the sampler's memory, too.
        tokens: list[int] = [] if sampled is None else sampled.tokens.tolist()
        if any(schedule.scores):
            self._outcomes.score(schedule, logits[len(step.states) :])
        sampled_at = time.perf_counter()
        if any(sequence.pool is not None for sequence in schedule.sequences):
            self._outcomes.pool(schedule, step.handle.hidden())
        self.scheduler.land(schedule)
        self._move_on(step, sampled, tokens)
        taken = allocations()
        counters.allocations += taken - self._allocations
        self._allocations = taken
        counters.wait_seconds += waited - began
        counters.sample_seconds += sampled_at - waited
        counters.host_seconds += time.perf_counter() - sampled_at

    def _move_on(self, step: Step, sampled: Sampled | None, tokens: list[int]) -> None:
        schedule, errors = step.schedule, {} if step.masks is None else self._masks.errors
        guesses = step.candidates.answers[:, TAKEN].tolist() if step.candidates is not None and step.leads else tokens
        at = 0
        for sequence, rows, samples in zip(schedule.sequences, schedule.rows, schedule.samples, strict=True):
            if sequence.stale or sequence.state is State.DONE:
                self.counters.wasted_rows += rows
                sequence.stale = max(0, sequence.stale - rows)
                at += samples
                continue
            if sampled is not None and samples and at in sampled.lacking:
                self._repeat(sequence, rows)
                at += samples
                continue
            self.scheduler.advance(sequence, rows)
            if samples:
                assert sampled is not None
                self.counters.sampled += samples
                for sample in self.scheduler.fork(sequence) if sequence.forks else (sequence,):
                    reason = errors.get(at) or sampled.errors.get(at)
                    self._outcomes.take(sample, tokens[at], sampled.logprobs.get(at), reason)
                    if sample.flying and guesses[at] != tokens[at]:
                        sample.stale = sample.flying
                        self._state(sample).distrust()
                    at += 1
            elif sequence.pool is not None and sequence.pending == 0:
                self._outcomes.embed(sequence, sequence.pool)

    def _repeat(self, sequence: Sequence, rows: int) -> None:
        """Its logits are gone, and its token cannot be told without them: its last row is computed again."""
        self.scheduler.advance(sequence, rows - 1)
        self.counters.wasted_rows += 1
        sequence.stale = sequence.flying
        self._state(sequence).distrust(whole=True)

    def _sample(self, step: Step, handle: StepHandle, logits: Float32Array) -> Sampled:
        """Tokens for the states, from candidates where the device picked them. Raises DeviceError."""
        if step.candidates is None:
            return self._sampler.sample(logits, step.states, masks=step.masks)
        counters = self.counters
        counters.whole_rows += len(logits) - len(step.states)

        def fetch(rows: list[int]) -> Float32Array:
            counters.whole_rows += len(rows)
            return handle.fetch(rows)

        # What was submitted behind this step has its logits' place.
        return self._sampler.sample_candidates(
            step.candidates, step.states, None if self._flying else fetch, step.masks
        )

    def _state(self, sequence: Sequence) -> SamplingState:
        if sequence.sampling is None:
            sequence.sampling = SamplingState(
                sequence.params,
                sequence.tokens,
                vocab=self.vocab,
                eos_token_ids=self._eos_ids,
                seed=sequence.seed,
                sample_index=sequence.index,
                max_tokens=sequence.max_tokens,
                matcher=None if sequence.matcher is None else sequence.matcher.deep_copy(),
            )
        return sequence.sampling

    def _fail_over(self) -> None:
        """Goes on without the devices that were lost. Whoever was not in the failed step is computed again.

        Raises what `recover` does: there is no engine any more then.
        """
        assert self._recover is not None
        self._lost = False
        lost, preemptions, copied = self.executor.lost, self.scheduler.preemptions, self.cache.bytes_copied
        self.executor.close()
        # What they hold must be free before the model is loaded once more.
        del self.cache, self.scheduler, self._steps, self._outcomes.scheduler
        self._attach(self._recover(lost))
        self._outcomes.scheduler = self.scheduler
        self.scheduler.preemptions, self.cache.bytes_copied = preemptions, copied
        for sequence in [sequence for samples in self._outcomes.live.values() for sequence in samples]:
            sequence.tables = self.cache.new_tables()
            sequence.slot, sequence.computed, sequence.announced = -1, 0, set()
            if sequence.state is not State.JOINED:
                self.scheduler.add(sequence)

    def _fail_step(self, schedule: Schedule, reason: str) -> None:
        """The devices could not do the step: what they wrote is unknown, so all of its sequences fail."""
        if self._recover is not None and self.executor.lost:
            self._lost = True
            reason += "; the model is loaded again on what is left"
        for sequence in schedule.sequences:
            if sequence.state is not State.DONE:
                delta = Delta(request_id=sequence.request_id, index=sequence.index, error=reason)
                self._outcomes.end(sequence, delta, "error")
