"""Which of many files make up one model, decided from their names alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from tandem.errors import ModelFileError
from tandem.weights.gguf import PART_NAME
from tandem.weights.huggingface import CONFIG, INDEX, JSON_FILES, TEXT_FILES, WEIGHTS

_TOKENIZER = "tokenizer.json"
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")


def choose_gguf(files: Sequence[str], where: str) -> list[str]:
    """The one GGUF model among these names: a file, or the parts of a split one in order.

    Vision projectors (`mmproj…`) are no models of their own. ModelFileError lists several models.
    """
    models: dict[str, list[str]] = {}
    for name in sorted(files):
        if not PurePosixPath(name).name.startswith("mmproj"):
            part = PART_NAME.fullmatch(name)
            models.setdefault(f"{part['prefix']}-of-{part['count']}" if part else name, []).append(name)
    if len(models) == 1:
        return next(iter(models.values()))
    if not models:
        raise ModelFileError(f"{where} holds only vision projectors ({', '.join(sorted(files)[:3])}); expected a model")
    names = [parts[0] for parts in models.values()]
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    raise ModelFileError(f"{where} holds {len(names)} GGUF models, name one of them: {', '.join(names[:20])}{more}")


def choose_from_repository(files: Sequence[str], file: str | None, where: str) -> list[str]:
    """The files of one model out of all files of a repository: weights first, an index for all its shards.

    file: a GGUF or safetensors file that the user named. Without it safetensors come before GGUF.
    ModelFileError: there is no model, the file is not there, or there are several and none was named.
    """
    names = set(files)
    gguf = [name for name in files if name.lower().endswith(".gguf")]
    if file is not None:
        if file not in names:
            models = gguf or [name for name in files if name.endswith(".safetensors")]
            found = f"; it holds {', '.join(models[:20])}" if models else ""
            raise ModelFileError(f"{where} has no file {file}{found}")
        if file in gguf:
            return _parts(file, gguf)
        if not file.endswith(".safetensors") or "/" in file:
            raise ModelFileError(f"{where}: {file} is not a model; expected a .gguf or .safetensors file")
    weights = [name for name in (WEIGHTS, INDEX) if name in names][:1]
    if file is not None and not (weights == [INDEX] and _SHARD.search(file)):
        weights = [file]
    if weights and CONFIG in names:
        return [*weights, *(name for name in (CONFIG, _TOKENIZER, *JSON_FILES, *TEXT_FILES) if name in names)]
    if gguf:
        return choose_gguf(gguf, where)
    shown = ", ".join(sorted(names)[:10]) or "nothing"
    raise ModelFileError(
        f"{where} is not a model that Tandem opens: expected {CONFIG} with {WEIGHTS} or its index, or a GGUF "
        f"file; it holds {shown}"
    )


def _parts(file: str, gguf: Sequence[str]) -> list[str]:
    """The file, or all parts of the split model that it belongs to."""
    name = PART_NAME.fullmatch(file)
    if name is None:
        return [file]
    parts = [PART_NAME.fullmatch(other) for other in sorted(gguf)]
    return [part[0] for part in parts if part and part.group("prefix", "count") == name.group("prefix", "count")]
