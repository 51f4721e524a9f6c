"""Writing files that may be there already: a difference to look at first, and nothing half-written."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path

from tandem.errors import DeployError


def changes(files: Mapping[Path, str]) -> dict[Path, str]:
    """A unified diff for each file that is not as it should be; a new one is all additions."""
    found = {}
    for path, text in files.items():
        try:
            old = path.read_text()
        except FileNotFoundError:
            old = None
        except (OSError, UnicodeDecodeError) as error:
            raise DeployError(f"{path} cannot be read: {error}") from None
        if old != text:
            before = "/dev/null" if old is None else str(path)
            lines = difflib.unified_diff((old or "").splitlines(), text.splitlines(), before, str(path), lineterm="")
            found[path] = "\n".join(lines)
    return found


def write(files: Mapping[Path, str]) -> None:
    """Each file appears complete or not at all."""
    for path, text in files.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.name}.partial")
            partial.write_text(text)
            partial.chmod(0o644)
            partial.replace(path)
        except OSError as error:
            advice = "; run it with sudo, or choose a folder with --output" if os.geteuid() else ""
            raise DeployError(f"{path} cannot be written: {error.strerror}{advice}") from None
