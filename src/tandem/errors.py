"""Errors that a user may see. Each message names the thing, what was expected and what to do about it."""

from __future__ import annotations


class TandemError(Exception):
    """Base of every error that Tandem raises on purpose; commands print its message and exit with 2."""


class ModelFileError(TandemError):
    """A model file or folder cannot be read: absent, truncated, inconsistent or of an unknown format."""


class UnsupportedModelError(TandemError):
    """The file is well-formed but asks for something Tandem does not have: a type, an architecture, a tokenizer."""


class MemoryPlanError(TandemError):
    """The requested configuration does not fit the memory budget."""


class RequestError(TandemError):
    """A request is not acceptable: empty prompt, too long, contradictory sampling parameters."""


class DeviceError(TandemError):
    """A device is missing, refuses its work or was lost."""


class BenchError(TandemError):
    """A benchmark cannot run as asked: a trace that cannot be read, sizes that do not fit together, no matplotlib."""


class ConfigError(TandemError):
    """A configuration file or variable cannot be read, is unknown or has a value of the wrong kind."""


class DeployError(TandemError):
    """A service cannot be set up as asked, or a running one does not answer as it should."""


class ServerError(TandemError):
    """The server cannot start as asked: the address is taken, a key file cannot be read."""


class RecipeError(TandemError):
    """A model cannot be quantized as asked: no such type, a recipe that is none, a file in the way."""
