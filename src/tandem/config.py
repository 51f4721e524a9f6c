"""Settings that outlive a command line: a TOML file, and the environment over it.

A setting has one name everywhere: `max_sequences` in the file, `TANDEM_MAX_SEQUENCES` in the environment,
`--max-sequences` as a flag. The later of these wins: the default, /etc/tandem/tandem.toml,
~/.config/tandem/config.toml, the environment, the flag. A file that is named (`--config`, or `TANDEM_CONFIG`) is read
instead of the other two, so that a service does not change with somebody's home.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tandem.errors import ConfigError

SYSTEM_FILE = Path("/etc/tandem/tandem.toml")
PREFIX = "TANDEM_"
FILE_VARIABLE = "TANDEM_CONFIG"
# What else Tandem reads from the environment: switches of one run, not settings.
OTHER_VARIABLES = frozenset(
    {
        *(FILE_VARIABLE, "TANDEM_API_KEY", "TANDEM_CPU_ISA", "TANDEM_DEBUG", "TANDEM_DEVICES"),
        *("TANDEM_VULKAN_VALIDATION", "TANDEM_VULKAN_TUNE"),
    }
)

Value = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Setting:
    """read: a file's value, or the environment's text, as what the flag takes; ValueError says what it expected.

    default: what holds without it, in words where the model or the machine decides.
    """

    name: str
    read: Callable[[Any], Value]
    default: str
    help: str

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("a text")
    return value


def _size(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str) or not str(value):
        raise ValueError("a memory size such as '8GiB', or 'auto'")
    return str(value)


def _whole(low: int, high: int | None = None) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        expected = f"a whole number, {low} or more" if high is None else f"a whole number from {low} to {high}"
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError(expected)
        try:
            number = int(value)
        except ValueError:
            raise ValueError(expected) from None
        if number < low or (high is not None and number > high):
            raise ValueError(expected)
        return number

    return read


def _seconds(low: float) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        expected = f"a number of seconds, {low:g} or more"
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError(expected)
        try:
            seconds = float(value)
        except ValueError:
            raise ValueError(expected) from None
        if not low <= seconds < float("inf"):
            raise ValueError(expected)
        return seconds

    return read


def _switch(value: Any) -> bool:
    words = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise ValueError("true or false")


def _one_of(*choices: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return str(value)

    return read


SETTINGS: Mapping[str, Setting] = {
    setting.name: setting
    for setting in (
        Setting("model", _text, "the bundled one", "A GGUF file, a Hugging Face folder, or hf:owner/name."),
        Setting("placement", _text, "auto", "auto, a device, or several such as attn=DEVICE,ffn=DEVICE,m=2."),
        Setting("threads", _whole(1), "all cores", "CPU threads."),
        Setting("memory", _size, "what is needed", "All that may be used, like 8GiB; auto: what is free."),
        Setting("context", _whole(2), "the model's, or what fits", "Positions of one sequence."),
        Setting("kv_dtype", _one_of("f16", "q8_0", "f32"), "f16", "Type of the KV cache."),
        Setting("deterministic", _switch, "true", "On Vulkan: the batch does not show in results."),
        Setting("max_sequences", _whole(1, 4096), "32", "How many sequences the server runs at once."),
        Setting("host", _text, "127.0.0.1", "The address that the server listens on."),
        Setting("port", _whole(0, 65535), "8000", "The port that the server listens on."),
        Setting("api_key_file", _text, "none", "A file with the keys that the server accepts."),
        Setting("memory_budget", _size, "what is free", "Of all models that the server has loaded, like 16GiB."),
        Setting("max_queue", _whole(0), "256", "Samples that may wait for each model of the server."),
        Setting("request_timeout", _seconds(1), "600", "Seconds that a request to the server may take."),
        Setting("drain_timeout", _seconds(0), "30", "Seconds that running requests get when the server ends."),
        Setting("idle_unload", _seconds(1), "never", "Seconds after which the server unloads an unused model."),
        Setting("log_level", _one_of("debug", "info", "warning", "error"), "info", "Of the server's log."),
        Setting("models", _text, "~/.local/share/tandem/models", "The folder whose models `tandem list` shows."),
    )
}


@dataclass(frozen=True, slots=True)
class Configuration:
    """What files and environment say. sources: for each name in `values`, where it was said.

    files: the files that were looked for, and whether each is there.
    """

    values: Mapping[str, Value]
    sources: Mapping[str, str]
    files: Mapping[Path, bool]


def user_file(environment: Mapping[str, str]) -> Path:
    folder = environment.get("XDG_CONFIG_HOME") or Path(environment.get("HOME") or Path.home()) / ".config"
    return Path(folder) / "tandem" / "config.toml"


def models_folder(configuration: Configuration) -> Path:
    """Where one's own model files are looked for; it need not be there."""
    return Path(str(configuration.values.get("models", SETTINGS["models"].default))).expanduser()


def read_configuration(file: Path | None = None, environment: Mapping[str, str] | None = None) -> Configuration:
    """`file`: the one that the command line names. ConfigError names the file or variable, and what is wrong."""
    if environment is None:
        environment = os.environ
    named = file or (Path(environment[FILE_VARIABLE]) if environment.get(FILE_VARIABLE) else None)
    files: dict[Path, bool] = {}
    values: dict[str, Value] = {}
    sources: dict[str, str] = {}
    for path in [SYSTEM_FILE, user_file(environment)] if named is None else [named]:
        found = _read_file(path, must_exist=named is not None)
        files[path] = found is not None
        values |= found or {}
        sources |= dict.fromkeys(found or {}, str(path))
    found = _read_environment(environment)
    values |= found
    sources |= {name: SETTINGS[name].variable for name in found}
    return Configuration(values, sources, files)


def _read_file(path: Path, *, must_exist: bool) -> dict[str, Value] | None:
    try:
        table = tomllib.loads(path.read_bytes().decode())
    except (FileNotFoundError, NotADirectoryError) as error:
        if must_exist:
            raise ConfigError(f"the configuration file {path} cannot be read: {error.strerror}") from None
        return None
    except OSError as error:
        raise ConfigError(f"the configuration file {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    for name in table:
        if name not in SETTINGS:
            raise ConfigError(f"{path}: there is no setting {name!r}{_nearest(name)}")
    return {name: _read(SETTINGS[name], value, f"{path}: {name}") for name, value in table.items()}


def _read_environment(environment: Mapping[str, str]) -> dict[str, Value]:
    """Others set variables with our prefix, too (an orchestrator for a service named tandem): only what is nearly one
    of our names is taken for a mistake.
    """
    values = {}
    for variable, value in environment.items():
        name = variable.removeprefix(PREFIX).lower()
        if not variable.startswith(PREFIX) or variable in OTHER_VARIABLES:
            continue
        if name in SETTINGS:
            if value:
                values[name] = _read(SETTINGS[name], value, variable)
        elif difflib.get_close_matches(name, SETTINGS, 1, 0.8):
            raise ConfigError(f"the environment's {variable} is no setting{_nearest(name, PREFIX)}")
    return values


def _read(setting: Setting, value: Any, where: str) -> Value:
    try:
        return setting.read(value)
    except ValueError as error:
        raise ConfigError(f"{where} must be {error}, not {value!r:.80}") from None


def _nearest(name: str, prefix: str = "") -> str:
    near = difflib.get_close_matches(name.lower().replace("-", "_"), SETTINGS, 1, 0.5)
    if near:
        return f"; did you mean {prefix}{near[0].upper() if prefix else near[0]}?"
    return f"; there are {', '.join(SETTINGS)}"
