"""Live comparison with transformers in float32: more random configurations than the golden values hold."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.runner import Runner
from models.cases import CASES, CLASSES, LLAMA3_ROPE, Case, config
from tandem.devices.base import Device
from tandem.devices.ref import RefDevice
from tandem.engine.build import EngineConfig, plan_engine
from tandem.engine.request import Request
from tandem.engine.sampling_params import SamplingParams
from tandem.models.open import model_spec
from tandem.weights.open import open_checkpoint

pytestmark = pytest.mark.parity

BOUND = 1e-5
PER_ARCHITECTURE = 8


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    device = RefDevice()
    yield device
    device.close()


def random_case(model_type: str, number: int) -> Case:
    """Head counts, sizes, windows, rope and biases drawn at random; the seed is in the name."""
    draw = random.Random(f"{model_type}/{number}")
    heads = draw.choice([1, 2, 4, 6])
    settings: dict[str, Any] = {
        "num_attention_heads": heads,
        "num_key_value_heads": draw.choice([n for n in (1, 2, 3, 4, 6) if heads % n == 0]),
        "num_hidden_layers": draw.randint(1, 5),
        "head_dim": draw.choice([8, 14, 20]),
        "hidden_size": 12 * draw.randint(2, 6),
        "intermediate_size": draw.choice([17, 48, 96]),
        "rms_norm_eps": draw.choice([1e-6, 1e-3]),
        "tie_word_embeddings": draw.random() < 0.5,
    }
    linear = {"rope_type": "linear", "factor": draw.choice([2.0, 3.5, 8.0])}
    theta = draw.choice([1e3, 1e4, 5e5, 1e6])
    scaling = draw.choice([None, linear, {k: v for k, v in LLAMA3_ROPE.items() if k != "rope_theta"}])
    if model_type == "gemma3_text":
        scaling = draw.choice([None, linear])
        settings |= {
            "sliding_window": draw.randint(1, 30),
            "sliding_window_pattern": draw.randint(1, 4),
            "query_pre_attn_scalar": draw.choice([4, 20, 168]),
            "rope_local_base_freq": draw.choice([1e3, 1e4]),
            "final_logit_softcapping": draw.choice([None, 5.0]),
            "tie_word_embeddings": True,
        }
    if draw.random() < 0.5 or model_type == "gemma3_text":
        settings |= {"rope_theta": theta, "rope_scaling": scaling}
    else:
        settings["rope_parameters"] = {"rope_type": "default", **(scaling or {}), "rope_theta": theta}
    if model_type == "mistral":
        settings["sliding_window"] = draw.choice([None, 1, 5, 16, 100])
    if model_type in ("qwen2", "qwen3"):
        settings |= {
            "use_sliding_window": draw.random() < 0.5,
            "sliding_window": draw.choice([1, 9, 33]),
            "max_window_layers": draw.randint(0, 3),
        }
    if model_type == "qwen2":
        settings |= {"head_dim": None, "hidden_size": 8 * heads * draw.randint(1, 3)}
    if model_type in ("llama", "qwen3", "gemma3_text"):
        settings["attention_bias"] = draw.random() < 0.5
    return Case(f"{model_type}-{number}", config(model_type, **settings), seed=1000 + number)


RANDOM = [random_case(model_type, number) for model_type in CLASSES for number in range(PER_ARCHITECTURE)]


@pytest.mark.parametrize("case", [*CASES, *RANDOM], ids=lambda case: case.name)
def test_logits_match_transformers(case: Case, device: Device, tmp_path: Path) -> None:
    golden = pytest.importorskip("golden.make_model_golden", exc_type=ImportError)
    folder = tmp_path / case.name
    expected = golden.case_logits(case, folder)
    checkpoint = open_checkpoint(str(folder))
    spec = model_spec(checkpoint)
    runner = Runner(spec, checkpoint, [(device, range(len(spec.blocks)))], rows=32, context=48, page_size=8)
    for index, logits in enumerate(runner.forward(case.prompts, chunk=13, decode=3)):
        error = np.linalg.norm(logits - expected[index]) / np.linalg.norm(expected[index])
        assert error < BOUND, f"prompt {index}: {error:.2e}"


@pytest.mark.parametrize("case", [*CASES, *RANDOM[::3]], ids=lambda case: case.name)
def test_embeddings_match_transformers(case: Case, tmp_path: Path) -> None:
    golden = pytest.importorskip("golden.make_model_golden", exc_type=ImportError)
    folder = tmp_path / case.name
    expected = golden.case_hidden(case, folder)
    config = EngineConfig(placement="ref", max_sequences=2, rows=7, kv_dtype="f32")
    engine = plan_engine(open_checkpoint(str(folder)), config).load([])
    try:
        for index, prompt in enumerate(case.prompts):
            for pooling, pooled in (("mean", expected[index].mean(axis=0)), ("last", expected[index][-1])):
                name = f"{index} {pooling}"
                engine.submit(Request(id=name, prompt=list(prompt), params=SamplingParams(), pooling=pooling))
                while not engine.idle:
                    for delta in engine.step():
                        assert delta.embedding is not None, delta.error
                        found = np.frombuffer(delta.embedding, dtype="<f4")
                error = np.linalg.norm(found - pooled) / np.linalg.norm(pooled)
                assert error < BOUND, f"prompt {name}: {error:.2e}"
    finally:
        engine.executor.close()
