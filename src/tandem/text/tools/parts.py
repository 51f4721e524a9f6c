"""The parts of an answer, in the order in which a client is told of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Content:
    """Text for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Text that precedes the answer; never its marks."""

    text: str


@dataclass(frozen=True, slots=True)
class CallName:
    """A call begins. index: 0 for the first of an answer. Its arguments follow, before the next call begins."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of a call's arguments: all of its pieces, joined, are one JSON object, unless the answer broke off."""

    index: int
    text: str


Part = Content | Reasoning | CallName | CallArguments


def unfinished(text: str, marks: tuple[str, ...]) -> int:
    """Length of the longest end of the text that begins one of the marks and is not all of it."""
    longest = max(map(len, marks), default=0) - 1
    for length in range(min(longest, len(text)), 0, -1):
        end = text[-length:]
        if any(len(mark) > length and mark.startswith(end) for mark in marks):
            return length
    return 0
