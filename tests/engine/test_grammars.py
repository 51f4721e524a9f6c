"""Grammars in the engine: answers match, nothing depends on the batch, and a grammar that fails fails alone."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from cpu_rig import CpuRig
from rig import EOS, Rig

from paths import SHARED
from tandem.engine.build import EngineConfig
from tandem.engine.sampling_params import SamplingParams
from tandem.errors import RequestError
from tandem.llm import LLM
from tandem.text.grammar import Grammar

STORIES = SHARED / "models" / "tandem-stories-22m"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 10}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "n"],
    "additionalProperties": False,
}
GRAMMARS = (
    Grammar.json_schema(SCHEMA),
    Grammar(kind="regex", text="[a-z ]{5,40}[.]"),
    Grammar(kind="lark", text='start: ("ab" | "c"){1,6} "d"'),
)


VOCAB = 257


class Letters:
    """A tokenizer for the toy model: a byte for each token, and an end of sequence."""

    strips_space = False

    def token_bytes(self, id: int) -> bytes:
        return b"<eos>" if id == EOS else bytes((EOS if id == 256 else id,))

    def is_special(self, id: int) -> bool:
        return id == EOS

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        return [256 if byte == EOS else byte for byte in text.encode()]


def toy(**options: Any) -> Rig:
    return Rig(tokenizer=Letters, vocab=VOCAB, **options)  # type: ignore[arg-type]


def text_of(tokens: list[int]) -> str:
    return b"".join(map(Letters().token_bytes, tokens)).decode().removesuffix("<eos>")


@pytest.mark.parametrize("candidates", [0, 64])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_are_the_same_in_every_batch_and_after_preemption(candidates: int, temperature: float) -> None:
    draw = random.Random(3)
    requests = []
    for number in range(24):
        prompt = [draw.randrange(VOCAB) for _ in range(draw.randint(1, 40))]
        grammar = draw.choice([None, Grammar(kind="regex", text="[a-f]{3,30}[A-C]"), GRAMMARS[2]])
        top_k, n = draw.choice([0, 3]), draw.choice([1, 1, 3])
        requests.append(
            (
                prompt,
                SamplingParams(n=n, temperature=temperature, top_k=top_k, max_tokens=60, seed=number, grammar=grammar),
            )
        )
    together = toy(rows=24, sequences=8, kv_positions=256, candidates=candidates)
    names = [together.submit(prompt, params) for prompt, params in requests]
    together.run()
    assert together.engine.counters.preemptions > 0
    for name, (prompt, params) in zip(names, requests, strict=True):
        single = toy(rows=256, sequences=3, prefix_cache=False)
        expected = single.submit(prompt, params)
        single.run()
        assert together.results[name] == single.results[expected]
        for sample in together.results[name].values():
            assert sample.error is None
            if params.grammar is not None and sample.finish_reason == "stop":
                assert sample.tokens[-1] == EOS
                assert text_of(sample.tokens)[-1] in "ABCd"


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(threads=1, max_sequences=8, rows=64) as model:
        yield model


def test_grammars_and_plain_requests_share_a_batch(llm: LLM) -> None:
    params = [SamplingParams(max_tokens=80, seed=seed, grammar=GRAMMARS[seed % 3]) for seed in range(6)]
    params += [SamplingParams(max_tokens=20, seed=9), SamplingParams(max_tokens=20, temperature=0, grammar=GRAMMARS[1])]
    together = llm.generate(["Once upon a time"] * len(params), params)
    for each, output in zip(params, together, strict=True):
        [alone] = llm.generate(["Once upon a time"], each)
        assert output.error is None
        assert output.outputs[0].token_ids == alone.outputs[0].token_ids
        if each.grammar is GRAMMARS[0] and output.outputs[0].finish_reason == "stop":
            jsonschema.validate(json.loads(output.outputs[0].text), SCHEMA)
    assert sum(output.outputs[0].finish_reason == "stop" for output in together) >= 5


def test_samples_of_a_request_follow_a_grammar_each(llm: LLM) -> None:
    [output] = llm.generate("The", SamplingParams(n=5, seed=2, max_tokens=60, grammar=GRAMMARS[1]))
    assert len({sample.text for sample in output.outputs}) > 1
    assert all(re.fullmatch("[a-z ]{5,40}[.]", sample.text) for sample in output.outputs)


def test_masked_logprobs_are_those_of_the_raw_logits() -> None:
    rig = CpuRig(STORIES, EngineConfig(threads=1, max_sequences=2, rows=64, context=128))
    try:
        plain = rig.submit([5, 6, 7], SamplingParams(max_tokens=1, temperature=0, logprobs=5, seed=1))
        masked = rig.submit(
            [5, 6, 7], SamplingParams(max_tokens=1, temperature=0, logprobs=5, seed=2, grammar=GRAMMARS[1])
        )
        rig.run()
        [a], [b] = rig.results[plain][0].logprobs, rig.results[masked][0].logprobs
        assert (a.top_ids, a.top_logprobs) == (b.top_ids, b.top_logprobs)
    finally:
        rig.close()


def test_a_bad_grammar_is_refused_at_once_and_alone(llm: LLM) -> None:
    bad = SamplingParams(grammar=Grammar(kind="regex", text="("))
    with pytest.raises(RequestError, match="the regex cannot be used"):
        llm.stream("The", bad)
    refused, answered = llm.generate(["The", "The"], [bad, SamplingParams(max_tokens=2, seed=1)])
    assert refused.error is not None and not refused.outputs
    assert answered.error is None and len(answered.outputs[0].token_ids) == 2


@pytest.mark.parametrize("more", [{"ignore_eos": True}, {"min_tokens": 3}])
def test_what_contradicts_a_grammar_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="and grammar contradict each other"):
        SamplingParams(grammar=GRAMMARS[0], **more)


def test_an_engine_without_a_tokenizer_says_so() -> None:
    with pytest.raises(RequestError, match="this engine has no tokenizer"):
        Rig().submit([1], SamplingParams(grammar=GRAMMARS[0]))


def test_a_grammar_that_becomes_too_complex_ends_its_own_request_only() -> None:
    """A matcher that refuses a token it allowed is what llguidance makes of a limit that is reached."""
    rig = toy()
    broken = rig.submit([1, 2], SamplingParams(max_tokens=30, seed=1, grammar=Grammar(kind="regex", text="a{3,25}")))
    well = rig.submit([1, 2], SamplingParams(max_tokens=30, seed=1, grammar=Grammar(kind="regex", text="b{3,25}")))
    rig.step()
    [sequence] = rig.engine._outcomes.live[broken]
    assert sequence.sampling is not None and sequence.sampling.matcher is not None
    sequence.sampling.matcher.consume_token(VOCAB - 1)
    rig.run()
    assert rig.results[broken][0].finish_reason == "error"
    assert "the grammar is too complex to be followed further" in (rig.results[broken][0].error or "")
    assert set(text_of(rig.results[well][0].tokens)) == {"b"}
