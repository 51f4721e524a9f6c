"""The flags that several commands share, each group a dataclass: one field is one flag.

A command takes a whole group as one parameter; `flags` spreads it into the signature that typer reads.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from tandem.errors import TandemError

if TYPE_CHECKING:
    from tandem.engine.sampling_params import SamplingParams
    from tandem.llm import LLM

MODEL_HELP = "A GGUF file, a Hugging Face folder, or hf:owner/name[/file]. Default: the bundled story model."
