"""A state machine drives the engine: arrivals, steps, cancellations, cleared caches, in any order."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule
from rig import VOCAB, Rig, alone

from tandem.engine.sampling_params import SamplingParams

CONTEXT = 96


class EngineMachine(RuleBasedStateMachine):
    """Prompts are cut from one story, so that prefixes meet; the pool holds little more than one full sequence."""

    requests = Bundle("requests")

    @initialize(
        rows=st.integers(4, 40),
        sequences=st.integers(3, 6),
        window=st.sampled_from([None, 5, 20, 33]),
        extra=st.integers(0, 2 * CONTEXT),
        prefix_cache=st.booleans(),
        candidates=st.sampled_from([0, 64]),
    )
    def build(
        self, rows: int, sequences: int, window: int | None, extra: int, prefix_cache: bool, candidates: int
    ) -> None:
        self.window = window
        self.rig = Rig(
            rows=max(rows, sequences),
            sequences=sequences,
            context=CONTEXT,
            window=window,
            kv_positions=CONTEXT + extra,
            prefix_cache=prefix_cache,
            candidates=candidates,
        )
        self.asked: dict[str, tuple[list[int], SamplingParams]] = {}
        self.cancelled: set[str] = set()

    @rule(
        target=requests,
        shared=st.integers(0, CONTEXT - 8),
        own=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=7),
        max_tokens=st.integers(1, 40),
        n=st.sampled_from([1, 1, 1, 3]),
        priority=st.integers(-1, 1),
        seed=st.integers(0, 99),
    )
    def submit(self, shared: int, own: list[int], max_tokens: int, n: int, priority: int, seed: int) -> str:
        prompt = [i * i % 61 for i in range(shared)] + own
        params = SamplingParams(max_tokens=max_tokens, n=n, seed=seed, temperature=float(seed % 2))
        name = self.rig.submit(prompt, params, priority=priority)
        self.asked[name] = (prompt, params)
        return name

    @rule(steps=st.integers(1, 12))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.rig.step()

    @rule(name=requests)
    def cancel(self, name: str) -> None:
        if self.rig.engine.cancel(name):
            self.cancelled.add(name)

    @rule(name=requests, index=st.integers(0, 2))
    def cancel_sample(self, name: str, index: int) -> None:
        if self.rig.engine.cancel(name, index):
            self.cancelled.add(name)

    @rule()
    def drop_cached_pages(self) -> None:
        for allocator in self.rig.engine.cache.allocators:
            allocator.drop_cached()

    @invariant()
    def pages_and_slots_are_conserved(self) -> None:
        if hasattr(self, "rig"):
            self.rig.engine.scheduler.check()

    def teardown(self) -> None:
        if not hasattr(self, "rig"):
            return
        self.rig.run()
        for name, (prompt, params) in self.asked.items():
            expected = alone(prompt, params, context=CONTEXT, window=self.window)
            for index, sample in self.rig.results[name].items():
                tokens = expected[index].tokens
                if name in self.cancelled:
                    tokens = tokens[: len(sample.tokens)]
                assert sample.tokens == tokens


EngineMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
TestEngine = EngineMachine.TestCase
