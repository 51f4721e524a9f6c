"""A configuration's values are the defaults of flags; `tandem config` says where each came from."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from commands import error_of, tandem

from tandem.cli.app import app
from tandem.config import SETTINGS
from tandem.llm import BUNDLED_MODEL

# What is no flag of these.
ELSEWHERE = {"models"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tandem.toml"
    path.write_text('placement = "ref"\ncontext = 64\nmemory = "512MiB"\ndeterministic = false\n')
    return path


def test_flags_come_over_the_environment_over_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def context(*arguments: object) -> int:
        return int(json.loads(tandem("plan-memory", "--json", "--config", file, *arguments).stdout)["context"])

    assert context() == 64
    monkeypatch.setenv("TANDEM_CONTEXT", "128")
    assert context() == 128
    assert context("--context", 256) == 256
    assert tandem("plan-memory", "--config", file).stdout.count("on ref") == 2


def test_the_command_line_names_another_model(tmp_path: Path) -> None:
    file = tmp_path / "tandem.toml"
    file.write_text('model = "/nowhere/model.gguf"\n')
    for command in (["plan-memory"], ["inspect"], ["run", "x"]):
        assert "/nowhere/model.gguf" in error_of(tandem(*command, "--config", file))
        assert tandem(*command[:1], "--config", file, "-m", BUNDLED_MODEL, "--context", 32, *command[1:]).exit_code == 0
    # `serve` takes several models: the setting is one of them, whole.
    assert "no model at /nowhere/model.gguf;" in error_of(tandem("serve", "--config", file))
    assert tandem("plan-memory", BUNDLED_MODEL, "--config", file).exit_code == 0
    both = tandem("plan-memory", BUNDLED_MODEL, "-m", BUNDLED_MODEL, "--config", file)
    assert "give the model once" in error_of(both)


def test_a_mistake_ends_the_command(tmp_path: Path) -> None:
    file = tmp_path / "tandem.toml"
    file.write_text('placment = "cpu"\n')
    for command in (["run", "x"], ["chat"], ["inspect"], ["plan-memory"], ["config"]):
        assert error_of(tandem(*command, "--config", file)).endswith("'placment'; did you mean placement?")


def test_it_explains(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_KV_DTYPE", "q8_0")
    shown = tandem("config", "--explain", "--config", file).stdout
    assert f'placement = "ref"  # from {file}' in shown
    assert 'kv_dtype = "q8_0"  # from TANDEM_KV_DTYPE' in shown
    assert "# threads: all cores (default)" in shown
    values = {"placement": "ref", "context": 64, "memory": "512MiB", "deterministic": False, "kv_dtype": "q8_0"}
    # What it prints is a file that says the same.
    assert tomllib.loads(shown) == tomllib.loads(tandem("config", "--config", file).stdout) == values
    explained = json.loads(tandem("config", "--json", "--config", file).stdout)
    assert explained["files"] == [{"path": str(file), "found": True}]
    assert {
        name: each["value"] for name, each in explained["settings"].items() if each["source"] != "default"
    } == values


def test_every_setting_is_a_flag() -> None:
    import typer.main

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    flags = {parameter.name for name in ("run", "serve") for parameter in commands[name].params}
    assert set(SETTINGS) - flags == ELSEWHERE
