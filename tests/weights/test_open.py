"""Naming a model by path: what opens, and one sentence for everything that is not a model."""

import os
import stat
from pathlib import Path

import pytest

from paths import SHARED
from tandem.errors import ModelFileError
from tandem.weights.gguf_writer import write_gguf
from tandem.weights.open import open_checkpoint
from weights.builders import SHARD_A, SHARD_B, SHARDS, f32, model_folder, split_model, time_limit, weights_file

STORIES = SHARED / "models/tandem-stories-22m"
TINY = SHARED / "data/models/TinyStories-656K"


def test_a_folder_a_file_of_it_and_a_gguf_file_open() -> None:
    assert len(open_checkpoint(STORIES).tensors) == 80
    assert open_checkpoint(str(STORIES)).format == "safetensors"
    assert len(open_checkpoint(STORIES / "model-00002-of-00004.safetensors").tensors) == 80
    assert len(open_checkpoint(TINY / "model.safetensors").tensors) == 21
    assert open_checkpoint(TINY).format == "safetensors"
    assert open_checkpoint(TINY / "TinyStories-656K-Q8_0.gguf").format == "gguf"


def test_the_magic_counts_not_the_suffix(tmp_path: Path) -> None:
    write_gguf(tmp_path / "blob", {"a": 1}, [])
    assert open_checkpoint(tmp_path / "blob").metadata == {"a": 1}
    write_gguf(tmp_path / "odd.safetensors", {"a": 2}, [])
    assert open_checkpoint(tmp_path / "odd.safetensors").metadata == {"a": 2}


def test_a_home_path_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_gguf(tmp_path / "m.gguf", {}, [])
    assert open_checkpoint("~/m.gguf").path == tmp_path / "m.gguf"


def test_a_folder_with_one_gguf_model_opens(tmp_path: Path) -> None:
    write_gguf(tmp_path / "only.GGUF", {}, [f32("w", 2)])
    write_gguf(tmp_path / "mmproj-model-f16.gguf", {}, [f32("v", 2)])
    (tmp_path / "config.json").write_text("{}")
    assert list(open_checkpoint(tmp_path).tensors) == ["w"]


def test_a_folder_with_a_split_gguf_model_opens(tmp_path: Path) -> None:
    split_model(tmp_path)
    assert list(open_checkpoint(tmp_path).tensors) == ["a", "b", "c", "d"]


def test_a_shard_and_a_file_outside_the_index_open(tmp_path: Path) -> None:
    model_folder(tmp_path, {**SHARDS, "extra.safetensors": weights_file(["x"])})
    assert list(open_checkpoint(tmp_path / SHARD_B).tensors) == ["a", "b"]
    assert list(open_checkpoint(tmp_path / "extra.safetensors").tensors) == ["x"]


def refused(name: str | Path, message: str) -> None:
    with time_limit(5), pytest.raises(ModelFileError, match=message) as caught:
        open_checkpoint(name)
    assert str(caught.value).isprintable()


EXPECTED = "expected a .gguf file, a folder with config.json and model.safetensors or with one GGUF model, or hf:"


@pytest.mark.parametrize("name", ["gemma", "/no/such/file.gguf", "no/such/folder/", "owner/name", "a" * 100])
def test_nothing_there_says_what_was_expected(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(name, f"there is no model at '.*'; {EXPECTED}")


@pytest.mark.parametrize("name", ["", "a\0b"])
def test_impossible_names_are_refused(name: str) -> None:
    refused(name, f"is not a model's name; {EXPECTED}")


def test_an_unknown_user_and_an_endless_name_are_refused() -> None:
    refused("~no-such-user-here/model", "'~no-such-user-here/model' cannot be resolved")
    refused("x" * 5000, "'x{77}...' cannot be read: File name too long")


def test_files_that_are_no_models_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"")
    refused(path, "model.bin is empty; download it again")
    path.write_bytes(b"PK\x03\x04rest")
    refused(path, rf"model.bin is not a model file: it starts with b'PK\\x03\\x04'; {EXPECTED}")
    path = tmp_path / "model.gguf"
    path.write_bytes(b"<!doctype html>")
    refused(path, r"model.gguf is not a GGUF file: it starts with b'<!do', expected b'GGUF'")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    refused(path, "model.gguf is a Git LFS pointer")
    refused(path / "below", "there is no model at")


def test_special_files_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "pipe is not a regular file; expected a model file on disk")
    refused("/dev/zero", "/dev/zero is not a regular file")


def test_links_that_lead_nowhere_are_refused(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    refused(tmp_path / "dangling", "there is no model at")
    (tmp_path / "loop").symlink_to("loop")
    refused(tmp_path / "loop", "there is no model at|Too many levels")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_forbidden_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, {}, [])
    path.chmod(0)
    refused(path, "model.gguf cannot be read: permission denied")
    path.chmod(stat.S_IRUSR)
    tmp_path.chmod(0)
    try:
        refused(path, "cannot be read: permission denied")
        refused(tmp_path, "cannot be read: permission denied")
    finally:
        tmp_path.chmod(stat.S_IRWXU)


def test_folders_that_are_no_models_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, f"is not a model's folder: it is empty; {EXPECTED}")
    for number in range(7):
        (tmp_path / f"note{number}.txt").write_text("x")
    refused(tmp_path, r"is not a model's folder: it holds note0.txt, note1.txt, .*note4.txt, …; expected")
    (tmp_path / "model.safetensors").write_bytes(weights_file(["a"]))
    refused(tmp_path, r"holds model\.safetensors but no config\.json; copy it from where the model came from")
    refused(tmp_path / "model.safetensors", r"model\.safetensors has no config\.json beside it; copy it")


def test_several_gguf_models_are_listed(tmp_path: Path) -> None:
    split_model(tmp_path)
    write_gguf(tmp_path / "other.gguf", {}, [])
    refused(tmp_path, r"holds 2 GGUF models, name one of them: model-00001-of-00003\.gguf, other\.gguf")
    assert list(open_checkpoint(tmp_path / "other.gguf").tensors) == []


def test_a_folder_with_only_a_projector_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "mmproj.gguf", {}, [])
    refused(tmp_path, r"holds only vision projectors \(mmproj\.gguf\); expected a model")


def test_a_missing_shard_is_named_when_another_is_opened(tmp_path: Path) -> None:
    model_folder(tmp_path, {**SHARDS, SHARD_A: None})
    refused(tmp_path / SHARD_B, f"lacks {SHARD_A} of 2 shards")
