"""A conversation: its turns, how they fit the model's context, and its file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeGuard

from tandem.errors import RequestError

Message = dict[str, str]
ROLES = ("user", "assistant")


@dataclass(slots=True)
class Conversation:
    """messages: turns of a user and an assistant in alternation, the user's first."""

    system: str | None = None
    messages: list[Message] = field(default_factory=list)

    def ask(self, text: str) -> None:
        self.messages.append({"role": "user", "content": text})

    def answer(self, text: str) -> None:
        self.messages.append({"role": "assistant", "content": text})

    def take_back(self) -> None:
        """Forgets a question that could not be answered."""
        self.messages.pop()

    def prompt(self, render: Callable[[list[Message]], list[int]], limit: int) -> tuple[list[int], int]:
        """Token ids of all there is, and how many old turns (a question and its answer) were dropped to fit `limit`.

        The last question is never dropped: where it is too long by itself, the engine says so.
        """
        dropped = 0
        head = [] if self.system is None else [{"role": "system", "content": self.system}]
        while len(tokens := render([*head, *self.messages])) > limit and len(self.messages) > 2:
            del self.messages[:2]
            dropped += 1
        return tokens, dropped

    def save(self, path: Path) -> None:
        """Raises RequestError where the file cannot be written."""
        content = {"system": self.system, "messages": self.messages}
        try:
            path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise RequestError(f"{path} cannot be written: {error.strerror}") from None

    @classmethod
    def load(cls, path: Path) -> Conversation:
        """Raises RequestError for a file that cannot be read or holds anything but a conversation."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise RequestError(f"{path} cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError):
            raise RequestError(f"{path} is not JSON; expected a file that /save wrote") from None
        content = content if isinstance(content, dict) else {}
        system, messages = content.get("system"), content.get("messages")
        if not isinstance(system, str | None) or not _is_conversation(messages):
            raise RequestError(f"{path} holds no conversation; expected a file that /save wrote")
        return cls(system, messages)


def _is_conversation(messages: object) -> TypeGuard[list[Message]]:
    return (
        isinstance(messages, list)
        and len(messages) % 2 == 0
        and all(
            isinstance(message, dict)
            and message.keys() == {"role", "content"}
            and message["role"] == ROLES[i % 2]
            and isinstance(message["content"], str)
            for i, message in enumerate(messages)
        )
    )
