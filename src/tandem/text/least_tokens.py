"""A lower bound for the number of tokens of a text, from its length alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import tokenizers

from tandem.text.pieces import SPACE, byte_level

# Canonical composition at most thirds a text: three Hangul letters of 3 bytes become one of 3, the Kelvin sign of
# 3 bytes a K. One more for what Unicode may still bring.
_COMPOSING = 4
_SPACES = {"pattern": {"String": " "}, "content": SPACE}


class LeastTokens:
    """Holds where a text loses nothing on its way to the tokens but what is known: then each of them stands for no
    more bytes than the longest piece of the vocabulary has.
    """

    def __init__(self, engine: tokenizers.Tokenizer, piece_bytes: Callable[[str], bytes]) -> None:
        steps = [*_steps(engine.normalizer), *_steps(engine.pre_tokenizer)]
        added = engine.get_added_tokens_decoder().values()
        # Tokens may take all the white space around them with them.
        self._drops_space = any(token.lstrip or token.rstrip for token in added)
        self._bytes_per_token = 0
        if all(map(_keeps_bytes, steps)) and (piece_bytes is byte_level or engine.model.byte_fallback):
            vocabulary = engine.get_vocab(with_added_tokens=False)
            single = {piece_bytes(piece) for piece in vocabulary if len(piece) in (1, len("<0x00>"))}
            # A byte without a token is left out, or one with its neighbours.
            if all(bytes((byte,)) in single for byte in range(256)):
                spelled = piece_bytes if piece_bytes is byte_level else str.encode
                longest = max(len(spelled(piece)) for piece in vocabulary)
                longest = max([longest, *(len(token.content.encode()) for token in added)])
                composing = any(step["type"] == "NFC" for step in steps)
                self._bytes_per_token = longest * (_COMPOSING if composing else 1)

    def count(self, text: str) -> int:
        """At least so many tokens; 0 where that cannot be told."""
        if not self._bytes_per_token:
            return 0
        if self._drops_space:
            text = "".join(text.split())
        return len(text.encode(errors="surrogatepass")) // self._bytes_per_token


def _steps(part: Any) -> Iterator[dict[str, Any]]:
    """A normalizer or pre-tokenizer of the engine, as what `tokenizer.json` says of it; a sequence as its parts."""
    if part is not None:
        yield from _flat(json.loads(part.__getstate__()))


def _flat(step: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if step["type"] != "Sequence":
        yield step
    for inner in [*step.get("normalizers", ()), *step.get("pretokenizers", ())]:
        yield from _flat(inner)


def _keeps_bytes(step: dict[str, Any]) -> bool:
    match step["type"]:
        case "Replace":
            return step.items() >= _SPACES.items()
        case "Split":
            return bool(step["behavior"] != "Removed")
        case kind:
            return kind in ("NFC", "Prepend", "ByteLevel", "Metaspace", "Digits")
