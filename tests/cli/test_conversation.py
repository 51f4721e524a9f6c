"""Turns that fit, and their file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tandem.cli.conversation import Conversation, Message
from tandem.errors import RequestError


def words(messages: list[Message]) -> list[int]:
    """A token a word."""
    return [0 for message in messages for _ in message["content"].split()]


def conversation() -> Conversation:
    made = Conversation("system")
    for turn in range(3):
        made.ask(f"question {turn}")
        made.answer(f"an answer {turn}")
    made.ask("the last question")
    return made


@pytest.mark.parametrize(("limit", "dropped"), [(19, 0), (18, 1), (14, 1), (13, 2), (4, 3), (1, 3)])
def test_oldest_turns_are_dropped_until_it_fits(limit: int, dropped: int) -> None:
    made = conversation()
    tokens, count = made.prompt(words, limit)
    assert count == dropped
    assert len(tokens) == 19 - 5 * dropped
    assert made.messages[0]["content"] == (f"question {dropped}" if dropped < 3 else "the last question")
    assert made.system == "system"


def test_saved_and_loaded_again(tmp_path: Path) -> None:
    made = conversation()
    made.answer("ünïcode\n")
    made.save(tmp_path / "talk.json")
    assert Conversation.load(tmp_path / "talk.json") == made


@pytest.mark.parametrize(
    "content",
    [
        "no json", "[" * 100_000, "[]", "{}", '{"messages": 1}', '{"system": 1, "messages": []}',
        '{"messages": [{"role": "user", "content": "x"}]}',
        '{"messages": [{"role": "assistant", "content": "x"}, {"role": "user", "content": "x"}]}',
        '{"messages": [{"role": "user"}, {"role": "assistant", "content": "x"}]}',
        '{"messages": [{"role": "user", "content": 1}, {"role": "assistant", "content": "x"}]}',
    ],
)  # fmt: skip
def test_files_that_hold_no_conversation(content: str, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    path.write_text(content)
    with pytest.raises(RequestError, match=r"talk.json .*expected a file that /save wrote"):
        Conversation.load(path)


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot be read: No such file"):
        Conversation.load(tmp_path / "absent.json")
    with pytest.raises(RequestError, match="cannot be written: No such file"):
        Conversation().save(tmp_path / "absent" / "talk.json")
    (tmp_path / "talk.json").write_bytes(json.dumps({"messages": []}).encode() + b"\xff")
    with pytest.raises(RequestError, match="not JSON"):
        Conversation.load(tmp_path / "talk.json")
