"""A model's files, opened: metadata, tensors by name, and nothing interpreted yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tandem.weights.tensor import Tensor


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a GGUF file (or its split parts) or a Hugging Face folder holds.

    path: the file or folder. format: where names and metadata follow that world's conventions.
    metadata: GGUF key-value pairs (arrays as lists or numpy arrays), or `config.json` as it is.
    tensors: by the file's own names, mapped into memory. skipped: tensors left out on purpose, with the reason.
    files: JSON side files of a Hugging Face folder by name (`generation_config.json`, `tokenizer_config.json`, …).
    """

    path: Path
    format: Literal["gguf", "safetensors"]
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    skipped: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Any] = field(default_factory=dict)
