"""Streaming gives what decoding the whole gives, and never half a character."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.text.detokenizer import IncrementalDetokenizer
from tandem.text.tokenizer import Tokenizer
from text.loading import from_vocabulary, real

NAMES = ("gpt-2", "llama-spm", "bundled", "tinystories gguf")


def stream(tokenizer: Tokenizer, ids: list[int], prompt: list[int], **settings: bool) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, prompt, **settings)
    return [*(detokenizer.push(id) for id in ids), detokenizer.finish()]


def ids_of(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    """Any tokens, with many of those that are one byte (the first 300), and ids that the vocabulary lacks."""
    id = st.one_of(st.integers(0, 300), st.integers(0, tokenizer.vocab_size + 5))
    return st.lists(id, max_size=12)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None)  # the first example loads the tokenizer
@given(data=st.data())
def test_the_pieces_join_to_the_decoded_whole(name, data):
    tokenizer = real(name)
    ids, skip = data.draw(ids_of(tokenizer)), data.draw(st.booleans())
    assert "".join(stream(tokenizer, ids, [], skip_special=skip)) == tokenizer.decode(ids, skip_special=skip)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None)  # the first example loads the tokenizer
@given(data=st.data())
def test_after_a_prompt_the_pieces_continue_its_text(name, data):
    tokenizer = real(name)
    prompt, ids, skip = data.draw(ids_of(tokenizer)), data.draw(ids_of(tokenizer)), data.draw(st.booleans())
    before = stream(tokenizer, prompt, [], skip_special=skip)[:-1]  # without what finish would give up on
    after = stream(tokenizer, ids, prompt, skip_special=skip)
    assert "".join(before + after) == tokenizer.decode(prompt + ids, skip_special=skip)


@pytest.mark.parametrize("name", ["gpt-2", "llama-spm", "bundled"])
@settings(deadline=None)  # the first example loads the tokenizer
@given(text=st.text(st.characters(exclude_characters="▁", exclude_categories=("Cs",))))
def test_no_piece_holds_half_a_character(name, text):
    tokenizer = real(name)
    pieces = stream(tokenizer, tokenizer.encode(text, add_special=False, parse_special=False), [])
    assert "".join(pieces) == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def test_a_character_waits_for_its_last_byte():
    tokenizer = from_vocabulary("llama-spm")
    ids = tokenizer.encode("🦙", add_special=False)[1:]  # without the space that SentencePiece puts first
    assert [tokenizer.token_bytes(id) for id in ids] == [b"\xf0", b"\x9f", b"\xa6", b"\x99"]
    assert stream(tokenizer, ids, []) == ["", "", "", "🦙", ""]
    assert stream(tokenizer, ids[:2], []) == ["", "", "\ufffd"]
    assert stream(tokenizer, ids[3:], ids[:3]) == ["🦙", ""]
    space, a = tokenizer.encode("a", add_special=False)[0], tokenizer.encode("\na", add_special=False)[-1]
    assert tokenizer.token_bytes(space) == b" a"
    assert stream(tokenizer, [ids[0], a], []) == ["", "\ufffda", ""]


def test_a_leading_space_is_dropped_only_where_the_text_begins():
    tokenizer = from_vocabulary("llama-spm")
    hello = tokenizer.encode("Hello", add_special=False)
    assert tokenizer.decode(hello) == "Hello"
    assert stream(tokenizer, hello, []) == ["Hello", ""]
    assert stream(tokenizer, hello, [tokenizer.bos_id], skip_special=True) == ["Hello", ""]
    assert stream(tokenizer, hello, [tokenizer.bos_id, *hello]) == [" Hello", ""]
    assert stream(tokenizer, [tokenizer.bos_id, *hello], []) == ["<s>", " Hello", ""]
