"""Tiny models of every architecture against transformers in float32 (tests/golden/make_model_golden.py)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from devices.runner import Runner
from models.cases import CASES, Case
from models.tiny import weights, write_gguf, write_hf
from tandem.devices.base import Device
from tandem.devices.ref import RefDevice
from tandem.models.open import model_spec
from tandem.weights.open import open_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden"
TINY_STORIES = Path(__file__).parents[3] / "shared" / "data" / "models" / "TinyStories-656K"
STORIES = json.loads((GOLDEN / "tinystories_greedy.json").read_text())

# Relative L2 error over a prompt's logits. The issue asks for 1e-4; float32 against float32 does far better.
BOUND = 1e-5


@pytest.fixture(params=[RefDevice], ids=["ref"])
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    make: Callable[[], Device] = request.param
    device = make()
    yield device
    device.close()


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "model_logits.npz") as file:
        return dict(file)


def relative_error(logits: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(logits - expected) / np.linalg.norm(expected))


def check(path: Path, case: Case, device: Device, golden: dict[str, np.ndarray]) -> None:
    checkpoint = open_checkpoint(str(path))
    spec = model_spec(checkpoint)
    runner = Runner(spec, checkpoint, [(device, range(len(spec.blocks)))], rows=24, context=48, page_size=4)
    results = runner.forward(case.prompts, chunk=10, decode=6)
    for index, logits in enumerate(results):
        assert relative_error(logits, golden[f"{case.name}/{index}"]) < BOUND, f"prompt {index}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_hugging_face_folder(
    case: Case, device: Device, golden: dict[str, np.ndarray], tmp_path: Path
) -> None:
    check(write_hf(tmp_path / "model", case.config, weights(case)), case, device, golden)


@pytest.mark.parametrize("case", [case for case in CASES if case.gguf], ids=lambda case: case.name)
def test_gguf_file(case: Case, device: Device, golden: dict[str, np.ndarray], tmp_path: Path) -> None:
    check(write_gguf(tmp_path / "model.gguf", case.config, weights(case)), case, device, golden)


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story["text"])
def test_tinystories_greedy(story: dict[str, object], device: Device) -> None:
    """200 greedy tokens of a real model, identical to transformers."""
    checkpoint = open_checkpoint(str(TINY_STORIES))
    spec = model_spec(checkpoint)
    runner = Runner(spec, checkpoint, [(device, range(len(spec.blocks)))], context=256)
    tokens, _ = runner.greedy(story["prompt"], len(story["tokens"]))
    assert tokens == story["tokens"]
