"""Embeddings: what they are, and that neither batch, cut nor cache changes a bit of them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from cpu_rig import CpuRig
from rig import Rig

from paths import SHARED
from tandem.engine.build import EngineConfig
from tandem.engine.pooling import FinalNorm, Pool
from tandem.engine.request import Request
from tandem.engine.sampling_params import SamplingParams
from tandem.errors import RequestError
from tandem.llm import LLM
from tandem.models.load import block_weights
from tandem.models.open import model_spec
from tandem.text.grammar import Grammar
from tandem.weights.dequantize import dequantize
from tandem.weights.open import open_checkpoint

STORIES = SHARED / "models" / "tandem-stories-22m"
TEXT = "Once upon a time a fox and an owl lived by the sea. The fox was old, and the owl was wise. " * 3


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(STORIES, threads=1, max_sequences=4, rows=24) as model:
        yield model


def embedding(model: LLM, prompt: Any, **options: Any) -> np.ndarray:
    [output] = model.embed([prompt], normalize=False, **options)
    assert output.error is None and output.embedding is not None
    return output.embedding


def test_the_last_tokens_embedding_is_what_the_head_multiplies(llm: LLM) -> None:
    checkpoint = open_checkpoint(STORIES)
    spec = model_spec(checkpoint)
    output = dequantize(block_weights(checkpoint, spec, len(spec.blocks) - 1)["output"]).reshape(spec.vocab, -1)
    logits = output @ embedding(llm, TEXT, pooling="last")
    logits -= logits.max()
    logprobs = logits - np.log(np.exp(logits).sum())
    [generated] = llm.generate(TEXT, SamplingParams(max_tokens=1, temperature=0, logprobs=20))
    [told] = generated.outputs[0].logprobs or []
    assert len(told) == 20
    for token, logprob in told.items():
        assert logprobs[token] == pytest.approx(logprob.logprob, abs=1e-3)


def test_the_mean_is_that_of_every_tokens(llm: LLM) -> None:
    tokens = llm.tokenizer.encode(TEXT)[:40]
    each = [embedding(llm, tokens[: n + 1], pooling="last").astype(np.float64) for n in range(len(tokens))]
    np.testing.assert_allclose(embedding(llm, tokens), np.mean(each, axis=0), rtol=1e-6, atol=1e-6)


def test_an_embedding_has_length_1_unless_asked_otherwise(llm: LLM) -> None:
    raw = embedding(llm, TEXT)
    [output] = llm.embed(TEXT)
    assert output.embedding is not None and output.prompt == TEXT
    assert np.linalg.norm(output.embedding) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(output.embedding * np.linalg.norm(raw), raw, rtol=1e-5)


def test_texts_of_one_kind_are_nearer_than_others(llm: LLM) -> None:
    a, b, c = (output.embedding for output in llm.embed(["The old king", "The old queen", "1, 2, 3, 4, 5"]))
    assert a is not None and b is not None and c is not None
    assert a @ b > max(a @ c, b @ c)


@pytest.mark.parametrize("placement", ["ref", "attn=cpu,ffn=ref"])
def test_other_placements_agree(llm: LLM, placement: str) -> None:
    with LLM(STORIES, threads=1, max_sequences=2, rows=16, placement=placement) as other:
        for pooling in ("mean", "last"):
            expected, found = (embedding(model, TEXT[:60], pooling=pooling) for model in (llm, other))
            assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)


def test_micro_batches_change_nothing(llm: LLM) -> None:
    with LLM(STORIES, threads=1, max_sequences=4, rows=24, placement="attn=cpu,ffn=cpu,m=2") as other:
        prompts = [TEXT, TEXT[40:], "A fox"]
        for expected, found in zip(llm.embed(prompts), other.embed(prompts), strict=True):
            assert expected.embedding is not None and found.embedding is not None
            assert expected.embedding.tobytes() == found.embedding.tobytes()


@pytest.mark.parametrize("seed", [1, 2])
def test_no_batch_cut_or_cache_changes_a_bit(seed: int) -> None:
    draw = random.Random(seed)
    config = EngineConfig(threads=draw.choice([1, 2]), max_sequences=6, rows=draw.choice([17, 40]), context=128)
    rig, single = (
        CpuRig(STORIES, config, kv_positions=160),
        CpuRig(STORIES, EngineConfig(threads=1, max_sequences=1, rows=128, context=128, prefix_cache=False)),
    )
    try:
        story = [draw.randrange(2, rig.engine.vocab) for _ in range(120)]
        embedded: dict[str, tuple[list[int], Any, bytes]] = {}
        asked: dict[str, tuple[list[int], Any]] = {}
        for number in range(14):
            prompt = story[: draw.randint(1, 119)]
            if number % 3 == 0:
                rig.submit(prompt[:90], SamplingParams(max_tokens=30, seed=number, ignore_eos=True))
                continue
            asked[f"e{number}"] = (prompt, draw.choice(["mean", "last"]))
        for name, (prompt, pooling) in asked.items():
            rig.engine.submit(Request(id=name, prompt=prompt, params=SamplingParams(), pooling=pooling))
        ended = collect(rig)
        assert rig.engine.counters.preemptions > 0 and rig.engine.counters.cached_tokens > 0
        for name, (prompt, pooling) in asked.items():
            single.engine.submit(Request(id=name, prompt=prompt, params=SamplingParams(), pooling=pooling))
            embedded[name] = (prompt, pooling, collect(single)[name])
        assert {name: value for name, (_, _, value) in embedded.items()} == ended
    finally:
        rig.close()
        single.close()


def collect(rig: CpuRig) -> dict[str, bytes]:
    """Steps until nothing is left; the embeddings by request, of which each came with its one delta."""
    found: dict[str, bytes] = {}
    for _ in range(2000):
        if rig.engine.idle:
            assert all(allocator.used == 0 for allocator in rig.engine.cache.allocators)
            return found
        rig.engine.scheduler.check()
        for delta in rig.engine.step():
            if delta.embedding is not None:
                assert delta.request_id not in found
                assert (delta.finish_reason, delta.ended, delta.tokens) == ("stop", True, [])
                found[delta.request_id] = delta.embedding
    raise AssertionError("the engine does not come to an end")


def test_what_cannot_be_embedded_says_why(llm: LLM) -> None:
    outputs = llm.embed(["", "A fox", "word " * 5000])
    assert [output.error is None for output in outputs] == [False, True, False]
    assert "empty" in (outputs[0].error or "") and "tokens" in (outputs[2].error or "")
    [wrong] = llm.embed(["A fox"], pooling="max")  # type: ignore[arg-type]
    assert wrong.error == "pooling must be one of mean, last, not 'max'"
    for params in (
        SamplingParams(n=2),
        SamplingParams(prompt_logprobs=1),
        SamplingParams(grammar=Grammar(kind="json_object")),
    ):
        with pytest.raises(RequestError, match="a prompt that is embedded has one sample"):
            llm._engine.check(Request(id="x", prompt=[5], params=params, pooling="mean"))
    with pytest.raises(RequestError, match="no final norm"):
        Rig().engine.check(Request(id="x", prompt=[5], params=SamplingParams(), pooling="mean"))


def test_hidden_states_that_are_not_finite_are_an_error() -> None:
    rig = CpuRig(STORIES, EngineConfig(threads=1, max_sequences=1, rows=16, context=32))
    try:
        norm = rig.engine._outcomes.final_norm
        assert norm is not None
        rig.engine._outcomes.final_norm = FinalNorm(norm.spec, np.full_like(norm.weight, np.inf))
        rig.engine.submit(Request(id="x", prompt=[5, 6], params=SamplingParams(), pooling="mean"))
        [delta] = rig.engine.step()
        assert (delta.finish_reason, delta.embedding, delta.ended) == ("error", None, True)
        assert delta.error == "the model's hidden states for the prompt are not finite"
    finally:
        rig.close()


def test_positions_that_are_computed_again_count_once() -> None:
    checkpoint = open_checkpoint(STORIES)
    head: Any = model_spec(checkpoint).blocks[-1]
    norm = FinalNorm(head.norm, np.ones(3, dtype=np.float32))
    rows = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    whole, again = Pool("mean"), Pool("mean")
    whole.add(0, rows, norm)
    for start, stop in ((0, 3), (0, 2), (2, 5), (5, 6)):
        again.add(start, rows[start:stop], norm)
    assert whole.embedding().tobytes() == again.embedding().tobytes()
