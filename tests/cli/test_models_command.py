"""`tandem list`, `pull` and `rm` as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import error_of, tandem

from tandem.errors import ModelFileError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the setting `models` names, and an empty cache."""
    monkeypatch.setenv("TANDEM_MODELS", str(tmp_path))
    monkeypatch.setattr("tandem.weights.library._repositories", list)
    return tmp_path


def test_list(folder: Path) -> None:
    assert "No model in Hugging Face's cache" in tandem("list").stdout
    (folder / "a.gguf").write_bytes(bytes(2048))
    (line, total) = tandem("list").stdout.splitlines()
    assert line.split()[:4] == [str(folder / "a.gguf"), "GGUF", "2.0", "KiB"]
    assert total.split() == ["all", "2.0", "KiB"]
    shown = json.loads(tandem("list", "--json").stdout)
    assert shown["folder"] == str(folder)
    assert [(model["name"], model["bytes"]) for model in shown["models"]] == [(str(folder / "a.gguf"), 2048)]


def test_rm_asks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = folder / "a.gguf"
    model.write_bytes(b"x")
    assert "nobody is there to ask" in error_of(tandem("rm", model))
    monkeypatch.setattr("tandem.cli.models._asked", lambda: True)
    for answer in ("n\n", "\n", "maybe\n"):
        assert tandem("rm", model, stdin=answer).stdout.endswith("Kept.\n")
    assert model.exists()
    assert f"Deleted {model}: 1 B freed." in tandem("rm", model, stdin="y\n").stdout
    assert not model.exists()
    model.write_bytes(b"x")
    assert tandem("rm", model, "--yes").exit_code == 0
    assert "is not a model of this machine" in error_of(tandem("rm", model, "--yes"))


def test_pull(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(name: str) -> Path:
        asked.append(name)
        if name == "hf:far/away":
            raise ModelFileError("far/away is not in the cache and the hub does not answer")
        return Path("/cache/model.gguf")

    monkeypatch.setattr("tandem.weights.hub.fetch", fetch)
    for name in ("hf:a/b", "a/b"):
        assert tandem("pull", name).stdout == "/cache/model.gguf\n"
    assert asked == ["hf:a/b", "hf:a/b"]
    assert "the hub does not answer" in error_of(tandem("pull", "hf:far/away"))
    (folder / "a.gguf").touch()
    assert "is here already" in error_of(tandem("pull", folder / "a.gguf"))
