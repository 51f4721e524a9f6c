"""The offline API on real models: results, streams, errors, threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from paths import SHARED
from tandem.devices.spec import KVDtype
from tandem.engine.sampling_params import SamplingParams
from tandem.errors import DeviceError, MemoryPlanError, ModelFileError, RequestError
from tandem.llm import LLM

TINY = SHARED / "data" / "models" / "TinyStories-656K"
GREEDY = SamplingParams(max_tokens=24, temperature=0.0)
PROMPTS = ["Once upon a time", "The little dog", "One day, a girl named Lily", "It was raining"]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(TINY, threads=1, max_sequences=4, rows=64) as model:
        yield model


def test_llm_alone_takes_the_bundled_model() -> None:
    with LLM(threads=1, max_sequences=2) as story:
        [output] = story.chat([{"role": "user", "content": "Tell me a story about a fox."}], GREEDY)
        assert output.error is None
        assert len(output.outputs[0].text) > 20
        assert story.memory_plan.limits.context == story.spec.context == 2048


def test_results_stand_in_order_and_are_those_of_each_prompt_alone(llm: LLM) -> None:
    outputs = llm.generate(PROMPTS * 5, GREEDY)
    assert [output.prompt for output in outputs] == PROMPTS * 5
    for prompt, output in zip(PROMPTS, outputs, strict=False):
        [alone] = llm.generate(prompt, GREEDY)
        assert alone.outputs == output.outputs
        assert output.finished and output.outputs[0].finish_reason == "length"
        assert len(output.outputs[0].token_ids) == 24
    assert llm.tokenizer.decode(outputs[0].outputs[0].token_ids) == outputs[0].outputs[0].text.removeprefix(" ")


@pytest.mark.parametrize("kv_dtype", ["f16", "q8_0"])
def test_logits_do_not_depend_on_batch_chunks_or_cache(kv_dtype: KVDtype) -> None:
    params = SamplingParams(max_tokens=40, temperature=1.0, seed=3, logprobs=3, ignore_eos=True)
    prompts = ["Once upon a time", "The fox and the wolf " * 70, "Once upon a time, there", *PROMPTS]
    results = []
    for sequences, rows, prefix_cache in [(1, 512, False), (8, 64, True), (5, 7, True), (7, 33, False)]:
        with LLM(
            threads=1, max_sequences=sequences, rows=rows, prefix_cache=prefix_cache, kv_dtype=kv_dtype, context=512
        ) as model:
            results.append([output.outputs for output in model.generate(prompts, params)])
    assert all(result == results[0] for result in results[1:])


def test_logits_do_not_depend_on_preemption() -> None:
    params = SamplingParams(max_tokens=200, temperature=1.0, seed=3, logprobs=0, ignore_eos=True)
    with LLM(TINY, threads=1, max_sequences=8, rows=64) as model:
        roomy = [output.outputs for output in model.generate(PROMPTS * 2, params)]
        plan = model.memory_plan
    spare = plan.kv_positions - plan.limits.context
    memory = plan.total - spare // plan.groups[0].group.page_size * plan.groups[0].group.page_bytes
    with LLM(TINY, threads=1, max_sequences=8, rows=64, memory=memory) as model:
        assert model.memory_plan.kv_sequences == 1
        tight = [output.outputs for output in model.generate(PROMPTS * 2, params)]
        assert model.counters.preemptions > 0
    assert tight == roomy


def test_a_bad_request_does_not_sink_the_others(llm: LLM) -> None:
    good, empty, long, tokens, n = llm.generate(
        ["Once", "", "word " * 600, [1, 5000], "One"],
        [GREEDY, GREEDY, GREEDY, GREEDY, SamplingParams(n=5)],
    )
    assert good.error is None and good.outputs[0].text
    assert empty.error == "the prompt is empty; give at least one token"
    assert long.error is not None and "the context of 512" in long.error
    assert tokens.error is not None and "vocabulary of 2,048" in tokens.error
    assert n.error is not None and "at most 4 sequences" in n.error
    assert all(output.finished for output in (good, empty, long, tokens, n))


def test_token_ids_are_prompts_too(llm: LLM) -> None:
    ids = llm.tokenizer.encode(PROMPTS[0])
    [from_ids], [from_text] = llm.generate(ids, GREEDY), llm.generate(PROMPTS[0], GREEDY)
    assert from_ids.outputs == from_text.outputs
    assert from_ids.prompt is None and from_ids.prompt_token_ids == from_text.prompt_token_ids == ids


def test_parameters_one_for_all_or_one_each(llm: LLM) -> None:
    lengths = [3, 9]
    outputs = llm.generate(PROMPTS[:2], [SamplingParams(max_tokens=n, temperature=0.0) for n in lengths])
    assert [len(output.outputs[0].token_ids) for output in outputs] == lengths
    with pytest.raises(RequestError, match="3 entries for 2 prompts"):
        llm.generate(PROMPTS[:2], [GREEDY] * 3)


def test_a_stream_is_the_text_in_pieces(llm: LLM) -> None:
    [whole] = llm.generate(PROMPTS[0], GREEDY)
    chunks = list(llm.stream(PROMPTS[0], GREEDY))
    assert "".join(chunk.text for chunk in chunks) == whole.outputs[0].text
    assert [chunk.finish_reason for chunk in chunks] == [None] * 23 + ["length"]


def test_a_stop_string_ends_the_text_before_it(llm: LLM) -> None:
    text = llm.generate(PROMPTS[0], GREEDY)[0].outputs[0].text
    stop = text[20:26]
    for keep in (False, True):
        params = SamplingParams(max_tokens=24, temperature=0.0, stop=[stop], include_stop_str_in_output=keep)
        output = llm.generate(PROMPTS[0], params)[0].outputs[0]
        assert output.text == text[: text.index(stop)] + (stop if keep else "")
        assert (output.finish_reason, output.stop_reason) == ("stop", stop)
        assert "".join(chunk.text for chunk in llm.stream(PROMPTS[0], params)) == output.text


def test_samples_and_logprobs(llm: LLM) -> None:
    params = SamplingParams(max_tokens=6, n=3, seed=7, logprobs=2, prompt_logprobs=0, ignore_eos=True)
    [output] = llm.generate(PROMPTS[0], params)
    assert len({tuple(sample.token_ids) for sample in output.outputs}) > 1
    for sample in output.outputs:
        assert sample.logprobs is not None and sample.cumulative_logprob is not None
        chosen = [at[token].logprob for at, token in zip(sample.logprobs, sample.token_ids, strict=True)]
        assert sample.cumulative_logprob == pytest.approx(sum(chosen))
        assert all(2 <= len(at) <= 3 for at in sample.logprobs)
    assert output.prompt_logprobs is not None and output.prompt_logprobs[0] is None
    scored = output.prompt_logprobs[1:]
    assert [next(iter(at)) for at in scored if at] == output.prompt_token_ids[1:]
    # A prompt scored is a generation forced: the same tokens have the same logprobs.
    [again] = llm.generate(
        [*output.prompt_token_ids, *output.outputs[0].token_ids], SamplingParams(max_tokens=1, prompt_logprobs=0)
    )
    assert again.prompt_logprobs is not None and output.outputs[0].logprobs is not None
    for token, forced, sampled in zip(
        output.outputs[0].token_ids, again.prompt_logprobs[-6:], output.outputs[0].logprobs, strict=True
    ):
        assert forced is not None and forced[token] == sampled[token]


def test_leaving_a_stream_cancels_its_request(llm: LLM) -> None:
    stream = llm.stream(PROMPTS[0], SamplingParams(max_tokens=None, ignore_eos=True))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    before = llm.counters.sampled
    llm.generate(PROMPTS[1], SamplingParams(max_tokens=2))
    assert llm.counters.sampled - before < 400, "the cancelled request did not run to the end of its context"


def test_async_streams_run_side_by_side(llm: LLM) -> None:
    async def text(prompt: str) -> str:
        return "".join([chunk.text async for chunk in llm.agenerate(prompt, GREEDY)])

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*(text(prompt) for prompt in PROMPTS))

    expected = [output.outputs[0].text for output in llm.generate(PROMPTS, GREEDY)]
    assert asyncio.run(all_of_them()) == expected


def test_threads_share_a_model(llm: LLM) -> None:
    expected = [output.outputs[0].text for output in llm.generate(PROMPTS, GREEDY)]
    found: dict[int, str] = {}

    def work(i: int) -> None:
        found[i] = llm.generate(PROMPTS[i], GREEDY)[0].outputs[0].text

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(PROMPTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(len(PROMPTS))] == expected


def test_max_tokens_none_goes_on_to_the_end_of_the_context() -> None:
    with LLM(TINY, threads=1, context=64, max_sequences=1) as model:
        [output] = model.generate(PROMPTS[0], SamplingParams(max_tokens=None, ignore_eos=True))
    assert len(output.prompt_token_ids) + len(output.outputs[0].token_ids) == 64


def test_a_model_without_a_chat_template_says_so(llm: LLM) -> None:
    [output] = llm.chat([{"role": "user", "content": "Hi"}])
    assert output.error is not None and "no chat template" in output.error


def test_a_closed_model_says_so() -> None:
    model = LLM(TINY, threads=1)
    model.close()
    model.close()
    with pytest.raises(DeviceError, match="closed"):
        model.generate(PROMPTS[0])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": "nowhere.gguf"}, ModelFileError, "nowhere.gguf"),
        ({"placement": "tpu"}, DeviceError, "'tpu'"),
        ({"context": 100_000}, MemoryPlanError, "512 positions"),
        ({"kv_dtype": "int3"}, MemoryPlanError, "kv_dtype='int3'"),
        ({"max_sequences": 0}, MemoryPlanError, "max_sequences=0"),
        ({"memory": "lots"}, MemoryPlanError, "'lots' is not a memory size"),
        ({"memory": "1MiB"}, MemoryPlanError, "no context and no number of sequences would fit"),
        ({"memory": "8MiB", "max_sequences": 1, "rows": 16}, None, ""),
    ],
)
def test_what_cannot_be_loaded_is_said(options: dict[str, object], error: type[Exception] | None, message: str) -> None:
    arguments = {"model": TINY, "threads": 1, **options}
    if error is None:
        LLM(**arguments).close()  # type: ignore[arg-type]
        return
    with pytest.raises(error, match=message):
        LLM(**arguments)  # type: ignore[arg-type]


def test_a_memory_budget_is_kept() -> None:
    with LLM(TINY, threads=1, memory="24MiB", max_sequences=8) as model:
        assert model.memory_plan.total <= 24 * 2**20
        assert model.memory_plan.kv_positions >= 512


def test_a_progress_bar_goes_to_stderr(llm: LLM, capfd: pytest.CaptureFixture[str]) -> None:
    llm.generate(PROMPTS, GREEDY, progress=True)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "4/4 prompts" in captured.err and "96 tokens" in captured.err


def test_gguf_and_safetensors_of_one_model(tmp_path: Path) -> None:
    with LLM(next(TINY.glob("*.gguf")), threads=1, max_sequences=1) as model:
        assert model.generate(PROMPTS[0], GREEDY)[0].outputs[0].text.strip()


@pytest.mark.parametrize("placement", ["ref", "attn=cpu,ffn=ref", "attn=ref,ffn=cpu"])
def test_placements_tell_the_same_story(llm: LLM, placement: str) -> None:
    expected = [output.outputs[0].text for output in llm.generate(PROMPTS, GREEDY)]
    with LLM(TINY, threads=1, placement=placement, max_sequences=4, rows=16, context=128) as model:
        assert [output.outputs[0].text for output in model.generate(PROMPTS, GREEDY)] == expected
