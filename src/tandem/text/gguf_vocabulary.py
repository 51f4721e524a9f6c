"""The `tokenizer.*` keys of a GGUF file, checked before anything is built from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from tandem.errors import ModelFileError

# Token types of the GGUF format.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


class Vocabulary:
    """The tokens of a file. tokens: text by id. ids: id by text."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        """Raises ModelFileError unless all tokens differ and there are as many types and scores as tokens."""
        self._metadata = metadata
        self.tokens = [text or f"[EMPTY_{id}]" for id, text in enumerate(self._texts("tokenizer.ggml.tokens"))]
        self.ids = dict(zip(self.tokens, range(len(self.tokens)), strict=True))
        if not self.tokens:
            raise ModelFileError("tokenizer.ggml.tokens is empty; convert the model again with its tokenizer")
        if len(self.ids) < len(self.tokens):
            id = next(id for id, text in enumerate(self.tokens) if self.ids[text] != id)
            raise ModelFileError(
                f"tokenizer.ggml.tokens has {self.tokens[id]!r:.80} twice, as {id} and "
                f"{self.ids[self.tokens[id]]}; every token must differ"
            )
        self._types = self._numbers("tokenizer.ggml.token_type", NORMAL)
        self._scores = self._numbers("tokenizer.ggml.scores", 0)

    def of_type(self, *types: int) -> list[int]:
        """Ids of the tokens of these types, in order."""
        ids: list[int] = np.flatnonzero(np.isin(self._types, types)).tolist()
        return ids

    def merges(self) -> list[tuple[str, str]]:
        """`tokenizer.ggml.merges` as pairs, in order, without those that make a control token.

        Raises ModelFileError where a line is not a pair or makes no token; that the two parts are tokens is
        for the engine to check.
        """
        lines = self._texts("tokenizer.ggml.merges")
        pairs = [tuple(line.split(" ")) for line in lines]
        made = [line.replace(" ", "") for line in lines]
        if set(map(len, pairs)) - {2} or not all(map(self.ids.__contains__, made)):
            bad = next(
                line for line, pair in zip(lines, pairs, strict=True) if len(pair) != 2 or "".join(pair) not in self.ids
            )
            raise ModelFileError(
                f"tokenizer.ggml.merges holds {bad!r:.80}; expected two tokens with a space between, which "
                "together make a token"
            )
        control = {self.tokens[id] for id in self.of_type(CONTROL, UNKNOWN)}
        if not control.isdisjoint(made):
            pairs = [pair for pair, text in zip(pairs, made, strict=True) if text not in control]
        return cast(list[tuple[str, str]], pairs)

    def merges_by_score(self) -> list[tuple[str, str]]:
        """The merges that a scored vocabulary implies: every way to make a token from two others, best
        score first.

        SentencePiece joins the two neighbours that make the token with the best score. Where scores are
        equal the lower id is first: a converter that lost the scores writes one value for all, and ids are
        in the order of training.
        """
        order = np.argsort(-self._scores.astype(np.float64), kind="stable")
        usable = order[np.isin(self._types[order], (NORMAL, USER_DEFINED, UNUSED))]
        texts = [self.tokens[id] for id in usable.tolist()]
        known = set(texts)
        return [
            (left, right)
            for text in texts
            for cut in range(1, len(text))
            if (right := text[cut:]) in known and (left := text[:cut]) in known
        ]

    def text(self, key: str) -> str | None:
        value = self._metadata.get(key)
        if value is not None and not isinstance(value, str):
            raise _wrong(key, "a string", value)
        return value

    def flag(self, name: str, default: bool) -> bool:
        key = f"tokenizer.ggml.{name}"
        value = self._metadata.get(key, default)
        if not isinstance(value, bool | np.bool_):
            raise _wrong(key, "true or false", value)
        return bool(value)

    def token_id(self, name: str) -> int | None:
        key = f"tokenizer.ggml.{name}"
        value = self._metadata.get(key)
        if value is None:
            return None
        if not isinstance(value, int | np.integer) or isinstance(value, bool):
            raise _wrong(key, "a token id", value)
        if not 0 <= value < len(self.tokens):
            raise ModelFileError(
                f"{key} is {value}, which is no token: the vocabulary has {len(self.tokens):,}; convert the model again"
            )
        return int(value)

    def chat_templates(self) -> dict[str, str]:
        """Chat templates by name; the usual one is `default`."""
        prefix = "tokenizer.chat_template"
        templates = {}
        for key in self._metadata:
            if key == prefix or key.startswith(f"{prefix}."):
                template = self.text(key)
                assert template is not None
                templates[key[len(prefix) + 1 :] or "default"] = template
        return templates

    def _texts(self, key: str) -> list[str]:
        values = self._array(key)
        if values is None:
            raise ModelFileError(
                f"missing tokenizer: the file has no {key}; convert the model again with its tokenizer"
            )
        texts = list(values)
        if set(map(type, texts)) - {str}:
            raise _wrong(key, "an array of strings", texts)
        return texts

    def _numbers(self, key: str, default: int) -> np.ndarray[Any, np.dtype[Any]]:
        """One number per token; all `default` where the file has none."""
        values = self._array(key)
        if values is None:
            return np.full(len(self.tokens), default)
        try:
            numbers = np.asarray(values)
        except ValueError:  # arrays in arrays
            raise _wrong(key, "an array of numbers", values) from None
        if numbers.ndim != 1 or numbers.dtype.kind not in "iuf":
            raise _wrong(key, "an array of numbers", values)
        if len(numbers) != len(self.tokens):
            raise ModelFileError(
                f"{key} has {len(numbers):,} entries for {len(self.tokens):,} tokens; convert the model again"
            )
        if not np.isfinite(numbers).all():
            raise ModelFileError(f"{key} holds a value that is not a finite number; convert the model again")
        return numbers

    def _array(self, key: str) -> Sequence[Any] | None:
        values: Any = self._metadata.get(key)
        if values is None:
            return None
        if isinstance(values, str) or not hasattr(values, "__len__") or not hasattr(values, "__getitem__"):
            raise _wrong(key, "an array", values)
        return cast(Sequence[Any], values)


def _wrong(key: str, expected: str, value: object) -> ModelFileError:
    return ModelFileError(f"{key} must be {expected}, not {type(value).__name__}; convert the model again")
