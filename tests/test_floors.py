"""A room imports only from floors below it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "tandem"

# From the top floor down; rooms of one floor do not import each other.
FLOORS = [
    {"__main__"},
    {"cli"},
    {"server"},
    {"deploy"},
    {"bench", "doctor"},
    {"llm"},
    {"engine"},
    {"pipeline"},
    {"memory"},
    {"models"},
    {"devices"},
    {"weights"},
    {"text"},
    {"_native"},
    {"cache"},
    {"config"},
    {"errors"},
]
HEIGHT = {room: -floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def imported_rooms(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = name.split(".")
            if parts[0] == "tandem" and len(parts) > 1 and parts[1] in HEIGHT:
                yield parts[1]


def test_rooms_import_only_downwards() -> None:
    wrong, seen = [], 0
    for path in SOURCE.rglob("*.py"):
        room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        assert room in HEIGHT, f"{path} is a room without a floor"
        for other in imported_rooms(path):
            seen += 1
            if other != room and HEIGHT[other] >= HEIGHT[room]:
                wrong.append(f"{path.relative_to(SOURCE)} imports {other}")
    assert seen > 100
    assert wrong == []
