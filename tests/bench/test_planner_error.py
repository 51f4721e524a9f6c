"""The pairs of benchmarks/planner_error.py are drawn before anything is measured, and suit every model."""

from __future__ import annotations

import sys

from paths import REPO, SHARED

sys.path.insert(0, str(REPO / "benchmarks"))

from planner_error import PAIRS, draw_pairs, summarize, table, with_layers
from tandem.models.load import block_weights
from tandem.models.open import model_spec
from tandem.pipeline.notation import parse_placement
from tandem.weights.open import open_checkpoint

CHECKPOINT = open_checkpoint(SHARED / "data" / "models" / "TinyStories-656K")
SPEC = model_spec(CHECKPOINT)


def test_a_seed_draws_the_same_pairs_of_every_kind() -> None:
    pairs = draw_pairs(7, ["cpu", "vulkan:0"], 512)
    assert pairs == draw_pairs(7, ["cpu", "vulkan:0"], 512) != draw_pairs(8, ["cpu", "vulkan:0"], 512)
    assert len(pairs) == PAIRS
    assert {text.partition("=")[0] for text, _ in pairs} >= {"cpu", "vulkan:0", "attn", "ffn", "first"}
    for text, workload in pairs:
        parse_placement(with_layers(text, SPEC.layers), SPEC, lambda i: block_weights(CHECKPOINT, SPEC, i))
        assert workload.context < 512
    assert {text for text, _ in draw_pairs(7, ["cpu"], 512)} == {"cpu"}


def test_layers_are_a_share_of_the_model() -> None:
    assert with_layers("first=cpu,rest=ref,layers={layers:0.25},m=2", 26) == "first=cpu,rest=ref,layers=6,m=2"
    assert with_layers("first=cpu,rest=ref,layers={layers:0.75},m=2", 2) == "first=cpu,rest=ref,layers=1,m=2"
    assert with_layers("cpu", 26) == "cpu"


def test_the_median_is_of_what_ran_and_what_did_not_is_named() -> None:
    pair = {"placement": "cpu", "batch": 1, "prompt": 16, "new": 8, "predicted_s": 1.0}
    ran = [{**pair, "measured_s": 1.0, "error": e, "normalized_error": -e} for e in (0.1, -0.3, 0.2)]
    found = {"pairs": [*ran, {**pair, "left_out": "no time"}]}
    summarize(found)
    assert (found["median_error"], found["worst_error"]) == (0.2, 0.3)
    assert "left out" in table(found) and "median error 20.0%, worst 30.0%" in table(found)
