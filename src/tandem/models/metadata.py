"""Typed reading of a checkpoint's metadata: a missing or absurd value is one clear sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tandem.errors import ModelFileError, UnsupportedModelError


class Metadata:
    """GGUF key-value pairs or a table of `config.json`; every error names the key and the file.

    values: the pairs. source: the file, for messages. prefix: put before each key when a value is
    looked up (GGUF's `llama.`). label: put before keys only in messages (`text_config.`). defaults: values of
    absent keys; JSON's null is no value, and no reason for the default.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        source: str,
        *,
        prefix: str = "",
        label: str = "",
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self._values = values
        self._source = source
        self._prefix = prefix
        self._label = label
        self._defaults = defaults or {}

    def __contains__(self, key: str) -> bool:
        return self.get(key) is not None

    def get(self, key: str) -> Any:
        """The value as it is, or the default of an absent key, or None."""
        return self._values.get(self._prefix + key, self._defaults.get(key))

    def integer(self, key: str, *, high: int, low: int = 1, default: int | None = None) -> int:
        """A whole number in [low, high]. GGUF's array with a value for each layer must repeat one value."""
        expected = f"a whole number from {low} to {high}"
        value = self._uniform(key, self.get(key))
        if value is None:
            value = default
        if value is None:
            raise self.missing(key, expected)
        if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
            raise self.invalid(key, value, expected)
        if not low <= value <= high:
            raise self.invalid(key, value, expected)
        return int(value)

    def number(self, key: str, *, low: float, high: float, default: float | None = None) -> float:
        """A finite number in [low, high]."""
        expected = f"a number from {low:g} to {high:g}"
        value = self.get(key)
        if value is None:
            value = default
        if value is None:
            raise self.missing(key, expected)
        if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.number):
            raise self.invalid(key, value, expected)
        if not low <= value <= high:
            raise self.invalid(key, value, expected)
        return float(value)

    def flag(self, key: str, *, default: bool = False) -> bool:
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool | np.bool_):
            raise self.invalid(key, value, "true or false")
        return bool(value)

    def text(self, key: str) -> str:
        value = self.get(key)
        if value is None:
            raise self.missing(key, "a name")
        if not isinstance(value, str):
            raise self.invalid(key, value, "a name")
        return value

    def items(self, key: str, length: int) -> list[Any]:
        """A list of exactly `length` values."""
        expected = f"a list of {length} values"
        value = self.get(key)
        if value is None:
            raise self.missing(key, expected)
        if not isinstance(value, list | tuple | np.ndarray) or len(value) != length:
            raise self.invalid(key, value, expected)
        return list(value)

    def table(self, key: str) -> Metadata | None:
        """A nested table, or None where it is absent."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.invalid(key, value, "a table of settings")
        return Metadata(value, self._source, label=f"{self._label}{key}.")

    def with_defaults(self, defaults: Mapping[str, Any]) -> Metadata:
        return Metadata(self._values, self._source, prefix=self._prefix, label=self._label, defaults=defaults)

    def missing(self, key: str, expected: str) -> ModelFileError:
        return ModelFileError(
            f"{self._source}: '{self.key_name(key)}' is missing from the metadata; expected {expected}"
        )

    def invalid(self, key: str, value: object, expected: str) -> ModelFileError:
        return ModelFileError(f"{self._source}: '{self.key_name(key)}' is {_shown(value)}; expected {expected}")

    def unsupported(self, key: str, value: object, supported: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"{self._source}: '{self.key_name(key)}' is {_shown(value)}, which Tandem does not support; {supported}"
        )

    def key_name(self, key: str) -> str:
        return f"{self._label}{self._prefix}{key}"

    def _uniform(self, key: str, value: Any) -> Any:
        if not isinstance(value, list | tuple | np.ndarray):
            return value
        if len(value) == 0:
            raise self.invalid(key, value, "at least one value")
        first = value[0]
        if any(other != first for other in value):
            raise self.unsupported(key, value, "it must be the same in every layer")
        return first


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
