"""One way to name a model: a GGUF file, a folder, a safetensors file in one, or `hf:owner/name[/file]`."""

from __future__ import annotations

from pathlib import Path

from tandem.errors import ModelFileError
from tandem.weights.checkpoint import Checkpoint
from tandem.weights.files import cannot_read, regular_file, show
from tandem.weights.gguf import MAGIC, read_gguf
from tandem.weights.hub import HUB_PREFIX, fetch
from tandem.weights.huggingface import CONFIG, INDEX, WEIGHTS, read_folder, read_index
from tandem.weights.selection import choose_gguf

EXPECTED = "a .gguf file, a folder with config.json and model.safetensors or with one GGUF model, or hf:owner/name"


def open_checkpoint(name: str | Path) -> Checkpoint:
    """Opens the model at a path, or `hf:owner/name[/file]`, which is downloaded unless it is cached.

    ModelFileError: nothing there, not a model, unreadable, damaged, or the download failed.
    UnsupportedModelError: a model whose format or tensor types Tandem does not read.
    """
    if isinstance(name, str) and name.startswith(HUB_PREFIX):
        return _open_path(fetch(name))
    if not str(name) or "\0" in str(name):
        raise ModelFileError(f"{show(str(name))} is not a model's name; expected {EXPECTED}")
    try:
        path = Path(name).expanduser()
    except RuntimeError as error:
        raise ModelFileError(f"{show(str(name))} cannot be resolved: {error}") from error
    return _open_path(path)


def _open_path(path: Path) -> Checkpoint:
    try:
        if path.is_dir():
            return _open_folder(path)
        if path.exists():
            return _open_file(path)
    except OSError as error:
        raise cannot_read(path, error) from error
    raise ModelFileError(f"there is no model at {show(str(path))}; expected {EXPECTED}")


def _open_folder(path: Path) -> Checkpoint:
    names = sorted(entry.name for entry in path.iterdir())
    weights = [name for name in names if name in {WEIGHTS, INDEX}]
    gguf = [name for name in names if name.lower().endswith(".gguf")]
    if CONFIG in names and (weights or not gguf):
        return read_folder(path)
    if gguf:
        return read_gguf(path / choose_gguf(gguf, str(path))[0])
    if weights:
        raise ModelFileError(f"{path} holds {weights[0]} but no {CONFIG}; copy it from where the model came from")
    holds = f"holds {', '.join(names[:5])}{', …' if len(names) > 5 else ''}" if names else "is empty"
    raise ModelFileError(f"{path} is not a model's folder: it {holds}; expected {EXPECTED}")


def _open_file(path: Path) -> Checkpoint:
    regular_file(path)
    with path.open("rb") as file:
        start = file.read(len(MAGIC))
    suffix = path.suffix.lower()
    if start == MAGIC or suffix == ".gguf":
        return read_gguf(path)
    if suffix != ".safetensors":
        raise ModelFileError(f"{path} is not a model file: it starts with {start!r}; expected {EXPECTED}")
    folder = path.parent
    if not (folder / CONFIG).exists():
        raise ModelFileError(f"{path} has no {CONFIG} beside it; copy it from where the model came from")
    index = folder / INDEX
    is_shard = index.exists() and path.name in read_index(index).values()
    return read_folder(folder) if is_shard else read_folder(folder, path.name)
