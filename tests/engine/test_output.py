"""The text stage: pieces of text, stop strings across tokens, what belongs to the text and what does not."""

from __future__ import annotations

import pytest

from paths import SHARED
from tandem.engine.output import RequestText
from tandem.engine.request import Delta, Request, TokenLogprobs
from tandem.engine.sampling_params import SamplingParams
from tandem.models.tokenizer import open_tokenizer
from tandem.text.tokenizer import Tokenizer
from tandem.weights.open import open_checkpoint


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return open_tokenizer(open_checkpoint(SHARED / "models" / "tandem-stories-22m"))


def collect(tokenizer: Tokenizer, params: SamplingParams) -> RequestText:
    return RequestText(Request(id="r", prompt=[5], params=params), tokenizer, None)


def delta(*tokens: int, finish: str | None = None, index: int = 0, **more: object) -> Delta:
    return Delta(request_id="r", index=index, tokens=list(tokens), finish_reason=finish, **more)  # type: ignore[arg-type]


def test_a_character_in_several_tokens_comes_whole(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a🦊b", add_special=False)
    text = collect(tokenizer, SamplingParams())
    pieces = [chunk.text for id in ids if (chunk := text.push(delta(id))) is not None]
    assert "".join(pieces) == "a🦊b"
    assert all("�" not in piece for piece in pieces)
    assert len(pieces) > 3, "the fox takes several tokens"


def test_an_unfinished_character_is_shown_at_the_end(tokenizer: Tokenizer) -> None:
    first = tokenizer.encode("🦊", add_special=False)[0]
    text = collect(tokenizer, SamplingParams())
    text.push(delta(first, finish="length"))
    assert text.output.outputs[0].text == "�"


@pytest.mark.parametrize("keep", [False, True])
def test_the_token_that_ends_a_generation_is_not_text(tokenizer: Tokenizer, keep: bool) -> None:
    hello, end = tokenizer.encode("hello", add_special=False), tokenizer.encode(" end", add_special=False)[-1]
    params = SamplingParams(stop_token_ids=[end], include_stop_str_in_output=keep)
    text = collect(tokenizer, params)
    for id in hello:
        text.push(delta(id))
    text.push(delta(end, finish="stop", stop_reason=end, ended=True))
    sample = text.output.outputs[0]
    assert sample.text == "hello" + (tokenizer.token_text(end) if keep else "")
    assert sample.token_ids == [*hello, end] and sample.stop_reason == end
    assert text.output.finished


def test_a_stop_string_over_several_tokens_and_what_comes_after_it(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("one two three", add_special=False)
    text = collect(tokenizer, SamplingParams(stop=["wo th"]))
    chunks = [chunk for id in ids if (chunk := text.push(delta(id))) is not None]
    assert "".join(chunk.text for chunk in chunks) == text.output.outputs[0].text == "one t"
    assert (chunks[-1].finish_reason, chunks[-1].stop_reason) == ("stop", "wo th")
    assert text.push(delta(ids[0], finish="cancelled", ended=True)) is None, "the engine was a step behind"
    assert text.output.outputs[0].finish_reason == "stop" and text.output.finished


def test_tokens_behind_a_stop_string_in_one_delta_are_dropped(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("one two three four", add_special=False)
    text = collect(tokenizer, SamplingParams(stop=[" two"], logprobs=0))
    logprobs = [TokenLogprobs(id, -1.0, 1, [], []) for id in ids]
    chunk = text.push(delta(*ids, logprobs=logprobs))
    assert chunk is not None and chunk.text == "one" and len(chunk.token_ids) < len(ids)
    sample = text.output.outputs[0]
    assert sample.logprobs is not None and len(sample.logprobs) == len(sample.token_ids)
    assert sample.cumulative_logprob == -len(sample.token_ids)


def test_text_held_back_for_a_stop_string_that_never_ends_is_shown(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("one two", add_special=False)
    text = collect(tokenizer, SamplingParams(stop=[" two three"]))
    for id in ids[:-1]:
        text.push(delta(id))
    chunk = text.push(delta(ids[-1], finish="length"))
    assert chunk is not None and chunk.finish_reason == "length"
    assert text.output.outputs[0].text == "one two"


def test_samples_are_kept_apart_and_an_error_is_kept(tokenizer: Tokenizer) -> None:
    a, b = (tokenizer.encode(word, add_special=False)[0] for word in ("cat", "dog"))
    text = collect(tokenizer, SamplingParams(n=2))
    text.push(delta(a, index=0))
    text.push(delta(b, index=1, finish="length"))
    assert not text.output.finished
    text.push(delta(index=0, finish="error", error="the device was lost", ended=True))
    first, second = text.output.outputs
    assert text.output.finished and text.output.error == "the device was lost"
    assert (first.token_ids, first.finish_reason) == ([a], "error")
    assert (second.token_ids, second.finish_reason) == ([b], "length")
