"""Hugging Face model folders: configuration, side files and weights under the text model's names."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tandem.errors import ModelFileError
from tandem.weights.checkpoint import Checkpoint
from tandem.weights.files import read_json, read_text, show
from tandem.weights.safetensors import SafetensorsFile, read_safetensors
from tandem.weights.tensor import Tensor

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Read when present; `tokenizer.json` is large and its own reader opens it by path.
JSON_FILES = ("generation_config.json", "tokenizer_config.json", "chat_template.json")
TEXT_FILES = ("chat_template.jinja",)

# Where checkpoints with more than a text model keep it: `language_model.` before the plain names, or, as
# transformers 5 writes them, `language_model.` inside `model.`.
_TEXT_MODEL = re.compile(r"(?:language_model\.(?=model\.|lm_head\.)|model\.language_model\.)")
_HEAD = "lm_head."


def read_folder(path: Path, weights: str | None = None) -> Checkpoint:
    """Opens a folder with `config.json` and safetensors weights; `metadata` is `config.json`.

    weights: the one safetensors file to read instead of `model.safetensors` or the shards of its index.
    Tied weights that a file declares (`__metadata__` maps the absent name to the stored one) have both names.
    Of a multimodal checkpoint the text part appears under the plain names, the rest is in `skipped`.

    ModelFileError: a file absent or damaged, a shard missing, an index that names what is not there.
    """
    config = read_json(path / CONFIG)
    files: dict[str, Any] = {name: read_json(path / name) for name in JSON_FILES if (path / name).exists()}
    files |= {name: read_text(path / name) for name in TEXT_FILES if (path / name).exists()}
    stored = _without_prefix(path, _read_weights(path, weights))
    return Checkpoint(path, "safetensors", config, stored.tensors, stored.skipped, files)


def read_index(path: Path) -> dict[str, str]:
    """The weight map of `model.safetensors.index.json`: by tensor name the shard, a plain file name."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFileError(f"{path} has no weight_map; expected an object of shard names by tensor name")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not re.fullmatch(r"[^/\\\0]+\.safetensors", shard):
            raise ModelFileError(
                f"{path} places tensor {show(tensor)} in {show(str(shard))}; expected the name of a "
                ".safetensors file in the same folder"
            )
    return weight_map


def _read_weights(path: Path, weights: str | None) -> SafetensorsFile:
    if weights is None and not (path / WEIGHTS).exists() and (path / INDEX).exists():
        return _read_shards(path, read_index(path / INDEX))
    single = path / (weights or WEIGHTS)
    if not single.exists():
        others = sorted(file.name for file in path.iterdir() if file.suffix in {".bin", ".pt", ".pth", ".safetensors"})
        found = f"; it holds {', '.join(others[:5])}, which Tandem does not open" if others else ""
        raise ModelFileError(f"{path} has {CONFIG}, but neither {WEIGHTS} nor {INDEX}{found}")
    return _with_aliases(read_safetensors(single))


def _read_shards(path: Path, weight_map: Mapping[str, str]) -> SafetensorsFile:
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if not (path / shard).exists()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ModelFileError(
            f"{path} lacks {', '.join(missing[:3])}{more} of {len(shards)} shards; download what is missing"
        )
    whole = SafetensorsFile({}, {}, {})
    places: dict[str, str] = {}
    for shard in shards:
        opened = _with_aliases(read_safetensors(path / shard))
        for name in (*opened.tensors, *opened.skipped):
            if name in places:
                raise ModelFileError(f"{path}: tensor {show(name)} is in both {places[name]} and {shard}")
            places[name] = shard
        whole.tensors.update(opened.tensors)
        whole.skipped.update(opened.skipped)
    for name, shard in weight_map.items():
        if places.get(name) != shard:
            raise ModelFileError(
                f"{path / INDEX} places tensor {show(name)} in {shard}, which does not hold it; download both again"
            )
    return whole


def _with_aliases(file: SafetensorsFile) -> SafetensorsFile:
    """Adds the second names of tied weights, as `safetensors.torch.save_model` declares them."""
    tensors, skipped = dict(file.tensors), dict(file.skipped)
    for name, stored in file.metadata.items():
        if name in file.tensors or name in file.skipped:
            continue
        if stored in file.tensors:
            tensors[name] = dataclasses.replace(file.tensors[stored], name=name)
        elif stored in file.skipped:
            skipped[name] = file.skipped[stored]
    return SafetensorsFile(tensors, skipped, file.metadata)


def _without_prefix(path: Path, file: SafetensorsFile) -> SafetensorsFile:
    """The text model's tensors under plain names, where a checkpoint holds more than a text model."""
    names = (*file.tensors, *file.skipped)
    if not any(_TEXT_MODEL.match(name) for name in names):
        return file
    plain = dict(_plain_names(path, names))
    tensors: dict[str, Tensor] = {}
    skipped: dict[str, str] = {}
    for name in names:
        if name not in plain:
            skipped[name] = "not part of the text model"
        elif name in file.skipped:
            skipped[plain[name]] = file.skipped[name]
        else:
            tensors[plain[name]] = dataclasses.replace(file.tensors[name], name=plain[name])
    return SafetensorsFile(tensors, skipped, file.metadata)


def _plain_names(path: Path, names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Pairs of a text tensor's name and its plain name."""
    taken: dict[str, str] = {}
    for name in names:
        prefix = _TEXT_MODEL.match(name)
        if prefix is None and not name.startswith(_HEAD):
            continue
        rest = name[prefix.end() :] if prefix else name
        plain = f"model.{rest}" if prefix and prefix[0].startswith("model.") else rest
        if plain in taken:
            raise ModelFileError(f"{path}: tensors {show(taken[plain])} and {show(name)} are both {show(plain)}")
        taken[plain] = name
        yield name, plain
