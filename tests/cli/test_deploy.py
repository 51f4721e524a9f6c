"""`tandem deploy` as it is typed: nothing is written unasked, and asking twice changes nothing."""

from __future__ import annotations

import os
import shlex
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import error_of, tandem

from tandem.cli import deploy
from tandem.config import read_configuration
from tandem.doctor.finding import Finding
from tandem.llm import BUNDLED_MODEL


@pytest.fixture
def model_in_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundled model may lie where a unit must not look for one, as in a virtual environment under /tmp."""
    monkeypatch.setattr("tandem.deploy.systemd._check_reachable", lambda path, of_others: None)


def test_it_writes_when_told_to_and_shows_differences(tmp_path: Path) -> None:
    arguments = ["deploy", "compose", BUNDLED_MODEL, "--output", tmp_path, "--context", 64, "--threads", 1]
    shown = tandem(*arguments)
    assert shown.exit_code == 0
    assert "context 64, up to 32 sequences" in shown.stdout
    assert "Nothing was written" in shown.stdout
    assert list(tmp_path.iterdir()) == []
    assert "Written." in tandem(*arguments, "--yes").stdout
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(files) == {"tandem.toml", "Containerfile", "compose.yaml"}
    again = tandem(*arguments, "--yes").stdout
    assert again.count("unchanged: ") == 3
    assert "Nothing to change." in again
    other = tandem(*arguments, "--max-sequences", 5)
    assert "-max_sequences = 32\n+max_sequences = 5\n" in other.stdout
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_the_unit_and_its_settings(tmp_path: Path, model_in_reach: None) -> None:
    """What the configuration and flags say goes into the service's own file."""
    config = tmp_path / "mine.toml"
    config.write_text("context = 64\nport = 9000\n")
    arguments = ["deploy", "systemd", BUNDLED_MODEL, "--name", "stories", "--user", "me", "--output", tmp_path]
    assert tandem(*arguments, "--config", config, "--threads", 1, "--yes").exit_code == 0
    unit, settings = tmp_path / "etc/systemd/system/stories.service", tmp_path / "etc/tandem/stories.toml"
    assert "--port 9000 --config /etc/tandem/stories.toml" in unit.read_text()
    found = read_configuration(settings, {}).values
    # A placement is written also where it was chosen: the unit lets the service reach its devices alone.
    assert found == {"placement": "cpu", "context": 64, "threads": 1, "max_sequences": 32}
    assert stat.S_IMODE(unit.stat().st_mode) == 0o644


def test_refusals(tmp_path: Path) -> None:
    compose = ["deploy", "compose", BUNDLED_MODEL, "--output", tmp_path]
    assert "names no service" in error_of(tandem(*compose, "--name", "Mine!"))
    assert "no file /nowhere/keys" in error_of(tandem(*compose, "--api-key-file", "/nowhere/keys"))
    assert "1.0 MiB may be used" in error_of(tandem(*compose, "--memory", "1MiB"))
    assert "no model at" in error_of(tandem("deploy", "systemd", tmp_path / "x.gguf"))
    (tmp_path / "Containerfile").mkdir()
    assert "Containerfile cannot be read" in tandem(*compose).stderr
    assert tandem("deploy", "docker", BUNDLED_MODEL).exit_code == 2


def test_a_machine_that_cannot_run_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Finding("cpu", "model", "problem", "no such CPU", "buy one")
    beside = Finding("gpu", "driver", "problem", "no such GPU", "buy one")
    monkeypatch.setattr("tandem.doctor.report.examine", lambda *_: [problem, beside])
    unit = tandem("deploy", "systemd", BUNDLED_MODEL, "--user", "me", "--output", tmp_path)
    assert "this machine cannot run the service: no such CPU (to mend it: buy one)" in error_of(unit)
    # An image may be for another machine.
    image = tandem("deploy", "container", BUNDLED_MODEL, "--output", tmp_path)
    assert image.exit_code == 0
    assert image.stderr.splitlines() == ["problem: no such CPU (to mend it: buy one)"]


def test_open_doors_are_told(tmp_path: Path) -> None:
    arguments = ["deploy", "container", BUNDLED_MODEL, "--output", tmp_path, "--host", "0.0.0.0"]
    assert "whoever reaches 0.0.0.0:8000 may use it" in tandem(*arguments).stderr
    keys = tmp_path / "keys"
    keys.write_text("# mine\nsecret\n")
    assert tandem(*arguments, "--api-key-file", keys).stderr == ""
    assert deploy._first_key(keys) == "secret"


@pytest.mark.slow
def test_the_units_command_starts_and_serves(tmp_path: Path, model_in_reach: None) -> None:
    """As systemd would run it, with the configuration where `--output` put it; then --check finds it in order."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["deploy", "systemd", BUNDLED_MODEL, "--port", port, "--threads", 1, "--max-sequences", 4]
    assert tandem(*arguments, "--user", "me", "--output", tmp_path, "--yes").exit_code == 0
    unit = (tmp_path / "etc/systemd/system/tandem.service").read_text()
    (line,) = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
    command = [
        str(tmp_path) + word if word.startswith("/etc/") else word
        for word in shlex.split(line.removeprefix("ExecStart="))
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(p).resolve()) for p in sys.path if p)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert "serves" in process.stderr.readline()
            deadline = time.monotonic() + 60
            while (checked := tandem(*arguments, "--check")).exit_code and time.monotonic() < deadline:
                time.sleep(0.5)
            assert checked.exit_code == 0, checked.stderr
            assert [line[:2] for line in checked.stdout.splitlines()] == ["ok"] * 3
        finally:
            process.terminate()
            process.stderr.close()
        assert process.wait(30) == 0


def test_a_service_that_is_not_there() -> None:
    refused = tandem("deploy", "systemd", BUNDLED_MODEL, "--check", "--port", 1)
    assert "http://127.0.0.1:1/health does not answer" in error_of(refused)
