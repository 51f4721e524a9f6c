"""One model over several devices: hand-over, mixed placements and slices give what one device gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from devices.runner import Placement, Runner, Slices
from models.cases import Case, config
from models.tiny import weights, write_hf
from tandem.devices.base import Device
from tandem.devices.ref import RefDevice
from tandem.models.open import model_spec
from tandem.models.spec import ModelSpec
from tandem.weights.checkpoint import Checkpoint
from tandem.weights.open import open_checkpoint

GEMMA = Case(
    "gemma3",
    config(
        "gemma3_text",
        num_hidden_layers=3,
        hidden_size=64,
        intermediate_size=96,
        sliding_window=6,
        sliding_window_pattern=2,
        query_pre_attn_scalar=12,
    ),
    seed=31,
)
LLAMA = Case(
    "llama",
    config("llama", num_hidden_layers=3, hidden_size=64, intermediate_size=96, attention_bias=True),
    seed=32,
)


@pytest.fixture(params=[GEMMA, LLAMA], ids=lambda case: case.name)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ModelSpec, Checkpoint, Case]:
    case: Case = request.param
    checkpoint = open_checkpoint(str(write_hf(tmp_path / "model", case.config, weights(case))))
    return model_spec(checkpoint), checkpoint, case


@pytest.fixture
def devices() -> Iterator[tuple[Device, Device]]:
    pair = RefDevice("ref:0"), RefDevice("ref:1")
    yield pair
    for device in pair:
        device.close()


def logits(
    model: tuple[ModelSpec, Checkpoint, Case], placement: Placement, slices: Slices | None = None, chunk: int = 7
) -> np.ndarray:
    spec, checkpoint, case = model
    runner = Runner(spec, checkpoint, placement, slices=slices, rows=16, context=48, page_size=4)
    return np.concatenate(runner.forward(case.prompts, chunk=chunk, decode=3))


def placements(blocks: int, a: Device, b: Device) -> dict[str, list[tuple[Device, range]]]:
    turns = [(a if index % 2 else b, range(index, index + 1)) for index in range(blocks)]
    return {
        "layers": [(a, range(3)), (b, range(3, blocks))],
        "attention and FFN apart": turns,
    }


@pytest.mark.parametrize("name", ["layers", "attention and FFN apart"])
def test_hand_over_changes_nothing(
    model: tuple[ModelSpec, Checkpoint, Case], devices: tuple[Device, Device], name: str
) -> None:
    blocks = len(model[0].blocks)
    alone = logits(model, [(devices[0], range(blocks))])
    assert np.array_equal(logits(model, placements(blocks, *devices)[name]), alone)


def test_slices_of_ffn_and_attention(model: tuple[ModelSpec, Checkpoint, Case], devices: tuple[Device, Device]) -> None:
    a, b = devices
    whole = [(a, range(len(model[0].blocks)))]
    slices: Slices = {
        1: [(a, 0, 1), (b, 1, 2)],
        2: [(b, 0, 32), (a, 32, 40), (b, 40, 96)],
        3: [(b, 0, 2)],
        6: [(a, 0, 90), (b, 90, 96)],
    }
    alone, shared = logits(model, whole), logits(model, whole, slices)
    assert np.linalg.norm(shared - alone) / np.linalg.norm(alone) < 2e-6


def test_chunks_of_any_size(model: tuple[ModelSpec, Checkpoint, Case], devices: tuple[Device, Device]) -> None:
    whole = [(devices[0], range(len(model[0].blocks)))]
    alone = logits(model, whole, chunk=1)
    for chunk in (2, 5, 16):
        assert np.linalg.norm(logits(model, whole, chunk=chunk) - alone) / np.linalg.norm(alone) < 2e-6
