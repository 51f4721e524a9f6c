"""Scores of logits against numpy in float64, windows as llama.cpp cuts them, and its perplexity on the same file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from paths import REPO, SHARED
from tandem._native import Scorer
from tandem.bench.importance import gather_importance
from tandem.bench.perplexity import cut_windows, measure_perplexity
from tandem.bench.teacher import Teacher
from tandem.engine.build import EngineConfig
from tandem.errors import BenchError
from tandem.llm import BUNDLED_MODEL
from tandem.models.quantize import quantize_model
from tandem.models.recipes import named_recipe
from tandem.models.tokenizer import open_tokenizer
from tandem.weights.open import open_checkpoint

GOLDEN = json.loads((REPO / "tests" / "golden" / "quantize.json").read_text())["perplexity"]
TALES = (REPO / "tests" / "data" / "held_out_tales.txt").read_text(encoding="utf-8")
SOURCE = SHARED / "models" / "tandem-stories-22m"


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))


def test_scores_are_those_of_float64() -> None:
    rng = np.random.default_rng(3)
    p, q = (rng.normal(0, 6, (9, 500)).astype(np.float32) for _ in range(2))
    q[0] = p[0]
    p[1, :2] = p[1].max() + 1  # of equals the first
    targets = rng.integers(0, 500, 9).astype(np.int32)
    nll, top, kl = np.empty(9), np.empty(9, np.int32), np.empty(9)
    scorer = Scorer(2)
    scorer.score(p, targets, nll, top)
    scorer.diverge(p, q, kl)
    a, b = log_softmax(p), log_softmax(q)
    np.testing.assert_allclose(nll, -a[np.arange(9), targets], rtol=1e-12)
    np.testing.assert_allclose(kl, (np.exp(a) * (a - b)).sum(axis=1), rtol=1e-9, atol=1e-12)
    assert np.array_equal(top, p.argmax(axis=1))
    assert kl[0] == 0
    with pytest.raises(ValueError):
        scorer.score(p, np.full(9, 500, np.int32), nll, top)
    with pytest.raises(ValueError):
        scorer.diverge(p, q[:8], kl)


def test_windows_begin_with_bos_and_drop_the_rest() -> None:
    checkpoint = open_checkpoint(BUNDLED_MODEL)
    ids = open_tokenizer(checkpoint).encode(TALES)
    windows = cut_windows(checkpoint, TALES, 500)
    assert len(windows) == len(ids) // 500
    assert all(window[0] == 2 and len(window) == 500 for window in windows)
    assert windows[1][1:] == ids[501:1000]
    assert cut_windows(checkpoint, TALES, 500, 3) == windows[:3]
    with pytest.raises(BenchError, match="two windows of 4,000 take 8,000"):
        cut_windows(checkpoint, TALES, 4000)


def test_rows_are_the_same_whatever_is_read_together() -> None:
    checkpoint = open_checkpoint(BUNDLED_MODEL)
    windows = cut_windows(checkpoint, TALES, 48, 3)

    def read(together: int, rows: int) -> dict[int, np.ndarray]:
        parts: dict[int, list[np.ndarray]] = {0: [], 1: [], 2: []}
        with Teacher(checkpoint, EngineConfig(rows=rows), length=48, together=together) as teacher:
            for forced in teacher.read(windows, 20):
                for window in parts:
                    parts[window].append(forced.logits[forced.windows == window].copy())
        return {window: np.concatenate(rows) for window, rows in parts.items()}

    alone, together = read(1, 7), read(2, 64)
    for window, rows in alone.items():
        assert rows.shape == (27, 8192)  # positions 20 to 46
        assert np.array_equal(rows, together[window])


def test_importance_has_a_weight_for_each_column() -> None:
    checkpoint = open_checkpoint(BUNDLED_MODEL)
    found = gather_importance(checkpoint, TALES, length=16, windows=2)
    for name, tensor in checkpoint.tensors.items():
        if name.startswith("blk.") and len(tensor.shape) == 2:
            weights = found[name]
            assert weights.shape == tensor.shape[1:]
            assert (weights > 0).all()
            assert weights.mean() == pytest.approx(1, rel=1e-4)
    assert np.array_equal(found["blk.0.attn_q.weight"], found["blk.0.attn_v.weight"])
    assert not np.array_equal(found["blk.0.attn_q.weight"], found["blk.0.ffn_up.weight"])


@pytest.mark.slow
@pytest.mark.skipif(not SOURCE.is_dir(), reason="the weights of the story model are not at ../shared/models")
def test_llama_cpp_measures_the_same_perplexity(tmp_path: Path) -> None:
    """Of the file that `tandem quantize` writes, within half a per cent."""
    path = tmp_path / "model.gguf"
    quantize_model(open_checkpoint(SOURCE), path, named_recipe(GOLDEN["type"]))
    result = measure_perplexity(open_checkpoint(path), TALES, EngineConfig(), length=GOLDEN["window"])
    assert result.perplexity == pytest.approx(GOLDEN["value"], rel=0.005)
