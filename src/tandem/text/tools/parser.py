"""An answer's text, piece by piece, into its parts: reasoning, content and calls of tools.

What is found does not depend on how the text is cut into pieces. Text that may yet turn out to begin a mark is held
back; so is white space, until it is known that no call follows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from tandem.text.tools.call_block import calls_in
from tandem.text.tools.call_reader import CallReader
from tandem.text.tools.formats import ToolFormat
from tandem.text.tools.parts import CallArguments, CallName, Content, Part, Reasoning, unfinished

THINK, THINK_END = "<think>", "</think>"
_FENCE_END = "```"
# no: there is none. may: the answer may begin with it. inside: the prompt has begun it.
ReasoningState = Literal["no", "may", "inside"]


def reasoning_state(template: str | Mapping[str, str] | None, prompt: str) -> ReasoningState:
    """Whether an answer to a rendered prompt begins with reasoning between `<think>` and `</think>`."""
    text = template if isinstance(template, str) else "\n".join((template or {}).values())
    end = prompt.rstrip()
    if end.endswith(THINK):
        return "inside"
    return "no" if THINK_END not in text or end.endswith(THINK_END) else "may"


class AnswerParser:
    """One answer's. Give it all pieces, then `finish`."""

    def __init__(
        self,
        format: ToolFormat | None = None,
        parameters: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        reasoning: ReasoningState = "no",
        parallel: bool = True,
    ) -> None:
        """format, parameters: how the model calls which tools, as `tool_format` and `check_tools` have it; without them
        all is content. parallel: whether an answer may hold more than one call; further ones are dropped.
        """
        self._format = format if parameters else None
        self._parameters = {name: list(schema.get("properties") or {}) for name, schema in (parameters or {}).items()}
        self._parallel = parallel
        self._marks: dict[str, str] = dict(self._format.marks) if self._format else {}
        self._openings = (*self._marks, *(self._format.fences if self._format else ()))
        self._mode = {"no": "start", "may": "begin", "inside": "think"}[reasoning]
        self._buffer = ""
        self._spaces = ""  # held back
        self._trim = False  # after reasoning or a call: white space that begins the content is no part of it
        self._reasoned = False
        self._opening = ""
        self._reader: CallReader | None = None
        self._sent = 0  # of the reader's arguments
        self._parts: list[Part] = []
        self.calls = 0

    def push(self, text: str) -> list[Part]:
        """The parts that this piece completes."""
        self._buffer += text
        return self._run(final=False)

    def finish(self) -> list[Part]:
        """The parts that were held back, when no more will come."""
        return self._run(final=True)

    def _run(self, *, final: bool) -> list[Part]:
        steps = {
            "begin": self._begin,
            "think": self._think,
            "start": self._start,
            "content": self._content,
            "call": self._call,
            "close": self._close,
            "fence": self._fence,
            "list": self._list,
        }
        while steps[self._mode](final):
            pass
        if final and self._spaces and not self._trim:
            self._parts.append(Content(self._spaces))
            self._spaces = ""
        parts, self._parts = self._parts, []
        return _joined(parts)

    # Each mode takes what it can from the buffer, and returns whether the next mode should go on with the rest.

    def _begin(self, final: bool) -> bool:
        text = self._buffer.lstrip()
        if text.startswith(THINK):
            self._buffer, self._mode = text[len(THINK) :], "think"
            return True
        if THINK.startswith(text) and not final:
            return False
        self._mode = "start"
        return True

    def _think(self, final: bool) -> bool:
        if not self._reasoned:
            self._buffer = self._buffer.lstrip("\n")
        text, end, rest = self._buffer.partition(THINK_END)
        kept = 0 if end or final else unfinished(text, (THINK_END,))
        shown = text[: len(text) - kept]
        if not final or end:
            # Line breaks before the end of reasoning are no part of it.
            shown = shown.rstrip("\n")
        if shown:
            self._reasoned = True
            self._parts.append(Reasoning(shown))
        self._buffer = rest if end else text[len(shown) :]
        if end:
            self._mode, self._trim = "start", True
        elif final:
            self._buffer = ""
        return bool(end)

    def _start(self, final: bool) -> bool:
        """The answer itself begins, or a call may follow another one."""
        if self._format is None or not self._format.bare:
            self._mode = "content"
            return True
        text = self._buffer.lstrip()
        if self.calls:
            text = text.removeprefix(";").removeprefix(",").lstrip()
        if not text and not final:
            return False
        if text.startswith("{"):
            self._buffer, self._opening = text, ""
            self._reader, self._sent, self._mode = CallReader(self._parameters.keys()), 0, "call"
        elif text.startswith("[") and (begins := self._begins_list(text[1:].lstrip())) is not False:
            if begins is None and not final:
                return False
            self._buffer, self._mode = text, "list" if begins else "content"
        else:
            self._mode = "content"
        return True

    def _begins_list(self, text: str) -> bool | None:
        """Whether a list of calls begins so; None while that is open."""
        openings = ["{", *(f"{name}(" for name in self._parameters)]
        if any(text.startswith(opening) for opening in openings):
            return True
        return None if any(opening.startswith(text) for opening in openings) else False

    def _content(self, final: bool) -> bool:
        found = [(at, mark) for mark in self._openings if (at := self._buffer.find(mark)) >= 0]
        if found:
            at, mark = min(found)
            self._show(self._buffer[:at])
            self._buffer, self._opening = self._buffer[at + len(mark) :], mark
            if mark in self._marks:
                names = None if self._marks[mark] else self._parameters.keys()
                self._reader, self._sent, self._mode = CallReader(names), 0, "call"
            else:
                self._mode = "fence"
            return True
        kept = 0 if final else unfinished(self._buffer, self._openings)
        self._show(self._buffer[: len(self._buffer) - kept])
        self._buffer = self._buffer[len(self._buffer) - kept :]
        return False

    def _call(self, final: bool) -> bool:
        reader = self._reader
        assert reader is not None
        self._buffer = reader.push(self._buffer)
        if reader.begun:
            self._show_call(reader)
        if not (reader.ended or reader.broken or final):
            return False
        if self._sent:
            self._mode = "close"
        else:
            self._show(self._opening + reader.raw)
            self._mode = "content"
        return bool(self._buffer) or final

    def _show_call(self, reader: CallReader) -> None:
        shown = self._parallel or self.calls == 0 or (self._sent > 0 and self.calls == 1)
        if not self._sent:
            self._spaces = ""
            if shown:
                self._parts.append(CallName(self.calls, reader.name or ""))
            self.calls += 1
        if shown and len(reader.arguments) > self._sent:
            self._parts.append(CallArguments(self.calls - 1, reader.arguments[self._sent :]))
        self._sent = len(reader.arguments)

    def _close(self, final: bool) -> bool:
        """Behind a call's JSON."""
        mark = self._marks.get(self._opening, "")
        text = self._buffer.lstrip()
        if mark and len(text) < len(mark) and mark.startswith(text) and not final:
            return False
        self._buffer = text.removeprefix(mark)
        self._trim = True
        self._mode = "start" if self._format is not None and self._format.bare else "content"
        return True

    def _fence(self, final: bool) -> bool:
        text, end, rest = self._buffer.partition(_FENCE_END)
        if not end and not final:
            return False
        self._buffer, self._mode = rest, "content"
        if not self._show_calls(text):
            self._show(self._opening + text + end)
        return True

    def _list(self, final: bool) -> bool:
        if not final:
            return False
        text, self._buffer, self._mode = self._buffer, "", "content"
        if not self._show_calls(text):
            self._show(text)
        return True

    def _show_calls(self, text: str) -> bool:
        calls = calls_in(text, self._parameters)
        for name, arguments in calls or ():
            if self._parallel or self.calls == 0:
                self._parts += [CallName(self.calls, name), CallArguments(self.calls, arguments)]
            self.calls += 1
        if calls:
            self._spaces, self._trim = "", True
        return bool(calls)

    def _show(self, text: str) -> None:
        """Content, as far as no white space is at its end that might precede a call."""
        if self._trim:
            text = text.lstrip()
            self._trim = not text
        text = self._spaces + text
        shown = text.rstrip() if self._openings else text
        self._spaces = text[len(shown) :]
        if shown:
            self._parts.append(Content(shown))


def _joined(parts: list[Part]) -> list[Part]:
    """Neighbours of one kind as one."""
    joined: list[Part] = []
    for part in parts:
        last = joined[-1] if joined else None
        if isinstance(part, Content) and isinstance(last, Content):
            joined[-1] = Content(last.text + part.text)
        elif isinstance(part, Reasoning) and isinstance(last, Reasoning):
            joined[-1] = Reasoning(last.text + part.text)
        else:
            joined.append(part)
    return joined
