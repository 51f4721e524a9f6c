"""Bounds on work and memory: shared prefixes, sliding windows, overload."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from rig import VOCAB, Rig, alone

from tandem.engine.sampling_params import SamplingParams


@pytest.mark.parametrize("window", [None, 24, 300])
@pytest.mark.parametrize("rows", [64, 512])
def test_a_common_prefix_in_flight_is_computed_once(window: int | None, rows: int) -> None:
    draw = random.Random(1)
    page, prefix, own, requests = 16, 1024, 8, 64
    rig = Rig(rows=rows, sequences=64, context=1200, window=window)
    common = [draw.randrange(VOCAB) for _ in range(prefix)]
    params = SamplingParams(max_tokens=1, temperature=0.0)
    prompts = [common + [draw.randrange(VOCAB) for _ in range(own)] for _ in range(requests)]
    names = [rig.submit(prompt, params) for prompt in prompts]
    rig.run()
    assert rig.program.rows_computed <= prefix + requests * (own + page)
    for name, prompt in list(zip(names, prompts, strict=True))[::16]:
        assert rig.results[name][0].tokens == alone(prompt, params, context=1200, window=window)[0].tokens


def test_those_who_wait_for_a_prefix_go_on_when_its_maker_fails() -> None:
    rig = Rig(rows=64, sequences=4)
    params = SamplingParams(max_tokens=3, temperature=0.0)
    maker = rig.submit([1] * 40, params)
    waiting = [rig.submit([1] * 40 + [k], params) for k in range(3)]
    rig.program.fail_next = "the device was lost"
    rig.step()
    assert rig.results[maker][0].finish_reason == "error"
    rig.run()
    assert rig.program.rows_computed < 3 * 41, "one of them becomes the next maker"
    for k, name in enumerate(waiting):
        assert rig.results[name][0].tokens == alone([1] * 40 + [k], params)[0].tokens


def test_a_whole_prompt_in_the_cache_still_computes_its_last_token() -> None:
    rig = Rig(rows=64)
    params = SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True)
    prompt = [2] * 48
    first = rig.submit(prompt, params)
    rig.run()
    second = rig.submit(prompt, params)
    rig.run()
    assert rig.results[second][0].cached_tokens == 32
    assert rig.results[second][0].tokens == rig.results[first][0].tokens


@pytest.mark.parametrize("rows", [16, 100, 256])
def test_a_sliding_window_bounds_the_pages_of_a_sequence(rows: int) -> None:
    window, page, context = 512, 16, 8192
    rig = Rig(rows=rows, sequences=1, context=context, window=window)
    rig.submit([3] * (context - 64), SamplingParams(max_tokens=60, ignore_eos=True))
    full, sliding = 0, 1
    most = [0, 0]

    def watch() -> None:
        for sequence in rig.engine.scheduler.running:
            for group in (full, sliding):
                most[group] = max(most[group], sequence.tables.live_pages(group))

    original = rig.program.submit

    def submit(*arguments: object, **named: object) -> None:
        watch()
        original(*arguments, **named)  # type: ignore[arg-type]

    rig.program.submit = submit  # type: ignore[method-assign, assignment]
    rig.run(watch)
    assert most[full] == (context - 5) // page + 1
    assert most[sliding] <= -(-(window + rows) // page) + 1


@pytest.mark.slow
def test_overload_comes_to_an_end_in_bounded_memory() -> None:
    requests, context = 10_000, 80
    rig = Rig(rows=256, sequences=64, context=context, window=24, kv_positions=8 * context)
    draw = random.Random(4)
    wanted = 0
    for _ in range(requests):
        prompt = [draw.randrange(VOCAB) for _ in range(draw.randint(1, 60))]
        params = SamplingParams(max_tokens=draw.randint(1, 10), ignore_eos=True, temperature=0.0)
        rig.submit(prompt, params)
        wanted += params.max_tokens or 0
    engine = rig.engine
    before = resident_bytes()
    tokens = 0
    ended = []
    while not engine.idle:
        for delta in engine.step():
            tokens += len(delta.tokens)
            ended += [delta.request_id] if delta.ended else []
    assert sorted(ended) == sorted(rig.results)
    assert tokens == wanted
    assert resident_bytes() - before < 8 << 20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
