"""The offline API with many requests, with the model's own sampling, and with requests that are left early."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from paths import SHARED
from tandem.engine.build import EngineConfig, plan_engine
from tandem.engine.sampling_params import SamplingParams
from tandem.errors import RequestError
from tandem.llm import LLM
from tandem.weights.open import open_checkpoint

TINY = SHARED / "data" / "models" / "TinyStories-656K"
ENDLESS = SamplingParams(max_tokens=None, ignore_eos=True)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(TINY, threads=1, max_sequences=4, rows=64, prefix_cache=False) as model:
        yield model


def pages_in_use(llm: LLM) -> int:
    return sum(allocator.used for allocator in llm._engine.cache.allocators)


def wait_until_idle(llm: LLM, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while pages_in_use(llm) or not llm._engine.idle:
        assert time.monotonic() < end, "a request that was left goes on"
        time.sleep(0.005)


def memory_for(positions: int, **config: object) -> int:
    """Bytes with which the KV pools hold just so many positions."""
    planned = plan_engine(open_checkpoint(TINY), EngineConfig(**config))  # type: ignore[arg-type]
    planned.close()
    [group] = planned.plan.groups
    return planned.plan.total - (group.pages - positions // group.group.page_size) * group.group.page_bytes


def many_prompts(n: int) -> list[str | list[int]]:
    """Of mixed lengths; every hundredth is not acceptable."""
    prompts: list[str | list[int]] = []
    for i in range(n):
        prompts.append([] if i % 100 == 99 else [2 + (i * 31 + k * 7) % 2000 for k in range(1 + i * 13 % 50)])
    return prompts


def check_overload(n: int, capfd: pytest.CaptureFixture[str]) -> None:
    config = {"threads": 2, "context": 64, "max_sequences": 64, "rows": 256}
    prompts = many_prompts(n)
    params = [SamplingParams(max_tokens=1 + i % 13, temperature=0.0, ignore_eos=True) for i in range(n)]
    with LLM(TINY, memory=memory_for(8 * 64, **config), **config) as model:  # type: ignore[arg-type]
        assert model.memory_plan.kv_sequences == 8
        model.generate(prompts[:64], params[:64])
        before = resident_bytes()
        outputs = model.generate(prompts, params, progress=True)
        grown = resident_bytes() - before
        wait_until_idle(model)
        assert [output.prompt_token_ids for output in outputs] == prompts
        for i, output in enumerate(outputs):
            assert output.finished
            if i % 100 == 99:
                assert output.error is not None and "empty" in output.error
            else:
                assert output.error is None
                assert len(output.outputs[0].token_ids) == min(params[i].max_tokens or 0, 64 - len(prompts[i]))
        for i in range(0, n, n // 7):
            assert model.generate([prompts[i]], params[i])[0].outputs == outputs[i].outputs
    assert f"{n:,}/{n:,} prompts" in capfd.readouterr().err
    # The results themselves, and what is queued: a few KiB each.
    assert grown < 32 * 2**20 + n * 8192, f"grown by {grown / 2**20:.0f} MiB"


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_thousands_of_prompts_come_back_in_order(capfd: pytest.CaptureFixture[str]) -> None:
    check_overload(2000, capfd)


@pytest.mark.slow
def test_ten_thousand_prompts_with_pages_for_eight(capfd: pytest.CaptureFixture[str]) -> None:
    check_overload(10_000, capfd)


def test_samples_share_one_prefill(llm: LLM) -> None:
    prompt = list(range(100, 150))
    before = llm.counters.rows
    [output] = llm.generate([prompt], SamplingParams(n=4, max_tokens=10, ignore_eos=True, seed=1))
    assert llm.counters.rows - before == len(prompt) + 4 * 9
    assert len({tuple(sample.token_ids) for sample in output.outputs}) > 1


def test_none_takes_the_models_own_sampling() -> None:
    with LLM(threads=1, max_sequences=2, context=128) as story:
        own = story.get_default_sampling_params()
        assert (own.temperature, own.top_k) == (0.6, 40)
        seen = []
        submit = story._loop.submit

        def record(request, sink):  # type: ignore[no-untyped-def]
            seen.append(request.params)
            submit(request, sink)

        story._loop.submit = record  # type: ignore[method-assign]
        story.generate("Once")
        story.generate(["Once", "Twice"], None)
        story.chat([{"role": "user", "content": "Hi"}])
        list(story.stream("Once"))

        async def read() -> None:
            async for _ in story.agenerate("Once"):
                pass

        asyncio.run(read())
        assert seen == [own] * 6
        assert own != SamplingParams()


def test_no_parameters_for_some_prompts_are_no_default(llm: LLM) -> None:
    with pytest.raises(RequestError, match="0 entries for 2 prompts"):
        llm.generate(["Once", "Twice"], [])


@pytest.mark.parametrize("read", [0, 1, 5])
@pytest.mark.parametrize("drop", [False, True])
def test_leaving_a_stream_frees_its_pages(llm: LLM, read: int, drop: bool) -> None:
    stream = llm.stream("Once upon a time", ENDLESS)
    for _ in range(read):
        next(stream)
    if drop:
        del stream
        gc.collect()
    else:
        stream.close()  # type: ignore[attr-defined]
    sampled = llm.counters.sampled
    wait_until_idle(llm)
    assert llm.counters.sampled - sampled < 200, "it ran to the end of its context"


def test_a_stream_that_is_refused_says_so_before_it_is_read(llm: LLM) -> None:
    with pytest.raises(RequestError, match="the prompt is empty"):
        llm.stream("", ENDLESS)


def test_closing_an_async_stream_frees_its_pages(llm: LLM) -> None:
    async def leave_early() -> None:
        stream = llm.agenerate("Once upon a time", ENDLESS)
        async for chunk in stream:
            assert chunk.token_ids
            break
        await stream.aclose()  # type: ignore[attr-defined]

    asyncio.run(leave_early())
    wait_until_idle(llm)


def test_cancelling_a_task_frees_its_pages_and_no_others(llm: LLM) -> None:
    short = SamplingParams(max_tokens=30, temperature=0.0, ignore_eos=True)
    expected = llm.generate("The little dog", short)[0].outputs[0].text

    async def read(prompt: str, params: SamplingParams, began: asyncio.Event) -> str:
        text = ""
        async for chunk in llm.agenerate(prompt, params):
            began.set()
            text += chunk.text
        return text

    async def cancel_one_of_two() -> str:
        began = asyncio.Event()
        endless = asyncio.create_task(read("Once upon a time", ENDLESS, began))
        await began.wait()
        other = asyncio.create_task(read("The little dog", short, began))
        endless.cancel()
        with pytest.raises(asyncio.CancelledError):
            await endless
        return await other

    assert asyncio.run(cancel_one_of_two()) == expected
    wait_until_idle(llm)
