"""One tokenizer for every model, wherever its vocabulary came from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from threading import Lock

import tokenizers

from tandem.errors import RequestError
from tandem.text.least_tokens import LeastTokens
from tandem.text.pieces import byte_level

# Characters that take a few milliseconds to encode.
_LONG_TEXT = 1 << 16


class Tokenizer:
    """Text to token ids and back.

    Made by `tokenizer_from_json` and `tokenizer_from_gguf`. The engine splits, merges and looks up;
    decoding is ours, from each token's bytes, so that streaming and whole decoding cannot differ.

    bos_id: the token a text begins with, None where the vocabulary names none. eos_ids: every token that
    ends a generation, end-of-turn tokens included. special_tokens: the texts that chat templates know by
    name (`bos_token`, `eos_token`, …). chat_templates: jinja sources by name, the usual one as `default`.
    strips_space: encoding puts a space before the text (SentencePiece), so decoding drops one leading
    space.
    """

    def __init__(
        self,
        engine: tokenizers.Tokenizer,
        *,
        piece_bytes: Callable[[str], bytes],
        strips_space: bool,
        prefix: tuple[int, ...],
        suffix: tuple[int, ...],
        bos_id: int | None,
        eos_ids: frozenset[int],
        special_tokens: Mapping[str, str],
        chat_templates: Mapping[str, str],
    ) -> None:
        """engine: the encoder; its added tokens marked special are the control tokens.

        piece_bytes: the bytes that a piece of the vocabulary spells. prefix, suffix: ids that `add_special`
        puts around a text.
        """
        self.bos_id = bos_id
        self.eos_ids = eos_ids
        self.special_tokens = special_tokens
        self.chat_templates = chat_templates
        self.strips_space = strips_space
        self._engine = engine
        self._lock = Lock()
        self._piece_bytes = piece_bytes
        self._least: LeastTokens | None = None
        self._prefix = list(prefix)
        self._suffix = list(suffix)
        added = engine.get_added_tokens_decoder()
        self._special = frozenset(id for id, token in added.items() if token.special)
        # An added token is matched in the text as it stands; SentencePiece's may write U+2581 for a space.
        self._literal = {
            id: token.content.encode() for id, token in added.items() if token.special or piece_bytes is byte_level
        }
        self.vocab_size = max(engine.get_vocab_size(with_added_tokens=True), max(added, default=-1) + 1)

    @property
    def chat_template(self) -> str | None:
        """The template used unless another is named; None for a model that was not made for chat."""
        return self.chat_templates.get("default")

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of a text.

        add_special: put the tokens around it that the model was trained with (usually BOS), unless the text
        itself begins with them. parse_special: `<eos>` and the like in the text become control tokens; turn
        it off for text that must stay text. Raises RequestError for text that is not valid Unicode.
        """
        try:
            with self._lock:  # the switch belongs to the engine, not to the call
                self._engine.encode_special_tokens = not parse_special
                ids: list[int] = self._engine.encode(text, add_special_tokens=False).ids
        except TypeError:
            raise RequestError(
                "the text holds a lone surrogate, which no character encodes to; send valid Unicode"
                if isinstance(text, str)
                else f"a text to tokenize must be a string, not {type(text).__name__}"
            ) from None
        if not add_special:
            return ids
        if self._prefix and ids[: len(self._prefix)] != self._prefix:
            ids = self._prefix + ids
        if self._suffix and ids[-len(self._suffix) :] != self._suffix:
            ids = ids + self._suffix
        return ids

    def least_tokens(self, text: str) -> int:
        """A number of tokens that a text has at least, which takes no time to find; 0 for a text that is short enough
        to be split at once, and where there is no such number.
        """
        if len(text) < _LONG_TEXT:
            return 0
        with self._lock:
            if self._least is None:
                self._least = LeastTokens(self._engine, self._piece_bytes)
        return self._least.count(text)

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of token ids; bytes that are not UTF-8 become U+FFFD."""
        data = b"".join(self.token_bytes(id) for id in ids if not (skip_special and id in self._special))
        text = data.decode(errors="replace")
        return text.removeprefix(" ") if self.strips_space else text

    def token_bytes(self, id: int) -> bytes:
        """The bytes one token adds to a text; a control token's are its name.

        Ids beyond the vocabulary have none: models pad their embedding, and such a row may be sampled.
        """
        literal = self._literal.get(id)
        if literal is not None:
            return literal
        piece = self._engine.id_to_token(id) if id >= 0 else None
        return b"" if piece is None else self._piece_bytes(piece)

    def token_text(self, id: int) -> str:
        """One token for display: its leading space kept, the parts of a split character as U+FFFD."""
        return self.token_bytes(id).decode(errors="replace")

    def is_special(self, id: int) -> bool:
        """Whether a token is a control token: never part of what a model says, never made from text to
        tokenize with `parse_special=False`."""
        return id in self._special
