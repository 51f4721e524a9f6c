"""A model's files as one GGUF file of other types: `tandem quantize`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from tandem._native import Quantizer
from tandem.devices.cpu.threads import default_threads
from tandem.errors import ModelFileError
from tandem.models.gguf_export import Exported, export_metadata, export_tensors
from tandem.models.names import GGUF_NAMES
from tandem.models.open import model_spec
from tandem.models.recipes import Matrix, Recipe
from tandem.models.spec import ModelSpec
from tandem.weights.checkpoint import Checkpoint
from tandem.weights.dequantize import Bytes, Floats
from tandem.weights.gguf import read_stored_metadata
from tandem.weights.gguf_writer import TensorStream, Value, write_gguf
from tandem.weights.quantize import check_rows, convert
from tandem.weights.tensor import TensorType

# `general.file_type` of a file that is mostly of one type, for recipes that llama.cpp has no name for.
_FILE_TYPES = {
    TensorType.F32: 0,
    TensorType.F16: 1,
    TensorType.Q4_0: 2,
    TensorType.Q4_1: 3,
    TensorType.Q8_0: 7,
    TensorType.Q5_0: 8,
    TensorType.Q5_1: 9,
    TensorType.Q4_K: 15,
    TensorType.Q5_K: 17,
    TensorType.Q6_K: 18,
    TensorType.BF16: 32,
}
_ROLES = {
    re.compile(re.escape(name).replace(r"\{layer\}", r"(\d+)")): (kind, role)
    for kind, names in GGUF_NAMES.items()
    for role, name in names.items()
}


@dataclass(frozen=True, slots=True)
class Quantized:
    """What was written. requantized: matrices that were quantized before, which lose more than float ones."""

    path: Path
    sha256: str
    bytes: int
    types: Mapping[TensorType, int]
    requantized: int


@dataclass(frozen=True, slots=True)
class Choice:
    """A tensor and the type that it gets."""

    exported: Exported
    type: TensorType

    @property
    def name(self) -> str:
        return self.exported.name

    @property
    def requantized(self) -> bool:
        source = self.exported.source.type
        return source.block > 1 and source is not self.type


def choose_types(checkpoint: Checkpoint, recipe: Recipe, *, weighted: bool = False) -> list[Choice]:
    """The tensors as GGUF has them, each with its type: matrices as the recipe says, everything else float32.

    Raises ModelFileError and UnsupportedModelError for models that Tandem does not have: GGUF says too little of
    others to know which of their tensors may be quantized.
    """
    spec = model_spec(checkpoint)
    if checkpoint.format == "gguf":
        tensors: Iterable[Exported] = (Exported(name, tensor) for name, tensor in checkpoint.tensors.items())
    else:
        tensors = export_tensors(checkpoint, spec)
    return [_choose(exported, recipe, spec, weighted) for exported in tensors]


def _choose(exported: Exported, recipe: Recipe, spec: ModelSpec, weighted: bool) -> Choice:
    shape = exported.source.shape
    if len(shape) < 2:
        return Choice(exported, TensorType.F32)
    kind, role, layer = _place(exported.name)
    attention = spec.attention[0]
    type = recipe.type_of(
        Matrix(
            name=exported.name,
            kind=kind,
            role=role,
            layer=layer,
            layers=spec.layers,
            columns=shape[-1],
            tied=spec.tensors[0]["embedding"] == spec.tensors[-1]["output"],
            shared_v=spec.layers == 80 and attention.heads != attention.kv_heads,
            weighted=weighted,
        )
    )
    check_rows(exported.name, shape[-1], type)
    return Choice(exported, type)


def _place(name: str) -> tuple[str, str, int]:
    for pattern, (kind, role) in _ROLES.items():
        if match := pattern.fullmatch(name):
            return kind, role, int(match[1]) if match.groups() else 0
    return "", "", 0


def quantize_model(
    checkpoint: Checkpoint,
    path: Path,
    recipe: Recipe,
    *,
    threads: int | None = None,
    importance: Mapping[str, Floats] | None = None,
    about: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Quantized:
    """Writes `checkpoint` to `path` as GGUF, in the types that `recipe` chooses.

    threads: None takes the CPU device's number. importance: by GGUF name, a weight for each column of a matrix. about:
    `general.*` strings of a folder's new file. progress: called with (bytes written, bytes in all). Memory does not
    depend on the model's size, but for the strings of its vocabulary.

    Raises what `choose_types` and `write_gguf` raise; the source is mapped, so it must not be the target.
    """
    if path.exists() and any(path.samefile(source) for source in _files(checkpoint)):
        raise ModelFileError(f"{path} is the model itself; write to another file")
    importance = importance or {}
    choices = choose_types(checkpoint, recipe, weighted=bool(importance))
    quantizer = Quantizer(threads or default_threads())
    streams = [_stream(choice, quantizer, importance.get(choice.name)) for choice in choices]
    sha256 = write_gguf(path, _metadata(checkpoint, recipe, choices, about or {}), streams, progress=progress)
    types = Counter(choice.type for choice in choices if len(choice.exported.source.shape) > 1)
    requantized = sum(choice.requantized for choice in choices)
    return Quantized(path, sha256, path.stat().st_size, types, requantized)


def _files(checkpoint: Checkpoint) -> list[Path]:
    return [checkpoint.path] if checkpoint.path.is_file() else list(checkpoint.path.glob("*.safetensors"))


def _stream(choice: Choice, quantizer: Quantizer, importance: Floats | None) -> TensorStream:
    source, order = choice.exported.source, choice.exported.order
    strips: Callable[[], Iterable[Bytes]] = partial(
        convert, source, choice.type, quantizer, order=order, importance=importance
    )
    return TensorStream(choice.name, choice.type, source.shape, strips)


def _metadata(
    checkpoint: Checkpoint, recipe: Recipe, choices: list[Choice], about: Mapping[str, str]
) -> dict[str, Value]:
    metadata: dict[str, Value]
    if checkpoint.format == "gguf":
        stored = read_stored_metadata(checkpoint.path)
        metadata = {key: value for key, value in stored.items() if not key.startswith("split.")}
    else:
        metadata = export_metadata(checkpoint, model_spec(checkpoint), {"name": checkpoint.path.name, **about})
    elements: Counter[TensorType] = Counter()
    for choice in choices:
        elements[choice.type] += choice.exported.source.elements
    most, _ = elements.most_common(1)[0]
    metadata["general.file_type"] = np.uint32(_FILE_TYPES[most] if recipe.file_type is None else recipe.file_type)
    metadata["general.quantization_version"] = 2
    return metadata
