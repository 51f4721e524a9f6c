"""Hugging Face folders: shards, tied weights, multimodal checkpoints, and what may be wrong with them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from paths import SHARED
from tandem.errors import ModelFileError
from tandem.weights.dequantize import dequantize
from tandem.weights.huggingface import read_folder
from weights.builders import INDEX, SHARD_A, SHARD_B, SHARDS, index_file, model_folder, weights_file

TINY = SHARED / "data/models/TinyStories-656K"
STORIES = SHARED / "models/tandem-stories-22m"


def test_a_single_file_with_a_declared_tie_has_both_names() -> None:
    checkpoint = read_folder(TINY)
    assert checkpoint.format == "safetensors"
    assert checkpoint.metadata["hidden_size"] == 128
    assert checkpoint.files["generation_config.json"]["eos_token_id"] == 2
    assert "tokenizer_config.json" in checkpoint.files
    assert "tokenizer.json" not in checkpoint.files
    tied, stored = checkpoint.tensors["model.embed_tokens.weight"], checkpoint.tensors["lm_head.weight"]
    assert tied.name == "model.embed_tokens.weight"
    assert tied.data is stored.data
    assert tied.shape == stored.shape == (2048, 128)
    assert "format" not in checkpoint.tensors


def test_shards_make_one_model() -> None:
    checkpoint = read_folder(STORIES)
    listed = json.loads((STORIES / "model.safetensors.index.json").read_text())
    assert set(checkpoint.tensors) == set(listed["weight_map"])
    assert sum(tensor.elements for tensor in checkpoint.tensors.values()) == listed["metadata"]["total_parameters"]
    assert all(np.isfinite(dequantize(tensor)).all() for tensor in checkpoint.tensors.values())


def test_a_chat_template_file_is_text(tmp_path: Path) -> None:
    model_folder(tmp_path, {"model.safetensors": weights_file(["a"]), "chat_template.jinja": "{{ '▁' }}".encode()})
    assert read_folder(tmp_path).files == {"chat_template.jinja": "{{ '▁' }}"}


@pytest.mark.parametrize(
    ("stored", "plain"),
    [
        (  # as published
            ["language_model.model.embed_tokens.weight", "language_model.model.layers.0.mlp.up_proj.weight"],
            ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"],
        ),
        (
            ["language_model.lm_head.weight", "language_model.model.norm.weight"],
            ["lm_head.weight", "model.norm.weight"],
        ),
        (  # as transformers 5 writes them
            ["model.language_model.layers.0.mlp.up_proj.weight", "lm_head.weight"],
            ["model.layers.0.mlp.up_proj.weight", "lm_head.weight"],
        ),
    ],
)
@pytest.mark.parametrize(
    "vision", ["vision_tower.", "model.vision_tower.", "multi_modal_projector.", "model.multi_modal_projector."]
)
def test_the_text_part_of_a_multimodal_checkpoint_has_plain_names(
    tmp_path: Path, stored: list[str], plain: list[str], vision: str
) -> None:
    extra = f"{vision}encoder.layers.0.mlp.fc1.weight"
    checkpoint = read_folder(model_folder(tmp_path, {"model.safetensors": weights_file([*stored, extra])}))
    assert list(checkpoint.tensors) == plain
    assert [tensor.name for tensor in checkpoint.tensors.values()] == plain
    assert [float(dequantize(tensor)[0]) for tensor in checkpoint.tensors.values()] == [0, 1]
    assert checkpoint.skipped == {extra: "not part of the text model"}


def test_a_text_checkpoint_keeps_all_its_names(tmp_path: Path) -> None:
    names = ["model.norm.weight", "lm_head.weight", "score.weight"]
    checkpoint = read_folder(model_folder(tmp_path, {"model.safetensors": weights_file(names)}))
    assert list(checkpoint.tensors) == names
    assert checkpoint.skipped == {}


def test_ties_and_unread_types_follow_the_renaming(tmp_path: Path) -> None:
    names = ["language_model.model.embed_tokens.weight"]
    tie = {"language_model.lm_head.weight": names[0]}
    checkpoint = read_folder(model_folder(tmp_path, {"model.safetensors": weights_file(names, tie)}))
    assert list(checkpoint.tensors) == ["model.embed_tokens.weight", "lm_head.weight"]
    checkpoint = read_folder(model_folder(tmp_path, {"model.safetensors": weights_file(names, tie, dtype="I64")}))
    reason = "type I64; Tandem reads F32, F16, BF16 from safetensors"
    assert checkpoint.skipped == {"model.embed_tokens.weight": reason, "lm_head.weight": reason}


def test_one_file_can_be_named(tmp_path: Path) -> None:
    files = {"model.safetensors": weights_file(["a"]), "other.safetensors": weights_file(["b"])}
    assert list(read_folder(model_folder(tmp_path, files), "other.safetensors").tensors) == ["b"]


BAD: dict[str, tuple[dict[str, object], str]] = {
    "no config": ({"config.json": None}, r"config\.json does not exist"),
    "an empty config": ({"config.json": b""}, r"config\.json is empty; download it again"),
    "a broken config": (
        {"config.json": b'{\n"a": }'},
        r"config\.json is not valid JSON: Expecting value, line 2, column 6",
    ),
    "a config of a list": ({"config.json": b"[]"}, r"config\.json holds a JSON list; expected an object"),
    "a config of other bytes": ({"config.json": b'{"a":"\xff"}'}, r"config\.json is not UTF-8 text: byte 6 is invalid"),
    "a deep config": ({"config.json": b"[" * 200_000}, r"config\.json is not usable JSON: it nests too deeply"),
    "a config of digits": ({"config.json": b'{"a":' + b"9" * 5000 + b"}"}, r"config\.json is not usable JSON: Exceeds"),
    "a broken side file": (
        {"tokenizer_config.json": b"{", "model.safetensors": weights_file(["a"])},
        r"tokenizer_config\.json is not valid JSON",
    ),
    "no weights": ({}, r"has config\.json, but neither model\.safetensors nor model\.safetensors\.index\.json$"),
    "other weights": (
        {"pytorch_model.bin": b"x"},
        r"neither model\.safetensors nor .*; it holds pytorch_model\.bin, which Tandem does not open",
    ),
    "a pointer": (
        {"model.safetensors": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"},
        r"model\.safetensors is a Git LFS pointer.*git lfs pull",
    ),
    "a missing shard": ({**SHARDS, SHARD_B: None}, rf"lacks {SHARD_B} of 2 shards; download what is missing"),
    "a tensor that its shard lacks": (
        {**SHARDS, INDEX: index_file({"a": SHARD_A, "b": SHARD_B, "c": SHARD_B})},
        rf"index\.json places tensor 'c' in {SHARD_B}, which does not hold it",
    ),
    "a tensor in another shard": (
        {**SHARDS, INDEX: index_file({"a": SHARD_B, "b": SHARD_A})},
        rf"places tensor 'a' in {SHARD_B}, which does not hold it",
    ),
    "a tensor in two shards": (
        {**SHARDS, SHARD_B: weights_file(["b", "a"])},
        f"tensor 'a' is in both {SHARD_A} and {SHARD_B}",
    ),
    "a damaged shard": ({**SHARDS, SHARD_B: b"nonsense"}, rf"{SHARD_B} is not a safetensors file or is damaged"),
    "an index without a map": ({INDEX: {"metadata": {}}}, r"index\.json has no weight_map"),
    "an index of a list": ({INDEX: index_file([SHARD_A])}, r"index\.json has no weight_map"),
    "an index of numbers": (
        {INDEX: index_file({"a": 1})},
        r"places tensor 'a' in '1'; expected the name of a \.safetensors",
    ),
    "two names for one": (
        {"model.safetensors": weights_file(["language_model.model.norm.weight", "model.language_model.norm.weight"])},
        "'language_model.model.norm.weight' and 'model.language_model.norm.weight' are both 'model.norm.weight'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named(tmp_path: Path, case: str) -> None:
    files, message = BAD[case]
    with pytest.raises(ModelFileError, match=message) as caught:
        read_folder(model_folder(tmp_path, files))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    "shard", ["../secret.safetensors", "/etc/secret.safetensors", "a/b.safetensors", "..", "a\\b.safetensors", "x.bin"]
)
def test_an_index_cannot_point_outside_its_folder(tmp_path: Path, shard: str) -> None:
    inner = tmp_path / "model"
    inner.mkdir()
    (tmp_path / "secret.safetensors").write_bytes(weights_file(["a"]))
    model_folder(inner, {INDEX: index_file({"a": shard})})
    with pytest.raises(
        ModelFileError, match=r"places tensor 'a' in .*; expected the name of a \.safetensors file in the same"
    ):
        read_folder(inner)


def test_a_real_model_without_one_shard_says_which(tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(STORIES, copy, copy_function=lambda source, target: Path(target).symlink_to(source))
    (copy / "model-00003-of-00004.safetensors").unlink()
    with pytest.raises(ModelFileError, match=r"lacks model-00003-of-00004\.safetensors of 4 shards"):
        read_folder(copy)
