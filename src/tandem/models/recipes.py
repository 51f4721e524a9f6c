"""Which type each matrix of a model gets: llama.cpp's mixes by their names, and recipes of one's own."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tandem.errors import RecipeError
from tandem.models.names import GGUF_NAMES
from tandem.weights.files import read_text
from tandem.weights.tensor import TensorType


@dataclass(frozen=True, slots=True)
class Matrix:
    """What a choice may depend on.

    kind, role: of the block that it belongs to (`attention`, `v`); empty where no architecture of ours has such a
    tensor. layer, layers: its own, and how many there are. tied: the model has no output matrix of its own. shared_v:
    a model of 80 layers whose query heads share keys and values, of which llama.cpp keeps V better. weighted:
    importance weights were given.
    """

    name: str
    kind: str
    role: str
    layer: int
    layers: int
    columns: int
    tied: bool
    shared_v: bool
    weighted: bool


@dataclass(frozen=True, slots=True)
class Recipe:
    """file_type: GGUF's `general.file_type`, or None where no mix of llama.cpp has the recipe's name."""

    name: str
    file_type: int | None
    choose: Callable[[Matrix], TensorType]

    def type_of(self, matrix: Matrix) -> TensorType:
        """The matrix's type; what its rows cannot hold becomes what llama.cpp falls back to."""
        type = self.choose(matrix)
        if matrix.columns % type.block:
            type = _FALLBACKS.get(type, type)
        return TensorType.F16 if matrix.columns % type.block else type


_FALLBACKS = {TensorType.Q4_K: TensorType.Q5_0, TensorType.Q5_K: TensorType.Q5_1, TensorType.Q6_K: TensorType.Q8_0}
# llama.cpp's file types (llama.h, LLAMA_FTYPE_*) and the type that most of each is.
_MIXES = {
    "f32": (0, TensorType.F32),
    "f16": (1, TensorType.F16),
    "bf16": (32, TensorType.BF16),
    "q4_0": (2, TensorType.Q4_0),
    "q4_1": (3, TensorType.Q4_1),
    "q5_0": (8, TensorType.Q5_0),
    "q5_1": (9, TensorType.Q5_1),
    "q8_0": (7, TensorType.Q8_0),
    "q4_k_s": (14, TensorType.Q4_K),
    "q4_k_m": (15, TensorType.Q4_K),
    "q5_k_s": (16, TensorType.Q5_K),
    "q5_k_m": (17, TensorType.Q5_K),
    "q6_k": (18, TensorType.Q6_K),
}
_ALIASES = {"q4_k": "q4_k_m", "q5_k": "q5_k_m"}
# 8 bits where errors reach every position (attention, embeddings), 4 bits in groups of 32 where the bytes are.
_TANDEM = {"default": "q8_0", "types": {"ffn": "q4_k"}}
RECIPES = (*_MIXES, "tandem")
_TYPES = {type.name.lower(): type for type in TensorType}


def named_recipe(name: str) -> Recipe:
    """`q4_k_m` and the like, as llama.cpp mixes them, or `tandem`. Raises RecipeError, listing what there is."""
    lower = name.lower()
    lower = _ALIASES.get(lower, lower)
    if lower == "tandem":
        return _from_table(_TANDEM, "tandem", "tandem")
    if lower not in _MIXES:
        raise RecipeError(f"there is no type {name!r}; there are: {', '.join(RECIPES)}")
    file_type, base = _MIXES[lower]
    return Recipe(lower, file_type, lambda matrix: _mixed(lower, base, matrix))


def _more_bits(layer: int, layers: int) -> bool:
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _mixed(mix: str, base: TensorType, matrix: Matrix) -> TensorType:
    """llama.cpp's choice (src/llama-quant.cpp, llama_tensor_get_type_impl) for the types that Tandem reads."""
    if base.block == 1:
        return base
    better, early = mix in ("q4_k_m", "q5_k_m"), matrix.layer < matrix.layers // 8
    match matrix.role:
        case "output" | "embedding" if matrix.role == "output" or matrix.tied:
            return TensorType.Q8_0 if base is TensorType.Q8_0 or matrix.columns % base.block else TensorType.Q6_K
        case "v" | "down" if better and _more_bits(matrix.layer, matrix.layers):
            return TensorType.Q6_K
        case "v" if (mix == "q4_k_s" and matrix.layer < 4) or (matrix.shared_v and base is TensorType.Q4_K):
            return TensorType.Q5_K
        case "down" if mix == "q4_k_s" and early:
            return TensorType.Q5_K
        case "down" if matrix.weighted and early and mix in ("q4_0", "q5_0"):
            return TensorType.Q4_1 if mix == "q4_0" else TensorType.Q5_1
    return base


def read_recipe(path: Path) -> Recipe:
    """A recipe of one's own, as TOML:

        default = "q4_k"               # every matrix that nothing below names
        [types]
        attention = "q8_0"             # a kind of block: embed, attention, ffn, head
        "attention.v" = "f16"          # one matrix of it: q, k, v, o; gate, up, down; embedding; output
        [[layers]]
        layers = [0, 1, -1]            # negative ones count from the last
        types = { ffn = "q6_k" }       # before the types above

    Raises RecipeError for what is not such a recipe, ModelFileError for a file that cannot be read.
    """
    try:
        table = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path} is not TOML: {error}") from None
    return _from_table(table, path.stem, str(path))


def _from_table(table: Mapping[str, Any], name: str, where: str) -> Recipe:
    if unknown := set(table) - {"default", "types", "layers"}:
        raise RecipeError(
            f"{where}: {', '.join(sorted(unknown))} is not part of a recipe; it has default, types, layers"
        )
    default = _type(table.get("default"), "default", where)
    common = _types(table.get("types", {}), where)
    special: list[tuple[frozenset[int], dict[str, TensorType]]] = []
    entries = table.get("layers", [])
    if not isinstance(entries, list):
        raise RecipeError(f"{where}: layers must be tables, [[layers]]")
    for entry in entries:
        numbers = entry.get("layers") if isinstance(entry, dict) else None
        if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
            raise RecipeError(f"{where}: each [[layers]] needs layers, a list of whole numbers")
        special.append((frozenset(numbers), _types(entry.get("types"), where)))

    def choose(matrix: Matrix) -> TensorType:
        keys = (f"{matrix.kind}.{matrix.role}", matrix.kind)
        here = {matrix.layer, matrix.layer - matrix.layers} if matrix.kind in ("attention", "ffn") else set()
        for types in [types for layers, types in special if layers & here] + [common]:
            for key in keys:
                if key in types:
                    return types[key]
        return default

    return Recipe(name, None, choose)


_PLACES = set(GGUF_NAMES) | {
    f"{kind}.{role}" for kind, roles in GGUF_NAMES.items() for role in roles if not re.search("norm|bias", role)
}


def _types(value: Any, where: str) -> dict[str, TensorType]:
    if not isinstance(value, dict):
        raise RecipeError(f"{where}: types must be a table of types by kind of block")
    for key in value:
        if key not in _PLACES:
            raise RecipeError(f"{where}: there is no {key!r} in a model; there are: {', '.join(sorted(_PLACES))}")
    return {key: _type(name, key, where) for key, name in value.items()}


def _type(name: Any, key: str, where: str) -> TensorType:
    type = _TYPES.get(name) if isinstance(name, str) else None
    if type is None:
        raise RecipeError(f"{where}: the type of {key} is {name!r}; expected one of {', '.join(_TYPES)}")
    return type
