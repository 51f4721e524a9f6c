"""Stop strings, found in text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Iterable

from tandem.errors import RequestError


class StopMatcher:
    """Passes text on until a stop string is complete.

    The stop string that is complete first wins; of several that end together, the one that began first. So
    the result does not depend on how the text is cut. Text that may yet turn out to begin a stop string is
    held back.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        """Raises RequestError for an empty stop string."""
        self._stops = tuple(stops)
        if not all(self._stops):
            raise RequestError("a stop string is empty; give at least one character, or leave it out")
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self._matched: str | None = None

    def push(self, text: str) -> tuple[str, str | None]:
        """The text that may be shown now, and the stop string once it is complete.

        The stop string is not part of the text; neither is anything after it.
        """
        if self._matched is not None:
            return "", self._matched
        text = self._held + text
        found = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            _, start, self._matched = min(found)
            self._held = ""
            return text[:start], self._matched
        keep = self._beginning(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], None

    def finish(self) -> str:
        """The text held back when no more will come: it began a stop string that never ended."""
        held, self._held = self._held, ""
        return held

    def _beginning(self, text: str) -> int:
        """Length of the longest end of the text that begins a stop string."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            if any(len(stop) > length and text.endswith(stop[:length]) for stop in self._stops):
                return length
        return 0
