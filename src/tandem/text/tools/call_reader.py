"""One call written as JSON, `{"name": …, "arguments": {…}}`, read while it is being written."""

from __future__ import annotations

import json
from collections.abc import Collection

_NAMES = ("name", "function")
_ARGUMENTS = ("arguments", "parameters")
_OTHERS = ("type", "id")


class CallReader:
    """name: once it is known and acceptable. arguments: as far as they are there, as JSON text. raw: all that was read.

    ended: the object is complete. broken: this is no call: not an object, a member that no call has, or a name that
    is none of `names`.
    """

    def __init__(self, names: Collection[str] | None) -> None:
        """names: of the tools that may be called; None: whatever the model names."""
        self.name: str | None = None
        self.arguments = ""
        self.raw = ""
        self.ended = False
        self.broken = False
        self._names = names
        self._depth = 0
        self._string = self._escaped = False
        self._expects = "object"  # then key, colon, value, comma
        self._key = ""
        self._token: list[str] = []

    @property
    def begun(self) -> bool:
        """Whether this is a call beyond doubt: it has a name, and arguments or an end."""
        return self.name is not None and (bool(self.arguments) or self.ended)

    def push(self, text: str) -> str:
        """Reads on; returns what follows the object, once it has ended, or all from where it is broken."""
        end = len(text)
        for at, character in enumerate(text):
            self._read(character)
            if self.ended or self.broken:
                end = at if self.broken else at + 1
                break
        self.raw += text[:end]
        if self._expects == "value" and self._key in _ARGUMENTS and self._token[:1] == ["{"]:
            self.arguments = "".join(self._token)
        if self.ended:
            self.broken = self.name is None
            self.arguments = self.arguments or "{}"
        return text[end:]

    def _read(self, character: str) -> None:
        if self._string:
            self._token.append(character)
            if self._escaped:
                self._escaped = False
            elif character == "\\":
                self._escaped = True
            elif character == '"':
                self._string = False
                if self._depth == 1:
                    self._complete()
        elif self._depth > 1:
            self._token.append(character)
            if character == '"':
                self._string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 1:
                    self._complete()
        elif not character.isspace():
            self._read_between(character)

    def _read_between(self, character: str) -> None:
        """A character outside of the members' values, or of a number or constant among them."""
        if self._expects == "object":
            self.broken = character != "{"
            self._depth, self._expects = 1, "key"
        elif character == '"' and self._expects in ("key", "value") and not self._token:
            self._string = True
            self._token.append(character)
        elif character in "{[" and self._expects == "value" and not self._token:
            self._depth = 2
            self._token.append(character)
        elif character == ":" and self._expects == "colon":
            self._expects = "value"
        elif character in ",}" and (self._expects == "comma" or (self._expects == "value" and self._token)):
            if self._token:
                self._complete()
            self._expects = "key"
            self.ended = character == "}" and not self.broken
        elif self._expects == "value":
            self._token.append(character)
        else:
            self.broken = True

    def _complete(self) -> None:
        """A key or a value is complete."""
        try:
            value = json.loads("".join(self._token))
        except (ValueError, RecursionError):
            value = None
            # Arguments that are not JSON are shown as they are: some have been already.
            self.broken = not (self._key in _ARGUMENTS and self._expects == "value" and self._token[0] == "{")
        if self._expects == "key":
            self._key, self._expects = value or "", "colon"
            self.broken = self._key not in (*_NAMES, *_ARGUMENTS, *_OTHERS) and not self.begun
        else:
            self._expects = "comma"
            if self._key in _NAMES and self.name is None:
                self.name = value if isinstance(value, str) and (self._names is None or value in self._names) else None
                self.broken = self.name is None
            elif self._key in _ARGUMENTS:
                self._take_arguments(value)
        self._token = []

    def _take_arguments(self, value: object) -> None:
        """Arguments are an object, a text that holds one, or nothing."""
        if self._token[0] == "{":
            self.arguments = "".join(self._token)
        elif isinstance(value, str) and value.lstrip().startswith("{"):
            self.arguments = value
        else:
            self.broken = value not in (None, "")
