"""Text from tokens as they come, never half a character."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from tandem.text.tokenizer import Tokenizer

_LONGEST_UNFINISHED = 3  # bytes of a UTF-8 character before its last


class IncrementalDetokenizer:
    """Turns one sequence's tokens into text, token by token.

    All that `push` and `finish` return, joined, is what `Tokenizer.decode` makes of the same tokens after
    the prompt: a first token keeps its leading space where a prompt precedes it, and bytes that finish a
    character begun in the prompt give that character. Bytes that can no longer become a character give
    U+FFFD.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int] = (), *, skip_special: bool = False) -> None:
        """prompt_ids: the tokens before the first pushed one. skip_special: control tokens give no text."""
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        tail = b""
        for id in reversed(prompt_ids):
            tail = self._bytes(id) + tail
            if len(tail) >= _LONGEST_UNFINISHED:
                break
        self._utf8.decode(tail[-_LONGEST_UNFINISHED:])
        self._strip = tokenizer.strips_space and not tail

    def push(self, id: int) -> str:
        """The text that this token completes; empty while a character is unfinished."""
        return self._stripped(self._utf8.decode(self._bytes(id)))

    def finish(self) -> str:
        """The text of what is still held back: U+FFFD for a character that never ended, or nothing."""
        return self._stripped(self._utf8.decode(b"", final=True))

    def _bytes(self, id: int) -> bytes:
        if self._skip_special and self._tokenizer.is_special(id):
            return b""
        return self._tokenizer.token_bytes(id)

    def _stripped(self, text: str) -> str:
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text
