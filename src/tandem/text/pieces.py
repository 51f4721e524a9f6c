"""How the pieces of a vocabulary spell their bytes."""

from __future__ import annotations

import re

SPACE = "▁"  # U+2581, SentencePiece's visible space

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's one printable character per byte (openai/gpt-2, `bytes_to_unicode`), inverted.

    Printable Latin-1 stands for itself; the 68 other bytes take the characters from U+0100 on, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTES = _byte_alphabet()


def byte_level(piece: str) -> bytes:
    """Bytes of a byte-level BPE piece; a piece outside that alphabet is taken as the text it is."""
    try:
        return bytes(map(_BYTES.__getitem__, piece))
    except KeyError:
        return piece.encode()


def spaced(piece: str) -> bytes:
    """Bytes of a SentencePiece-style piece: U+2581 is a space."""
    return piece.replace(SPACE, " ").encode()


def byte_fallback(piece: str) -> bytes:
    """Like `spaced`, and `<0xE2>` is the byte 0xE2."""
    byte = _BYTE.fullmatch(piece)
    return bytes((int(byte[1], 16),)) if byte else spaced(piece)
