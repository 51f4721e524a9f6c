"""What models this machine has, and what goes with one that is removed; the cache is laid out by huggingface_hub."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from huggingface_hub import constants, scan_cache_dir

from tandem.errors import ModelFileError
from tandem.weights.library import find_model, list_models, remove_model


class Cache:
    """A folder as huggingface_hub keeps it: blobs, and revisions of links to them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, repository: str, files: dict[str, str], revision: str = "f" * 40) -> None:
        root = self.folder / f"models--{repository.replace('/', '--')}"
        for name, content in files.items():
            blob = root / "blobs" / f"{abs(hash(content)):x}"
            blob.parent.mkdir(parents=True, exist_ok=True)
            blob.write_text(content)
            link = root / "snapshots" / revision / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
        (root / "refs").mkdir(exist_ok=True)
        (root / "refs" / "main").write_text(revision)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.utils._cache_manager.HF_HUB_CACHE", str(folder))
    return Cache(folder)


def names(folder: Path) -> list[str]:
    return [model.name for model in list_models(folder)]


def test_what_there_is(cache: Cache, tmp_path: Path) -> None:
    own = tmp_path / "models"
    assert list_models(own) == []
    cache.add("a/tensors", {"config.json": "{}", "model.safetensors": "12345", "tokenizer.json": "{ }"})
    cache.add("b/one", {"one.gguf": "1" * 100, "mmproj-one.gguf": "2", "README.md": "3"})
    parts = {f"q8-0000{i}-of-00002.gguf": str(i) * 10 for i in (1, 2)}
    cache.add("c/many", {"q4/q4.gguf": "44", **parts})
    cache.add("d/none", {"README.md": "no model"})
    (own / "folder").mkdir(parents=True)
    for name in ("z.gguf", "notes.txt", "folder/config.json", "folder/model.safetensors"):
        (own / name).write_text("1234567")
    models = {model.name: model for model in list_models(own)}
    assert {name: (model.format, model.bytes) for name, model in models.items()} == {
        "hf:a/tensors": ("safetensors", 10),
        "hf:b/one": ("GGUF", 100),
        "hf:c/many/q4/q4.gguf": ("GGUF", 2),
        "hf:c/many/q8-00001-of-00002.gguf": ("GGUF", 20),
        str(own / "folder"): ("safetensors", 14),
        str(own / "z.gguf"): ("GGUF", 7),
    }
    assert all(model.last_used > 0 for model in models.values())


def test_a_model_goes_and_the_others_stay(cache: Cache, tmp_path: Path) -> None:
    cache.add("c/many", {"q4.gguf": "44", "same.gguf": "44", "q8.gguf": "8" * 10, "README.md": "old"}, "0" * 40)
    cache.add("c/many", {"q4.gguf": "44", "same.gguf": "44", "q8.gguf": "8" * 10, "README.md": "new"}, "f" * 40)
    cache.add("b/one", {"one.gguf": "1"})
    assert remove_model(find_model("hf:c/many/q8.gguf", tmp_path)) == 10
    assert names(tmp_path) == ["hf:b/one", "hf:c/many/q4.gguf", "hf:c/many/same.gguf"]
    # What two names share stays for the other one.
    remove_model(find_model("c/many/q4.gguf", tmp_path))
    assert names(tmp_path) == ["hf:b/one", "hf:c/many"]
    assert (cache.folder / "models--c--many/snapshots" / ("f" * 40) / "same.gguf").read_text() == "44"
    assert scan_cache_dir(cache.folder).warnings == []
    remove_model(find_model("hf:c/many", tmp_path))
    remove_model(find_model("hf:b/one", tmp_path))
    assert names(tmp_path) == []
    assert not (cache.folder / "models--c--many").exists()


def test_own_files(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a-00001-of-00002.gguf", "a-00002-of-00002.gguf", "b.gguf"):
        (tmp_path / name).write_text("x")
    (tmp_path / "hf").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "hf" / name).write_text("x")
    assert remove_model(find_model(str(tmp_path / "a-00001-of-00002.gguf"), tmp_path)) == 2
    monkeypatch.chdir(tmp_path)
    remove_model(find_model("hf", tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["b.gguf"]


def test_what_is_not_there(cache: Cache, tmp_path: Path) -> None:
    cache.add("c/many", {"q4.gguf": "44", "q8.gguf": "888"})
    with pytest.raises(ModelFileError, match=r"has 2 models here.*hf:c/many/q4\.gguf, hf:c/many/q8\.gguf"):
        find_model("hf:c/many", tmp_path)
    for name in ("hf:a/b", "/etc/passwd", "", "."):
        with pytest.raises(ModelFileError, match="is not a model of this machine"):
            find_model(name, tmp_path)


def test_what_cannot_be_deleted(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b.gguf").write_text("x")
    model = find_model(str(tmp_path / "b.gguf"), tmp_path)

    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(ModelFileError, match=r"b\.gguf cannot be deleted: Permission denied"):
        remove_model(model)
