"""Models from Hugging Face's hub, through huggingface_hub: its cache, its progress bars, its retries."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tandem.errors import ModelFileError
from tandem.weights.huggingface import INDEX, WEIGHTS, read_index
from tandem.weights.selection import choose_from_repository

HUB_PREFIX = "hf:"
_NAME = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?:/(?P<file>.+))?")
_TIMEOUT = 10.0  # seconds to wait for the hub's first answer before the cache is tried


def fetch(name: str) -> Path:
    """The local path of `hf:owner/name[/file]`: a folder of huggingface_hub's cache, or the named file in it.

    The hub is asked for the newest version; when it does not answer, what the cache holds is used. An
    interrupted download keeps the finished files; a broken connection is taken up again where it broke.

    ModelFileError: not found, access not granted, no model in it, or neither reachable nor cached.
    """
    match = _NAME.fullmatch(name.removeprefix(HUB_PREFIX))
    if match is None:
        raise ModelFileError(f"{name!r} does not name a model; expected hf:owner/name or hf:owner/name/file.gguf")
    repository, file = match["repository"], match["file"]
    with _clear_errors(repository):
        names = _list_files(repository)
        if names is None:
            folder = _cached_folder(repository)
            names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
            wanted = choose_from_repository(names, file, f"the hub does not answer, and the cached {repository}")
        else:
            wanted = choose_from_repository(names, file, repository)
            folder = _download(repository, wanted)
            if INDEX in wanted:
                folder = _download(repository, [*wanted, *sorted(set(read_index(folder / INDEX).values()))])
    return folder if wanted[0] in {INDEX, WEIGHTS} else folder / wanted[0]


def _list_files(repository: str) -> list[str] | None:
    """The repository's files, or None when the hub does not answer or is out of order."""
    # Imported late here and below, because it costs 0.2 s that opening a local file does not need.
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        siblings = HfApi().model_info(repository, timeout=_TIMEOUT).siblings
    except HfHubHTTPError as error:
        if error.response.status_code < 500 and error.response.status_code != 429:
            raise
        return None
    except _transport_errors():
        return None
    return [sibling.rfilename for sibling in siblings or []]


def _download(repository: str, files: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repository, allow_patterns=[glob.escape(file) for file in files]))


def _cached_folder(repository: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        # No pattern: the folder itself is asked for, whatever it holds.
        return Path(snapshot_download(repository, local_files_only=True, allow_patterns=[]))
    except LocalEntryNotFoundError as error:
        raise ModelFileError(
            f"{repository} is not in the cache and the hub does not answer (no network, or HF_HUB_OFFLINE is "
            "set); connect, or copy the model here and give its path"
        ) from error


def _transport_errors() -> tuple[type[Exception], ...]:
    """What a failing connection or a full disk raises.

    huggingface_hub's own error derives from its HTTP library's, which versions 1 and 2 do not share, and from
    OSError; hf_xet, which moves large files, raises RuntimeError.
    """
    from huggingface_hub.errors import HfHubHTTPError

    return (*HfHubHTTPError.__bases__, RuntimeError)


@contextmanager
def _clear_errors(repository: str) -> Iterator[None]:
    """Turns huggingface_hub's errors into one sentence that says what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
    )

    log_in = "log in with `hf auth login` or set HF_TOKEN"
    try:
        yield
    except GatedRepoError as error:
        raise ModelFileError(
            f"{repository} is gated: accept its terms at {constants.ENDPOINT}/{repository}, then {log_in}"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelFileError(
            f"the hub has no model {repository}, or it is private: check the name, and for a private one {log_in}"
        ) from error
    except HFValidationError as error:
        raise ModelFileError(f"hf:{repository} is not a valid name on the hub: {error}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        advice = log_in if status in {401, 403} else "try again later"
        raise ModelFileError(f"the hub refused {repository} with HTTP status {status}; {advice}") from error
    except _transport_errors() as error:
        reason = str(error).partition("\n")[0]
        raise ModelFileError(
            f"the download of {repository} broke off ({reason}); run the command again, finished files are kept"
        ) from error
