"""What the pages say is there: links and their anchors, commands and their flags, scripts, and names of the API."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer.main

from paths import REPO
from tandem.cli.app import app

PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]
_FENCED = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
_COMMANDS: dict[str, Any] = dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def prose(page: Path) -> str:
    return _FENCED.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), target
        assert not anchor or anchor in anchors(place), target


def shown(page: Path) -> Iterator[str]:
    """Command lines: of blocks, without prompts and comments, and of `code` in the text."""
    text = page.read_text()
    for language, block in _FENCED.findall(text):
        if language in ("sh", "console"):
            for line in block.splitlines():
                yield line.removeprefix("$ ").partition(" #")[0]
    yield from re.findall(r"`(tandem [^`]+)`", prose(page))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_flags_exist(page: Path) -> None:
    for line in shown(page):
        for call in re.findall(r"(?:^|[|&;] *|sudo )tandem ([^|&;]*)", line):
            words = call.split()
            command: Any = None
            if words and not words[0].startswith("-"):
                assert words[0].strip(",") in _COMMANDS, line
                command = _COMMANDS[words[0].strip(",")]
                if hasattr(command, "commands"):  # `bench`, whose default is throughput; --profile is a command, too
                    named = next((word.lstrip("-") for word in words[1:] if word.lstrip("-") in command.commands), "")
                    words = [word for word in words if word != f"--{named}"]
                    command = command.commands[named or "throughput"]
            options = {"--version", "--help"} | {
                option for each in getattr(command, "params", ()) for option in (*each.opts, *each.secondary_opts)
            }
            for word in words:
                flag = word.partition("=")[0].strip("[](),.")
                assert not re.fullmatch(r"--[a-z][\w-]*", flag) or flag in options, f"{flag} in {line}"


# The notebook tells what was, too.
@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "notebook"], ids=lambda page: page.name)
def test_scripts_and_files_exist(page: Path) -> None:
    folders = "tools|benchmarks|examples|tests|native|src"
    for path in re.findall(rf"(?<![\w/.])((?:{folders})/[\w./-]+\.\w+)", page.read_text()):
        assert (REPO / path).exists() or "results/" in path, path


def test_the_apis_names_exist() -> None:
    names = re.findall(r"`(tandem\.[\w.]+)`", (REPO / "docs/api.md").read_text())
    assert len(names) > 25
    for name in names:
        parts = name.split(".")
        thing: Any = import_module("tandem")
        for i, part in enumerate(parts[1:], 2):
            if not hasattr(thing, part):
                import_module(".".join(parts[:i]))
            thing = getattr(thing, part)
        assert thing.__doc__ or not callable(thing), name


def test_every_page_can_be_found() -> None:
    """From the readme, by links alone."""
    reached, waiting = set(), [REPO / "README.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        for target in re.findall(r"\]\(([^)\s#]+\.md)", prose(page)):
            place = (page.parent / target).resolve()
            if "://" not in target and place not in reached:
                waiting.append(place)
    assert set(PAGES) <= reached
