"""Grammars: texts that an answer must match, compiled to matchers over a model's vocabulary by llguidance.

A matcher follows one answer token by token and says which tokens may come next. The end-of-sequence tokens may come
exactly when the answer may end. Where only one text is possible, its tokens are those that the tokenizer makes of it.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Collection
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec

from tandem.errors import RequestError
from tandem.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions

GrammarKind = Literal["json_schema", "json_object", "regex", "lark"]

# Compiled grammars that are kept: clients send the same few again and again.
_KEPT = 64
_LONGEST_REASON = 300
# Between the tokens of JSON: one space, or a line break and an indentation. Without a bound a model may write spaces
# for ever. `x-guidance` in a schema overrides it.
JSON_OPTIONS: JsonCompileOptions = {"whitespace_pattern": r" ?|\n {0,16}"}
# A character that tokenizers keep apart from what follows, for those that put a space before a text.
_SENTINEL = "\x02"
_BYTES_OF_TEXT = frozenset({*range(0xC0), *range(0xC2, 0xF5)})


class Grammar(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """kind: what `text` is: a JSON Schema, nothing (`json_object`: any JSON object), a regular expression (Rust's
    syntax, the whole answer), or a grammar in llguidance's variant of Lark.

    Checked when made, as far as that needs no compiler: RequestError for a kind or text that cannot be.
    """

    kind: GrammarKind
    text: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(GrammarKind):
            known = ", ".join(get_args(GrammarKind))
            raise RequestError(f"a grammar's kind must be one of {known}, not {self.kind!r:.80}")
        if not isinstance(self.text, str):
            raise RequestError(f"a grammar must be a text, not {type(self.text).__name__}")
        if bool(self.text) == (self.kind == "json_object"):
            raise RequestError(
                "a json_object has no text; give a json_schema" if self.text else f"the {self.kind} is empty"
            )

    @classmethod
    def json_schema(cls, schema: Any) -> Grammar:
        """Of a schema as a value. Raises RequestError for one that JSON cannot hold."""
        try:
            return cls(kind="json_schema", text=json.dumps(schema))
        except (TypeError, ValueError, RecursionError):
            raise RequestError(f"the JSON schema is no plain JSON value: {schema!r:.80}") from None

    def source(self) -> str:
        """What llguidance compiles. Raises RequestError for a schema that is not JSON."""
        from llguidance import LLMatcher

        if self.kind == "regex":
            return LLMatcher.grammar_from_regex(self.text)
        if self.kind == "lark":
            return LLMatcher.grammar_from_lark(self.text)
        if self.kind == "json_object":
            return LLMatcher.grammar_from_json_schema('{"type": "object"}', defaults=JSON_OPTIONS)
        try:
            schema = json.loads(self.text)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"the JSON schema is not JSON: {_reason(str(error))}") from None
        if not isinstance(schema, dict):
            raise RequestError(f"a JSON schema must be an object ({{}} allows any value), not {self.text:.80}")
        return LLMatcher.grammar_from_json_schema(self.text, defaults=JSON_OPTIONS)


def check_grammar(grammar: Grammar) -> None:
    """Raises RequestError for a grammar that does not compile. Needs no model."""
    from llguidance import LLMatcher

    _check(grammar, LLMatcher.validate_grammar(grammar.source()))


class GrammarCompiler:
    """Compiles grammars for one model. May be used from several threads; compiling holds no GIL.

    What it needs of the tokenizer is taken when the first grammar comes: a second and some 100 MB for 262,144 tokens.
    """

    def __init__(self, tokenizer: Callable[[], Tokenizer], *, vocab: int, eos_ids: Collection[int]) -> None:
        """tokenizer: gives the model's. vocab: the model's, in tokens. eos_ids: those that may end an answer."""
        self._open = tokenizer
        self._vocab = vocab
        self._eos_ids = sorted(eos_ids)
        self._lock = Lock()
        self._tokens: LLTokenizer | None = None
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()

    def compile(self, grammar: Grammar) -> LLMatcher:
        """A matcher at the grammar's start, which is not to be moved: sequences follow copies of it.

        Raises RequestError for a grammar that does not compile.
        """
        with self._lock:
            if (known := self._compiled.get(grammar)) is not None:
                self._compiled.move_to_end(grammar)
                return known
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(verbose_errors=False)
        matcher = LLMatcher(self._vocabulary(), grammar.source(), log_level=0, limits=limits)
        _check(grammar, matcher.get_error())
        matcher.deep_copy()  # the first copy takes milliseconds, later ones microseconds
        with self._lock:
            self._compiled[grammar] = matcher
            if len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
        return matcher

    def _vocabulary(self) -> LLTokenizer:
        with self._lock:
            if self._tokens is None:
                from llguidance import LLTokenizer

                if not self._eos_ids:
                    raise RequestError("this model names no end-of-sequence token, without which no grammar can end")
                words = _Words(self._open(), self._vocab, self._eos_ids)
                words.check()
                self._tokens = words.tokens_of = LLTokenizer(words, eos_token=self._eos_ids)  # type: ignore[arg-type]
            return self._tokens


class _Words:
    """A vocabulary as llguidance takes it: attributes and a call, by these names."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab: int, eos_ids: list[int]) -> None:
        self._tokenizer = tokenizer
        self.tokens_of: LLTokenizer | None = None
        self.eos_token_id = eos_ids[0]
        self.tokens = [tokenizer.token_bytes(id) for id in range(vocab)]
        special = {id for id in range(vocab) if tokenizer.is_special(id)}
        self.special_token_ids = sorted(special.union(eos_ids))
        self.unspellable = _BYTES_OF_TEXT.difference(
            word[0] for id, word in enumerate(self.tokens) if len(word) == 1 and id not in special
        )
        self._sentinel = _SENTINEL if tokenizer.strips_space else ""
        self._skipped = len(self._encode(self._sentinel)) if self._sentinel else 0

    def __call__(self, text: str) -> list[int]:
        """Tokens that spell exactly this text, as it stands within a longer one."""
        ids = self._encode(self._sentinel + text)[self._skipped :]
        known = all(id < len(self.tokens) for id in ids)
        if known and b"".join(self.tokens[id] for id in ids) == text.encode():
            return ids
        assert self.tokens_of is not None
        return self.tokens_of.greedy_tokenize(text)

    def check(self) -> None:
        """Raises RequestError for a vocabulary that cannot spell every text: a grammar would come to a dead end."""
        if self.unspellable:
            raise RequestError(
                f"this model's vocabulary has no token for the byte {min(self.unspellable):#04x}, "
                "so it cannot write whatever a grammar asks for"
            )

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special=False, parse_special=False)


def _check(grammar: Grammar, error: str) -> None:
    if error:
        what = {"json_schema": "JSON schema", "json_object": "JSON object", "lark": "grammar"}
        raise RequestError(f"the {what.get(grammar.kind, grammar.kind)} cannot be used: {_reason(error)}")


def _reason(error: str) -> str:
    """What an error says, as part of one sentence."""
    reason = " ".join(error.split())
    return reason if len(reason) <= _LONGEST_REASON else reason[:_LONGEST_REASON] + "…"
