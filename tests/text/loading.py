"""The real tokenizers that tests share, each loaded once."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from paths import SHARED
from tandem.text.from_gguf import tokenizer_from_gguf
from tandem.text.from_json import tokenizer_from_json
from tandem.text.tokenizer import Tokenizer
from tandem.weights.gguf import read_gguf

BUNDLED = SHARED / "models/tandem-stories-22m"
TINY_STORIES = SHARED / "data/models/TinyStories-656K"


def metadata(name: str) -> dict[str, Any]:
    """The metadata of a vocabulary file, in a dictionary of its own."""
    return dict(read_gguf(SHARED / f"data/vocab/ggml-vocab-{name}.gguf").metadata)


@cache
def from_vocabulary(name: str) -> Tokenizer:
    return tokenizer_from_gguf(metadata(name))


def _json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text("utf-8"))


@cache
def from_folder(folder: Path) -> Tokenizer:
    return tokenizer_from_json(
        folder,
        tokenizer_config=_json(folder / "tokenizer_config.json"),
        generation_config=_json(folder / "generation_config.json"),
        config=_json(folder / "config.json"),
    )


@cache
def tiny_stories_gguf() -> Tokenizer:
    return tokenizer_from_gguf(read_gguf(TINY_STORIES / "TinyStories-656K-Q8_0.gguf").metadata)


REAL = (
    *("gpt-2", "llama-spm", "phi-3", "qwen2", "llama-bpe", "gemma-4"),
    *("bundled", "tinystories", "tinystories gguf"),
)


def real(name: str) -> Tokenizer:
    """Any of the real tokenizers by its name in REAL."""
    if name == "tinystories gguf":
        return tiny_stories_gguf()
    folder = {"bundled": BUNDLED, "tinystories": TINY_STORIES}.get(name)
    return from_folder(folder) if folder else from_vocabulary(name)
