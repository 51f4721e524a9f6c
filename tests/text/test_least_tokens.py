"""The bound that refuses a text without splitting it never exceeds what splitting gives."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.text.least_tokens import LeastTokens
from text.loading import BUNDLED, REAL, TINY_STORIES, from_folder, real

# Where composition shortens most, and what long pieces are made of.
_PARTS = ["\u212a", "\u1112\u1161\u11ab", "a\u0301", " " * 90, "=" * 90, "▁", "\n", "\t", "word", "字", "🦊", "<s>"]


@pytest.fixture(scope="module")
def bounds():
    tokenizers = [from_folder(BUNDLED), from_folder(TINY_STORIES), *map(real, REAL)]
    return [(tokenizer, LeastTokens(tokenizer._engine, tokenizer._piece_bytes)) for tokenizer in tokenizers]


@settings(max_examples=60, deadline=None)
@given(text=st.lists(st.sampled_from(_PARTS) | st.text(max_size=8), max_size=40).map("".join))
def test_it_is_a_bound(bounds, text):
    for tokenizer, least in bounds:
        assert least.count(text) <= len(tokenizer.encode(text, add_special=False))


def test_it_says_something_of_most_models(bounds):
    counts = [least.count("Once upon a time " * 10_000) for _, least in bounds]
    assert counts[0] == 11_333
    assert sum(count > 500 for count in counts) > len(counts) / 2


def test_short_texts_are_split_instead():
    tokenizer = from_folder(BUNDLED)
    assert tokenizer.least_tokens("word " * 10) == 0
    assert tokenizer.least_tokens("word " * 20_000) == 100_000 // 15
