"""The models that are on this machine: in Hugging Face's cache, and in a folder of one's own."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tandem.errors import ModelFileError
from tandem.weights.gguf import PART_NAME
from tandem.weights.hub import HUB_PREFIX
from tandem.weights.huggingface import CONFIG

if TYPE_CHECKING:
    from huggingface_hub import CachedFileInfo, CachedRepoInfo


@dataclass(frozen=True, slots=True)
class LocalModel:
    """name: what `--model` takes. format: GGUF or safetensors. last_used: seconds since the epoch, as the file system
    notes it when files are read (on most, to a day).

    paths: what goes when it is removed.
    """

    name: str
    format: str
    bytes: int
    last_used: float
    paths: Sequence[Path] = field(repr=False)

    @property
    def from_hub(self) -> bool:
        return self.name.startswith(HUB_PREFIX)


def list_models(folder: Path) -> list[LocalModel]:
    """By name: those of Hugging Face's cache, then those of the folder and its folders, if it is there."""
    found = [model for repository in _repositories() for model in _of_repository(repository)]
    return sorted([*found, *_of_folder(folder)], key=lambda model: (not model.from_hub, model.name))


def find_model(name: str, folder: Path) -> LocalModel:
    """Raises ModelFileError for what `list_models` does not show."""
    models = list_models(folder)
    wanted = {name, str(Path(name).absolute()), f"{HUB_PREFIX}{name}"}
    named = [model for model in models if model.name in wanted]
    if named:
        return named[0]
    repository = [model for model in models if model.from_hub and model.name.startswith(f"{name.rstrip('/')}/")]
    if repository:
        names = ", ".join(model.name for model in repository)
        raise ModelFileError(f"{name} has {len(repository)} models here, name one of them: {names}")
    raise ModelFileError(f"{name} is not a model of this machine; tandem list shows them")


def remove_model(model: LocalModel) -> int:
    """Deletes its files, and what huggingface_hub would keep of a repository without any. Returns the bytes freed.

    Raises ModelFileError where something cannot be deleted.
    """
    try:
        for path in model.paths:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise ModelFileError(f"{error.filename or model.name} cannot be deleted: {error.strerror}") from None
    return model.bytes


def _repositories() -> Iterable[CachedRepoInfo]:
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        return [each for each in scan_cache_dir().repos if each.repo_type == "model"]
    except CacheNotFound:
        return []


def _of_repository(repository: CachedRepoInfo) -> Iterable[LocalModel]:
    """Its newest revision's models: each GGUF model, and its safetensors with all that belongs to them."""
    if not repository.revisions:
        return
    revision = max(repository.revisions, key=lambda each: each.last_modified)
    inside = {file.file_path.relative_to(revision.snapshot_path).as_posix(): file for file in revision.files}
    others = [file for name, file in inside.items() if not name.endswith(".gguf")]
    models = [("GGUF", [inside[name] for name in names], f"/{names[0]}") for names in _gguf_models(inside)]
    if any(file.file_name.endswith(".safetensors") for file in others):
        models.append(("safetensors", others, ""))
    for form, files, suffix in models:
        alone = len(models) == 1
        size = sum({file.blob_path: file.size_on_disk for file in files}.values())
        used = max(file.blob_last_accessed for file in files)
        paths = [repository.repo_path] if alone else _paths(repository, files, list(inside.values()))
        yield LocalModel(f"{HUB_PREFIX}{repository.repo_id}{'' if alone else suffix}", form, size, used, paths)


def _paths(
    repository: CachedRepoInfo, files: Sequence[CachedFileInfo], all_files: Sequence[CachedFileInfo]
) -> list[Path]:
    """The blobs of these files alone, and every revision's links to them: a link to nothing spoils the cache."""
    kept = {file.blob_path for file in all_files if file not in files}
    blobs = {file.blob_path for file in files} - kept
    links = [file.file_path for each in repository.revisions for file in each.files if file.blob_path in blobs]
    return [*(file.file_path for file in files if file.blob_path in kept), *links, *blobs]


def _of_folder(folder: Path) -> Iterable[LocalModel]:
    if not folder.is_dir():
        return
    for place in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        files = {path.name: path for path in place.iterdir() if path.is_file()}
        for names in _gguf_models(files):
            yield _stored(files[names[0]], "GGUF", [files[name] for name in names])
        if place != folder and CONFIG in files and any(name.endswith(".safetensors") for name in files):
            yield _stored(place, "safetensors", list(files.values()), [place])


def _stored(name: Path, form: str, files: Sequence[Path], paths: Sequence[Path] | None = None) -> LocalModel:
    sizes = [path.stat() for path in files]
    used = max(each.st_atime for each in sizes)
    return LocalModel(str(name.absolute()), form, sum(each.st_size for each in sizes), used, paths or files)


def _gguf_models(names: Iterable[str]) -> list[list[str]]:
    """Names of GGUF files, the parts of a split model together; vision projectors are no models."""
    models: dict[str, list[str]] = {}
    for name in sorted(names):
        if name.endswith(".gguf") and not name.rpartition("/")[2].startswith("mmproj"):
            part = PART_NAME.fullmatch(name)
            models.setdefault(f"{part['prefix']}-of-{part['count']}" if part else name, []).append(name)
    return list(models.values())
