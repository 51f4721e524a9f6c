"""Opening files that may be absent, special, empty or huge: one clear sentence each, and no byte read
twice.
"""

from __future__ import annotations

import json
import mmap
import os
import stat
from pathlib import Path
from typing import Any
from weakref import finalize

from tandem.errors import ModelFileError

# tokenizer_config.json of a 262,144-token vocabulary has 1.2 MB; nothing near this is a model's
# configuration.
_MAX_TEXT = 64 << 20
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def show(text: str) -> str:
    """A name out of a file as messages quote it: control characters escaped, at most about 80 characters."""
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


def regular_file(path: Path) -> int:
    """The size in bytes of a non-empty regular file; ModelFileError for whatever else is there."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise cannot_read(path, error) from error
    if stat.S_ISDIR(status.st_mode):
        raise ModelFileError(f"{path} is a folder; expected a file")
    # A pipe would block the first read for ever, and a device has no size.
    if not stat.S_ISREG(status.st_mode):
        raise ModelFileError(f"{path} is not a regular file; expected a model file on disk")
    if status.st_size == 0:
        raise ModelFileError(f"{path} is empty; download it again")
    return status.st_size


class MappedFile(mmap.mmap):
    """Read-only mapped memory of the file at `path`, with a descriptor of the file that lives as long."""

    path: Path
    descriptor: int


def map_file(path: Path) -> MappedFile:
    """The file as read-only mapped memory, unmapped when the last array that views it is gone.

    Looking at bytes that another program has cut off meanwhile ends the process (SIGBUS), reading them by the
    descriptor does not: headers and small tensors are looked at, weights are read.
    """
    regular_file(path)
    try:
        with path.open("rb") as file:
            data = MappedFile(file.fileno(), 0, access=mmap.ACCESS_READ)
            data.path, data.descriptor = path, os.dup(file.fileno())
        finalize(data, os.close, data.descriptor)
    except (OSError, ValueError) as error:
        raise cannot_read(path, error) from error
    if data[: len(_LFS_POINTER)] == _LFS_POINTER:
        raise ModelFileError(
            f"{path} is a Git LFS pointer, not the file that it stands for; run `git lfs pull` in its repository"
        )
    return data


def read_text(path: Path) -> str:
    """A small UTF-8 text file."""
    size = regular_file(path)
    if size > _MAX_TEXT:
        raise ModelFileError(f"{path} has {size:,} bytes; expected a text of at most {_MAX_TEXT:,}")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{path} is not UTF-8 text: byte {error.start} is invalid") from error
    except OSError as error:
        raise cannot_read(path, error) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object."""
    text = read_text(path)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ModelFileError(
            f"{path} is not valid JSON: {error.msg}, line {error.lineno}, column {error.colno}"
        ) from error
    except RecursionError as error:
        raise ModelFileError(f"{path} is not usable JSON: it nests too deeply") from error
    except ValueError as error:  # an integer of thousands of digits
        raise ModelFileError(f"{path} is not usable JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{path} holds a JSON {type(value).__name__}; expected an object")
    return value


def cannot_read(path: Path, error: Exception) -> ModelFileError:
    """The sentence for what the operating system said when a file or folder was opened."""
    if isinstance(error, FileNotFoundError):
        return ModelFileError(f"{path} does not exist")
    if isinstance(error, PermissionError):
        return ModelFileError(f"{path} cannot be read: permission denied")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return ModelFileError(f"{show(str(path))} cannot be read: {reason}")
