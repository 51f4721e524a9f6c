"""Tandem: a local LLM inference engine. `LLM` and `SamplingParams` are the offline API."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if sys.platform != "linux":
    raise ImportError(f"Tandem runs on Linux on x86-64 only, and this is {sys.platform}; on Windows, use WSL 2")

if TYPE_CHECKING:
    from tandem.engine.sampling_params import SamplingParams as SamplingParams
    from tandem.errors import TandemError as TandemError
    from tandem.llm import LLM as LLM
    from tandem.text.grammar import Grammar as Grammar

_HOMES = {
    "LLM": "tandem.llm",
    "Grammar": "tandem.text.grammar",
    "SamplingParams": "tandem.engine.sampling_params",
    "TandemError": "tandem.errors",
}
__all__ = ["LLM", "Grammar", "SamplingParams", "TandemError"]


def __getattr__(name: str) -> Any:
    """Loads the API on first use, so that `tandem --help` need not."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tandem' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
