"""A loaded model that nobody asks takes no processor time: every thread sleeps."""

from __future__ import annotations

import time

from tandem.engine.sampling_params import SamplingParams
from tandem.llm import LLM


def test_an_idle_engine_uses_less_than_a_hundredth_of_a_core() -> None:
    with LLM(max_sequences=4, threads=2) as llm:
        llm.generate(["Once upon a time"] * 2, SamplingParams(max_tokens=4))
        time.sleep(0.1)  # threads wait awake for some tens of microseconds before they sleep
        before = time.process_time()
        time.sleep(1.0)
        assert time.process_time() - before < 0.01
