"""What is measured once and kept under the user's cache: whole files or none, and nothing is lost with them."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

Kept = TypeVar("Kept", bound=msgspec.Struct)


def cache_folder() -> Path:
    """What can be made again: `tandem` under XDG_CACHE_HOME, or else under ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if home.startswith("/") else Path.home() / ".cache") / "tandem"


def read_bytes(path: Path) -> tuple[bytes | None, str | None]:
    """What is kept there; or None, with what is wrong where a file is there but cannot be read."""
    try:
        return path.read_bytes(), None
    except FileNotFoundError:
        return None, None
    except OSError as error:
        return None, f"{path} cannot be read ({error.strerror})"


def read_kept(path: Path, kind: type[Kept]) -> tuple[Kept | None, str | None]:
    """What is kept there as JSON; or None, with what is wrong where a file is there but cannot be used."""
    data, wrong = read_bytes(path)
    if data is None:
        return None, wrong
    try:
        return msgspec.json.decode(data, type=kind), None
    except (msgspec.DecodeError, ValueError) as error:
        return None, f"{path} is damaged ({error})"


def write_bytes(path: Path, data: bytes) -> bool:
    """Keeps it, whole or not at all; False where the folder cannot be written: then it is measured again."""
    beside = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(data)
        beside.replace(path)
    except OSError:
        with suppress(OSError):
            beside.unlink()
        return False
    return True


def write_kept(path: Path, what: msgspec.Struct) -> bool:
    """The same as JSON."""
    return write_bytes(path, msgspec.json.format(msgspec.json.encode(what), indent=1))
