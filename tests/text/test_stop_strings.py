"""Stop strings are found however the text is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.errors import RequestError
from tandem.text.stop import StopMatcher


def run(stops: list[str], chunks: list[str]) -> tuple[str, str | None]:
    matcher = StopMatcher(stops)
    emitted, matched = "", None
    for chunk in chunks:
        text, matched = matcher.push(chunk)
        emitted += text
    return emitted + matcher.finish(), matched


def specified(stops: list[str], text: str) -> tuple[str, str | None]:
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end - len(stop)], stop
    return text, None


@given(
    stops=st.lists(st.text("abc", min_size=1, max_size=5), max_size=4),
    chunks=st.lists(st.text("abc", max_size=6), max_size=8),
)
def test_any_chunking_gives_the_same(stops, chunks):
    assert run(stops, chunks) == specified(stops, "".join(chunks))


@given(stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), text=st.text("abc", max_size=20))
def test_what_cannot_begin_a_stop_string_is_not_held_back(stops, text):
    matcher = StopMatcher(stops)
    shown = ""
    for end, character in enumerate(text, 1):
        emitted, matched = matcher.push(character)
        shown += emitted
        if matched:
            return
        held = text[len(shown) : end]
        assert held == "" or any(stop.startswith(held) for stop in stops)


def test_text_after_the_match_is_dropped():
    matcher = StopMatcher(["\n\n", "END"])
    assert matcher.push("one EN") == ("one ", None)
    assert matcher.push("D two\n\n") == ("", "END")
    assert matcher.push("three") == ("", "END")
    assert matcher.finish() == ""


def test_an_unfinished_stop_string_is_text():
    matcher = StopMatcher(["END"])
    assert matcher.push("the EN") == ("the ", None)
    assert matcher.finish() == "EN"


def test_no_stop_strings_hold_nothing_back():
    assert StopMatcher([]).push("abc") == ("abc", None)


def test_an_empty_stop_string_is_refused():
    with pytest.raises(RequestError, match="a stop string is empty"):
        StopMatcher(["END", ""])
