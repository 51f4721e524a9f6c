"""The model inside the package: what its file says, and how close it stays to the weights it was made from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import exp

import numpy as np
import pytest

from devices.runner import Runner
from paths import REPO, SHARED
from tandem.devices.cpu import CpuDevice
from tandem.llm import BUNDLED_MODEL
from tandem.models.open import model_spec
from tandem.models.tokenizer import open_tokenizer
from tandem.weights.checkpoint import Checkpoint
from tandem.weights.open import open_checkpoint

SOURCE = SHARED / "models" / "tandem-stories-22m"
TALES = (REPO / "tests" / "data" / "held_out_tales.txt").read_text(encoding="utf-8")
# By transformers in float32 from the bf16 weights: tests/golden/make_perplexity_golden.py.
GOLDEN = json.loads((REPO / "tests" / "golden" / "perplexity.json").read_text())
WINDOW = 1024
# Greedy text. Each stops before the first near-tie (after "a little girl" the best two logits differ by 0.04).
CONTINUATIONS = {
    "Once upon a time": " there was a little girl",
    "Once upon a time there was a little girl,": (
        " who was very excited. She loved playing outside, especially in her garden."
    ),
}

needs_source = pytest.mark.skipif(
    not SOURCE.is_dir(), reason="the weights that the bundled model was made from are not at ../shared/models"
)


@pytest.fixture(scope="module")
def cpu() -> Iterator[CpuDevice]:
    device = CpuDevice()
    yield device
    device.close()


@pytest.fixture(scope="module")
def bundled() -> Checkpoint:
    return open_checkpoint(str(BUNDLED_MODEL))


def runner(checkpoint: Checkpoint, device: CpuDevice) -> Runner:
    spec = model_spec(checkpoint)
    placement = [(device, range(len(spec.blocks)))]
    return Runner(spec, checkpoint, placement, rows=256, sequences=1, context=WINDOW + 1, kv_dtype="f16")


def mean_nll(checkpoint: Checkpoint, device: CpuDevice) -> float:
    """Nats a token over the tales, in windows that each begin with BOS, as in the golden script."""
    tokenizer = open_tokenizer(checkpoint)
    ids = tokenizer.encode(TALES, add_special=False)
    windows = [ids[start : start + WINDOW] for start in range(0, len(ids), WINDOW)]
    assert (len(ids), len(windows)) == (GOLDEN["tokens"], GOLDEN["windows"])
    model = runner(checkpoint, device)
    total = 0.0
    for window in windows:
        (logits,) = model.forward([[tokenizer.bos_id, *window]], chunk=256)
        rows = logits[:-1].astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        total += float((np.log(np.exp(rows).sum(axis=1)) - rows[np.arange(len(window)), window]).sum())
    return total / len(ids)


def test_perplexity_stays_within_half_a_percent_of_bf16(bundled: Checkpoint, cpu: CpuDevice) -> None:
    nll = mean_nll(bundled, cpu)
    print(f"perplexity: bundled {exp(nll):.2f}, bf16 {exp(GOLDEN['mean_nll']):.2f}")
    assert abs(exp(nll - GOLDEN["mean_nll"]) - 1) < 0.005


@needs_source
def test_perplexity_of_the_bf16_weights_is_that_of_transformers(cpu: CpuDevice) -> None:
    nll = mean_nll(open_checkpoint(str(SOURCE)), cpu)
    print(f"perplexity: bf16 here {exp(nll):.2f}, by transformers {exp(GOLDEN['mean_nll']):.2f}")
    assert abs(exp(nll - GOLDEN["mean_nll"]) - 1) < 0.001


@pytest.mark.parametrize("prompt", CONTINUATIONS)
def test_greedy_text(prompt: str, bundled: Checkpoint, cpu: CpuDevice) -> None:
    tokenizer = open_tokenizer(bundled)
    tokens, _ = runner(bundled, cpu).greedy(tokenizer.encode(prompt), 20)
    assert tokenizer.decode(tokens).startswith(CONTINUATIONS[prompt])


def test_the_file_is_small() -> None:
    assert BUNDLED_MODEL.stat().st_size <= 25_000_000


def test_metadata(bundled: Checkpoint) -> None:
    expected = {
        "general.architecture": "gemma3",
        "general.license": "apache-2.0",
        "gemma3.context_length": 2048,
        "gemma3.attention.sliding_window": 256,
        "general.sampling.top_k": 40,
    }
    assert {key: bundled.metadata.get(key) for key in expected} == expected
    assert bundled.metadata["general.sampling.temp"] == pytest.approx(0.6)


def test_tokenizer_knows_where_texts_and_turns_begin_and_end(bundled: Checkpoint) -> None:
    tokenizer = open_tokenizer(bundled)
    assert tokenizer.bos_id == 2
    assert tokenizer.eos_ids == {1, 5}
    assert [tokenizer.token_text(id) for id in (1, 2, 4, 5)] == [
        "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>",
    ]  # fmt: skip
    assert tokenizer.encode("Once")[0] == 2
    assert tokenizer.chat_template is not None
    assert "<start_of_turn>model" in tokenizer.chat_template


@needs_source
def test_tokenizer_is_the_source_models(bundled: Checkpoint) -> None:
    shipped, source = open_tokenizer(bundled), open_tokenizer(open_checkpoint(str(SOURCE)))
    ids = shipped.encode(TALES)
    assert ids == source.encode(TALES)
    assert shipped.decode(ids, skip_special=True) == TALES
    assert (shipped.bos_id, shipped.eos_ids) == (source.bos_id, source.eos_ids)
    assert shipped.chat_template == source.chat_template
    assert shipped.vocab_size == source.vocab_size
