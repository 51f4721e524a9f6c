"""Choices of types: llama.cpp's own for its mixes, a recipe's otherwise, and a sentence for what is no recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from golden.make_quantize_golden import gemma_shapes
from paths import REPO
from tandem.errors import RecipeError
from tandem.llm import BUNDLED_MODEL
from tandem.models.quantize import choose_types
from tandem.models.recipes import RECIPES, Matrix, named_recipe, read_recipe
from tandem.weights.open import open_checkpoint
from tandem.weights.tensor import TensorType

GOLDEN = json.loads((REPO / "tests" / "golden" / "quantize.json").read_text())["types"]


def types(path: Path, recipe: str) -> dict[str, str]:
    chosen = choose_types(open_checkpoint(path), named_recipe(recipe))
    return {choice.name: choice.type.name for choice in chosen if len(choice.exported.source.shape) == 2}


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shapes") / "gemma.gguf"
    gemma_shapes(path)
    return path


@pytest.mark.parametrize("mix", GOLDEN["story"])
def test_mixes_are_those_of_llama_cpp(mix: str, gemma: Path) -> None:
    assert types(BUNDLED_MODEL, mix) == GOLDEN["story"][mix]
    assert types(gemma, mix) == GOLDEN["gemma"][mix]


def matrix(kind: str = "attention", role: str = "v", **more: object) -> Matrix:
    usual = {
        "name": "w",
        "layer": 0,
        "layers": 32,
        "columns": 4096,
        "tied": False,
        "shared_v": False,
        "weighted": False,
    }
    return Matrix(kind=kind, role=role, **(usual | more))  # type: ignore[arg-type]


def test_what_the_goldens_models_do_not_show() -> None:
    """As src/llama-quant.cpp has it: output apart from the embedding, 80 layers, importance weights."""
    mix = named_recipe("Q4_K")
    assert mix.file_type == 15
    assert mix.type_of(matrix("embed", "embedding")) is TensorType.Q4_K
    assert mix.type_of(matrix("head", "output")) is TensorType.Q6_K
    assert mix.type_of(matrix(layer=5)) is TensorType.Q4_K
    assert mix.type_of(matrix(layer=5, shared_v=True)) is TensorType.Q5_K
    down = matrix("ffn", "down", weighted=True)
    assert named_recipe("q4_0").type_of(down) is TensorType.Q4_1
    assert named_recipe("q5_0").type_of(down) is TensorType.Q5_1
    assert named_recipe("q4_0").type_of(matrix(columns=40)) is TensorType.F16


def test_the_recipe_tandem() -> None:
    recipe = named_recipe("tandem")
    kinds = {
        ("attention", "q"): "Q8_0",
        ("embed", "embedding"): "Q8_0",
        ("head", "output"): "Q8_0",
        ("ffn", "up"): "Q4_K",
    }
    for (kind, role), type in kinds.items():
        assert recipe.type_of(matrix(kind, role)) is TensorType[type]
    assert recipe.type_of(matrix("ffn", "up", columns=1152)) is TensorType.Q5_0


def test_a_recipe_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("""
        default = "q8_0"
        [types]
        attention = "q5_k"
        "attention.v" = "f16"
        ffn = "q4_k"
        [[layers]]
        layers = [0, -1]
        types = { ffn = "q6_k", "ffn.down" = "bf16" }
    """)
    recipe = read_recipe(path)
    assert recipe.name == "mine"
    chosen = {
        (kind, role, layer): recipe.type_of(matrix(kind, role, layer=layer)).name
        for kind, role in [
            ("attention", "q"),
            ("attention", "v"),
            ("ffn", "up"),
            ("ffn", "down"),
            ("embed", "embedding"),
        ]
        for layer in (0, 1, 31)
    }
    assert {key: type for key, type in chosen.items() if key[0] == "ffn"} == {
        ("ffn", "up", 0): "Q6_K", ("ffn", "up", 1): "Q4_K", ("ffn", "up", 31): "Q6_K",
        ("ffn", "down", 0): "BF16", ("ffn", "down", 1): "Q4_K", ("ffn", "down", 31): "BF16",
    }  # fmt: skip
    assert chosen["attention", "q", 0] == "Q5_K"
    assert chosen["attention", "v", 0] == "F16"
    assert chosen["embed", "embedding", 0] == "Q8_0"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("default = ", "is not TOML"),
        ('default = "q9"', "the type of default is 'q9'; expected one of f32, "),
        ("[types]", "the type of default is None"),
        ('default = "q8_0"\nother = 1', "other is not part of a recipe"),
        ('default = "q8_0"\ntypes = 1', "types must be a table"),
        ('default = "q8_0"\n[types]\nmoe = "q8_0"', "there is no 'moe' in a model; there are: attention, "),
        ('default = "q8_0"\nlayers = 3', "layers must be tables"),
        ('default = "q8_0"\n[[layers]]\nlayers = 3', "a list of whole numbers"),
        ('default = "q8_0"\n[[layers]]\nlayers = [3]', "types must be a table"),
    ],
)
def test_what_is_no_recipe_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(RecipeError, match=message):
        read_recipe(tmp_path / "bad.toml")


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(RecipeError, match=f"there is no type 'q3_k'; there are: {', '.join(RECIPES)}"):
        named_recipe("q3_k")
