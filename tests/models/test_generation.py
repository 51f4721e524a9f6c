"""Sampling parameters that a model's files ask for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paths import SHARED
from tandem.errors import ModelFileError
from tandem.models.generation import sampling_defaults
from tandem.weights.checkpoint import Checkpoint
from tandem.weights.open import open_checkpoint

WANTED = {"temperature": 0.7, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.1, "top_k": 20}


def test_from_generation_config() -> None:
    config = {**WANTED, "do_sample": True, "max_length": 20}
    checkpoint = Checkpoint(Path("model"), "safetensors", {}, {}, files={"generation_config.json": config})
    assert sampling_defaults(checkpoint) == WANTED


def test_from_gguf_as_decimals() -> None:
    names = {"temp": 0.7, "top_p": 0.95, "min_p": 0.05, "penalty_repeat": 1.1}
    metadata = {f"general.sampling.{name}": np.float32(value) for name, value in names.items()}
    metadata["general.sampling.top_k"] = np.int32(20)
    assert sampling_defaults(Checkpoint(Path("model.gguf"), "gguf", metadata, {})) == WANTED


def test_absent_and_null_values_are_left_to_the_sampler() -> None:
    assert sampling_defaults(Checkpoint(Path("model.gguf"), "gguf", {}, {})) == {}
    config = {"temperature": None, "top_k": None}
    checkpoint = Checkpoint(Path("model"), "safetensors", {}, {}, files={"generation_config.json": config})
    assert sampling_defaults(checkpoint) == {}


@pytest.mark.parametrize(("key", "value"), [("temperature", -1), ("top_p", 1.5), ("top_k", 2.5), ("min_p", "x")])
def test_absurd_values_are_refused_by_name(key: str, value: object) -> None:
    checkpoint = Checkpoint(Path("model"), "safetensors", {}, {}, files={"generation_config.json": {key: value}})
    with pytest.raises(ModelFileError, match=f"generation_config.json: '{key}' is"):
        sampling_defaults(checkpoint)


def test_the_story_model() -> None:
    assert sampling_defaults(open_checkpoint(SHARED / "models/tandem-stories-22m")) == {"temperature": 0.6, "top_k": 40}
