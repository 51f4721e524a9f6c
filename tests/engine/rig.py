"""Engines on the toy device or on the CPU, watched at every step, and what a request gets when it is alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from toy_device import toy_executor, toy_plan, toy_spec

from tandem.engine.engine import Engine
from tandem.engine.request import Delta, Request, TokenLogprobs
from tandem.engine.sampling_params import SamplingParams
from tandem.memory.plan import Limits
from tandem.text.tokenizer import Tokenizer

VOCAB = 64
EOS = 7


@dataclass
class Sample:
    """One sample as its deltas told it."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | None = None
    error: str | None = None
    cached_tokens: int = 0


class Driver:
    """Checks the scheduler's invariants around every step, and that every request ends exactly once."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.results: dict[str, dict[int, Sample]] = {}
        self.ended: set[str] = set()
        self._names = 0

    def submit(self, prompt: list[int], params: SamplingParams, *, priority: int = 0, salt: str = "") -> str:
        self._names += 1
        name = f"r{self._names}"
        request = Request(id=name, prompt=prompt, params=params, priority=priority, cache_salt=salt)
        self.engine.submit(request)
        self.results[name] = {index: Sample() for index in range(params.n)}
        return name

    def step(self) -> list[Delta]:
        self.engine.scheduler.check()
        deltas = self.engine.step()
        scheduler = self.engine.scheduler  # another one, if a device was lost
        scheduler.check()
        for delta in deltas:
            self._record(delta)
        if scheduler.idle:
            assert all(allocator.used == 0 for allocator in self.engine.cache.allocators)
        return deltas

    def _record(self, delta: Delta) -> None:
        sample = self.results[delta.request_id][delta.index]
        assert sample.finish_reason is None, "a sample goes on after its end"
        assert delta.request_id not in self.ended, "a request goes on after its end"
        sample.tokens += delta.tokens
        sample.logprobs += delta.logprobs or []
        sample.prompt_logprobs += delta.prompt_logprobs or []
        sample.finish_reason = delta.finish_reason
        sample.stop_reason, sample.error = delta.stop_reason, delta.error
        sample.cached_tokens += delta.cached_tokens
        if delta.ended:
            self.ended.add(delta.request_id)
            assert all(s.finish_reason is not None for s in self.results[delta.request_id].values())

    def run(self, each_step: Callable[[], None] = lambda: None, *, at_most: int = 20_000) -> None:
        for _ in range(at_most):
            if self.engine.idle:
                assert self.ended == set(self.results), "a request has not ended"
                return
            self.step()
            each_step()
        raise AssertionError("the engine does not come to an end")


class Rig(Driver):
    """An engine on the toy device."""

    def __init__(
        self,
        *,
        rows: int = 16,
        sequences: int = 4,
        context: int = 256,
        window: int | None = 24,
        kv_positions: int | None = None,
        prefix_cache: bool = True,
        vocab: int = VOCAB,
        candidates: int = 0,
        tokenizer: Callable[[], Tokenizer] | None = None,
    ) -> None:
        spec = toy_spec(vocab, window, context)
        plan = toy_plan(spec, Limits(context, sequences, rows), kv_positions, candidates=candidates)
        executor, self.program = toy_executor(spec, plan, candidates=candidates)
        super().__init__(Engine(executor, eos_ids={EOS}, prefix_cache=prefix_cache, tokenizer=tokenizer))


def alone(
    prompt: list[int], params: SamplingParams, *, context: int = 256, window: int | None = 24, vocab: int = VOCAB
) -> dict[int, Sample]:
    """Each sample of a request as it comes out of an engine that does nothing else, its prompt in one chunk."""
    rows = max(context, params.n)
    rig = Rig(rows=rows, sequences=params.n, context=context, window=window, prefix_cache=False, vocab=vocab)
    name = rig.submit(prompt, params)
    rig.run()
    return rig.results[name]
