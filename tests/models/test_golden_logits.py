"""Tiny models of every architecture against transformers in float32 (tests/golden/make_model_golden.py)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.runner import Runner
from models.cases import CASES, Case
from models.tiny import weights, write_gguf, write_hf
from paths import SHARED
from tandem.devices.base import Device
from tandem.devices.cpu import CpuDevice
from tandem.devices.ref import RefDevice
from tandem.models.open import model_spec
from tandem.weights.open import open_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden"
TINY_STORIES = SHARED / "data" / "models" / "TinyStories-656K"
STORIES = json.loads((GOLDEN / "tinystories_greedy.json").read_text())

# Relative L2 error over a prompt's logits. The issue asks for 1e-4; float32 against float32 does far better.
BOUND = 1e-5
# The reference takes any; small pages put more of them behind the windows.
PAGE_SIZES = {"ref": 4, "cpu": 16}


@pytest.fixture(params=[RefDevice, CpuDevice], ids=["ref", "cpu"])
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
    runner = Runner(
        spec,
        checkpoint,
        [(device, range(len(spec.blocks)))],
        rows=24,
        context=48,
        page_size=PAGE_SIZES[device.info.kind],
    )
    results = runner.forward(case.prompts, chunk=10, decode=6)
    for index, logits in enumerate(results):
        assert relative_error(logits, golden[f"{case.name}/{index}"]) < BOUND, f"prompt {index}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_hugging_face_folder(case: Case, device: Device, golden: dict[str, np.ndarray], tmp_path: Path) -> None:
    check(write_hf(tmp_path / "model", case.config, weights(case)), case, device, golden)


@pytest.mark.parametrize("case", [case for case in CASES if case.gguf], ids=lambda case: case.name)
def test_gguf_file(case: Case, device: Device, golden: dict[str, np.ndarray], tmp_path: Path) -> None:
    check(write_gguf(tmp_path / "model.gguf", case.config, weights(case)), case, device, golden)


@pytest.mark.parametrize("place", ["language_model.model.", "model.language_model."])
def test_multimodal_folder(place: str, device: Device, golden: dict[str, np.ndarray], tmp_path: Path) -> None:
    """The text part of Gemma 3's multimodal checkpoints, as transformers 4 and 5 place it."""
    (case,) = (case for case in CASES if case.name == "gemma3-older-config")
    tensors = {name.replace("model.", place, 1): values for name, values in weights(case).items()}
    vision = place.replace("language_model.model.", "").replace("language_model.", "") + "vision_tower.patch.weight"
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": {key: value for key, value in case.config.items() if key != "architectures"},
        "vision_config": {"hidden_size": 8},
    }
    folder = write_hf(tmp_path / "model", config, {vision: np.ones((8, 8), np.float32), **tensors})
    assert vision in open_checkpoint(str(folder)).skipped
    check(folder, case, device, golden)


def tiny_stories(path: Path, device: Device) -> Runner:
    checkpoint = open_checkpoint(str(path))
    spec = model_spec(checkpoint)
    return Runner(spec, checkpoint, [(device, range(len(spec.blocks)))], context=256)


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story["text"])
def test_tinystories_greedy(story: dict[str, Any], device: Device) -> None:
    """200 greedy tokens of a real model, identical to transformers."""
    tokens, _ = tiny_stories(TINY_STORIES, device).greedy(story["prompt"], len(story["tokens"]))
    assert tokens == story["tokens"]


# From the Q8_0 file greedy text differs first at this token, because the float32 margin between the two best logits is
# smaller there than what rounding moves them by. The reference rounds the weights only: margins 0.048, 0.022 and 0.012,
# logits move by 0.22, 0.16 and 0.10. The CPU rounds activations too: 0.048, 0.022 and 0.074, and 0.34, 0.25 and 0.19.
Q8_0_FIRST_DIFFERENCES = {
    "Once upon a time": {"ref": 5, "cpu": 5},
    "One day, a little girl named Lucy": {"ref": 1, "cpu": 1},
    "The dog": {"ref": 149, "cpu": 16},
}


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story["text"])
def test_tinystories_greedy_q8_0(story: dict[str, Any], device: Device) -> None:
    """The Q8_0 file agrees with transformers wherever its rounding leaves the best token best."""
    first = Q8_0_FIRST_DIFFERENCES[story["text"]][device.info.kind]
    tokens, _ = tiny_stories(TINY_STORIES / "TinyStories-656K-Q8_0.gguf", device).greedy(story["prompt"], first + 1)
    assert tokens[:first] == story["tokens"][:first] and tokens[first] != story["tokens"][first]
    path = [*story["prompt"], *story["tokens"][:-1]]
    generated = slice(len(story["prompt"]) - 1, None)
    exact, rounded = (
        tiny_stories(file, device).forward([path])[0][generated]
        for file in (TINY_STORIES, TINY_STORIES / "TinyStories-656K-Q8_0.gguf")
    )
    second, best = np.partition(exact, -2, axis=-1)[:, -2:].T
    moved = np.abs(exact - rounded).max(axis=-1)
    disagree = exact.argmax(axis=-1) != rounded.argmax(axis=-1)
    assert np.flatnonzero(disagree)[0] == first
    assert np.all((best - second)[disagree] < 2 * moved[disagree])
    assert relative_error(rounded, exact) < 0.02
