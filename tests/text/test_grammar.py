"""Grammars over real vocabularies: what matchers allow, against json, re and jsonschema."""

from __future__ import annotations

import json
import random
import re
from functools import cache

import jsonschema
import numpy as np
import pytest
from llguidance import LLMatcher

from tandem.errors import RequestError
from tandem.text.grammar import Grammar, GrammarCompiler, check_grammar
from tandem.text.tokenizer import Tokenizer
from text.loading import REAL, real

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "größe": {"type": "integer", "minimum": -5, "maximum": 250},
        "tags": {"type": "array", "maxItems": 2, "items": {"enum": ["a b", "ü", None, True]}},
    },
    "required": ["name", "größe", "tags"],
    "additionalProperties": False,
}
EXAMPLE = {"name": "Łód→🦊 x", "größe": -3, "tags": ["ü", None]}
QUICK = ("bundled", "llama-spm")
# TinyStories-656K knows the characters of stories only: it has no braces.
ABLE = [name for name in REAL if not name.startswith("tinystories")]


@cache
def compiler(name: str) -> tuple[Tokenizer, GrammarCompiler]:
    tokenizer = real(name)
    eos = tokenizer.eos_ids
    return tokenizer, GrammarCompiler(lambda: tokenizer, vocab=tokenizer.vocab_size, eos_ids=eos)


def allowed(matcher: LLMatcher, vocab: int) -> list[int]:
    mask = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
    return np.flatnonzero(np.unpackbits(mask, bitorder="little")[:vocab]).tolist()


def walk(name: str, grammar: Grammar, seed: int, at_most: int = 400) -> tuple[str, bool]:
    """A text whose tokens are drawn from the masks, each kind of token as likely as another, and whether it ended."""
    tokenizer, grammars = compiler(name)
    matcher, draw = grammars.compile(grammar).deep_copy(), random.Random(seed)
    ids: list[int] = []
    for _ in range(at_most):
        tokens = allowed(matcher, tokenizer.vocab_size)
        assert tokens, matcher.get_error()
        ends = [token for token in tokens if token in tokenizer.eos_ids]
        assert all(token in tokenizer.eos_ids for token in tokens if tokenizer.is_special(token))
        assert bool(ends) == matcher.is_accepting()
        if ends and (len(ends) == len(tokens) or draw.random() < 0.3):
            assert set(ends) == tokenizer.eos_ids
            return b"".join(map(tokenizer.token_bytes, ids)).decode(), True
        token = draw.choice([token for token in tokens if token not in ends])
        assert matcher.consume_token(token), matcher.get_error()
        ids.append(token)
    return "", False


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in ABLE])
def test_what_the_masks_allow_is_json_of_the_schema(name: str) -> None:
    ended = 0
    for seed in range(6):
        text, end = walk(name, Grammar.json_schema(SCHEMA), seed)
        if end:
            ended += 1
            jsonschema.validate(json.loads(text), SCHEMA)
    assert ended >= 5


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in ABLE])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_texts_own_tokens_are_allowed_one_by_one(name: str, indent: int | None) -> None:
    tokenizer, grammars = compiler(name)
    text = json.dumps(EXAMPLE, ensure_ascii=False, indent=indent)
    # Within a longer text, so that no space is put before it.
    prefix = tokenizer.encode("\x02", add_special=False)
    ids = tokenizer.encode("\x02" + text, add_special=False, parse_special=False)[len(prefix) :]
    matcher = grammars.compile(Grammar.json_schema(SCHEMA)).deep_copy()
    for token in ids:
        assert matcher.try_consume_tokens([token]) == 1, (tokenizer.token_text(token), matcher.get_error())
    assert matcher.is_accepting()


@pytest.mark.parametrize(
    ("kind", "text", "pattern"),
    [
        ("regex", r"[a-c]{2}-(\d+|ßx)\n?", r"[a-c]{2}-(\d+|ßx)\n?"),
        ("regex", r"(yes|no)", "yes|no"),
        (
            "lark",
            'start: greeting " " name\ngreeting: "Hi" | "Hello"\nname: /[A-Z][a-z]{0,8}/',
            "(Hi|Hello) [A-Z][a-z]{0,8}",
        ),
    ],
)
def test_regular_texts(kind: str, text: str, pattern: str) -> None:
    for seed in range(8):
        written, end = walk("bundled", Grammar(kind=kind, text=text), seed)  # type: ignore[arg-type]
        assert not end or re.fullmatch(pattern, written), written


def test_a_json_object_is_one() -> None:
    texts = [walk("bundled", Grammar(kind="json_object"), seed, 60) for seed in range(10)]
    assert any(end for _, end in texts)
    assert all(isinstance(json.loads(text), dict) for text, end in texts if end)


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        ("regex", "(", "the regex cannot be used: .*unclosed group"),
        ("regex", "", "the regex is empty"),
        ("lark", "start: other", 'the grammar cannot be used: .*unknown name: "other"'),
        ("json_schema", "{", "the JSON schema is not JSON"),
        ("json_schema", "[" * 100_000, "the JSON schema is not JSON"),
        ("json_schema", '"string"', "a JSON schema must be an object"),
        ("json_schema", "true", "a JSON schema must be an object"),
        ("json_schema", '{"type": "objct"}', "the JSON schema cannot be used: Invalid type: objct"),
        ("json_schema", '{"type": "integer", "minimum": 3, "maximum": 2}', "the JSON schema cannot be used: "),
        ("json_schema", '{"not": {"type": "string"}}', "the JSON schema cannot be used: "),
        ("json_object", "{}", "a json_object has no text"),
        ("yaml", "a: b", "a grammar's kind must be one of json_schema, json_object, regex, lark, not 'yaml'"),
    ],
)
def test_a_grammar_that_cannot_be_says_why(kind: str, text: str, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        check_grammar(Grammar(kind=kind, text=text))  # type: ignore[arg-type]
    _, grammars = compiler("bundled")
    with pytest.raises(RequestError, match=says):
        grammars.compile(Grammar(kind=kind, text=text))  # type: ignore[arg-type]


def test_a_model_without_an_end_of_sequence_follows_no_grammar() -> None:
    tokenizer = real("bundled")
    grammars = GrammarCompiler(lambda: tokenizer, vocab=tokenizer.vocab_size, eos_ids=())
    with pytest.raises(RequestError, match="no end-of-sequence token"):
        grammars.compile(Grammar(kind="json_object"))


def test_a_vocabulary_that_cannot_spell_json_is_refused() -> None:
    _, grammars = compiler("tinystories")
    with pytest.raises(RequestError, match="no token for the byte 0x00"):
        grammars.compile(Grammar(kind="json_object"))


def test_rows_of_the_model_beyond_the_tokenizer_are_never_allowed() -> None:
    tokenizer = real("bundled")
    vocab = tokenizer.vocab_size + 40
    grammars = GrammarCompiler(lambda: tokenizer, vocab=vocab, eos_ids=tokenizer.eos_ids)
    tokens = allowed(grammars.compile(Grammar(kind="regex", text="(.|\n)*")), vocab)
    assert len(tokens) > 8000
    assert max(tokens) < tokenizer.vocab_size
