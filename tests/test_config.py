"""Settings: which source wins, and what a mistake is told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from paths import REPO
from tandem import config
from tandem.config import OTHER_VARIABLES, SETTINGS, read_configuration
from tandem.errors import ConfigError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty machine: `etc.toml` stands for /etc/tandem/tandem.toml."""
    monkeypatch.setattr(config, "SYSTEM_FILE", tmp_path / "etc.toml")
    return tmp_path


def test_the_later_source_wins(home: Path) -> None:
    environment = {"HOME": str(home)}
    assert read_configuration(None, environment).values == {}
    (home / "etc.toml").write_text('context = 100\nthreads = 1\nplacement = "ref"\n')
    user = home / ".config/tandem/config.toml"
    user.parent.mkdir(parents=True)
    user.write_text("context = 200\nthreads = 2\n")
    found = read_configuration(None, environment | {"TANDEM_CONTEXT": "300"})
    assert found.values == {"context": 300, "threads": 2, "placement": "ref"}
    assert found.sources == {"context": "TANDEM_CONTEXT", "threads": str(user), "placement": str(home / "etc.toml")}
    assert list(found.files.values()) == [True, True]


def test_a_named_file_is_read_alone(home: Path) -> None:
    (home / "etc.toml").write_text("threads = 1\n")
    named = home / "service.toml"
    named.write_text("context = 100\n")
    for found in (read_configuration(named, {}), read_configuration(None, {"TANDEM_CONFIG": str(named)})):
        assert found.values == {"context": 100}
        assert found.files == {named: True}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('placment = "cpu"', "there is no setting 'placment'; did you mean placement?"),
        ("max-sequences = 3", "there is no setting 'max-sequences'; did you mean max_sequences?"),
        ("[engine]\ncontext = 3", "there is no setting 'engine'"),
        ('context = "many"', "context must be a whole number, 2 or more, not 'many'"),
        ("context = 1.5", "context must be a whole number, 2 or more, not 1.5"),
        ("context = true", "context must be a whole number, 2 or more, not True"),
        ("port = 70000", "port must be a whole number from 0 to 65535, not 70000"),
        ('kv_dtype = "q4"', "kv_dtype must be one of f16, q8_0, f32, not 'q4'"),
        ("kv_dtype = 4", "kv_dtype must be one of f16, q8_0, f32, not 4"),
        ("kv_dtype = [1]", "kv_dtype must be one of f16, q8_0, f32, not [1]"),
        ("request_timeout = 0.5", "request_timeout must be a number of seconds, 1 or more, not 0.5"),
        ("idle_unload = nan", "idle_unload must be a number of seconds, 1 or more, not nan"),
        ("deterministic = 1", "deterministic must be true or false, not 1"),
        ('placement = ""', "placement must be a text, not ''"),
        ("placement = cpu", "is not TOML"),
    ],
)
def test_a_mistake_in_a_file_is_named(home: Path, text: str, message: str) -> None:
    path = home / "c.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        read_configuration(path, {})
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)


def test_a_file_that_cannot_be_read(home: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml cannot be read: No such file"):
        read_configuration(home / "nowhere.toml", {})
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_configuration(home, {})
    (home / "latin.toml").write_bytes(b'host = "\xe9"')
    with pytest.raises(ConfigError, match="is not TOML"):
        read_configuration(home / "latin.toml", {})


def test_the_environment(home: Path) -> None:
    empty = home / "empty.toml"
    empty.touch()
    given = {"TANDEM_DETERMINISTIC": "no", "TANDEM_MEMORY": "8GiB", "TANDEM_PORT": "", "TANDEM_DEBUG": "1"}
    assert read_configuration(empty, given).values == {"deterministic": False, "memory": "8GiB"}
    # What an orchestrator sets for a service named tandem is not ours, what is nearly ours is a mistake.
    assert read_configuration(empty, {"TANDEM_SERVICE_HOST": "10.0.0.1"}).values == {}
    with pytest.raises(ConfigError, match="TANDEM_CONTEX is no setting; did you mean TANDEM_CONTEXT"):
        read_configuration(empty, {"TANDEM_CONTEX": "3"})
    with pytest.raises(ConfigError, match="TANDEM_PORT must be a whole number from 0 to 65535, not 'tcp://"):
        read_configuration(empty, {"TANDEM_PORT": "tcp://10.0.0.1:80"})


def test_every_variable_of_the_source_is_known() -> None:
    known = {*OTHER_VARIABLES, *(setting.variable for setting in SETTINGS.values())}
    sources = [path.read_text() for path in (REPO / "src").rglob("*.py")]
    assert {name for text in sources for name in re.findall(r'"(TANDEM_[A-Z_]+)"', text)} <= known


def test_names_are_one_rule() -> None:
    for name, setting in SETTINGS.items():
        assert setting.name == name
        assert setting.variable == f"TANDEM_{name.upper()}"
