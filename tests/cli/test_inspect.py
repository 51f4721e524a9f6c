"""`tandem inspect`: facts of the bundled model in both of its forms, and the plan that the engine would follow."""

from __future__ import annotations

import json

import pytest
from commands import error_of, tandem

from paths import SHARED
from tandem.llm import BUNDLED_MODEL, LLM

ORIGINAL = SHARED / "models/tandem-stories-22m"
TINY = SHARED / "data/models/TinyStories-656K"


@pytest.fixture(scope="module")
def facts() -> dict[str, object]:
    return json.loads(tandem("inspect", "--json").stdout)


def test_the_bundled_model(facts: dict[str, object]) -> None:
    expected = {
        "format": "gguf", "architecture": "gemma3", "context": 2048, "vocab": 8192, "hidden": 512, "layers": 6,
        "tied_embedding": True, "skipped": {}, "sampling_defaults": {"temperature": 0.6, "top_k": 40},
        "file_bytes": BUNDLED_MODEL.stat().st_size, "memory_error": None,
        "ffn": {"size": 1536, "activation": "gelu_tanh"},
    }  # fmt: skip
    assert {key: facts[key] for key in expected} == expected
    assert [(k["layers"], k["window"], k["rope"]["base"]) for k in facts["attention"]] == [  # type: ignore[index,attr-defined]
        (5, 256, 10_000.0), (1, None, 1_000_000.0),
    ]  # fmt: skip
    assert facts["tokenizer"]["eos_ids"] == [1, 5]  # type: ignore[index]
    assert facts["tokenizer"]["chat_templates"] == ["default"]  # type: ignore[index]


def test_the_original_says_the_same(facts: dict[str, object]) -> None:
    original = json.loads(tandem("inspect", ORIGINAL, "--json").stdout)
    same = ("parameters", "attention", "ffn", "context", "vocab", "layers", "tied_embedding", "sampling_defaults")
    assert {key: original[key] for key in same} == {key: facts[key] for key in same}
    assert len(original["files"]) == 4
    assert original["tensor_types"].keys() == {"BF16"}


def test_memory_is_the_engines_own_plan() -> None:
    arguments = ("--context", 500, "--kv-dtype", "f32", "--threads", 1)
    facts = json.loads(tandem("inspect", "--json", *arguments).stdout)
    with LLM(max_sequences=1, context=500, kv_dtype="f32", threads=1) as llm:
        assert facts["memory"] == llm.memory_plan.to_json()


def test_more_sequences_need_more_kv() -> None:
    one, four = (json.loads(tandem("inspect", "--json", "--sequences", n).stdout)["memory"] for n in (1, 4))
    assert four["kv_sequences"] == 4 * one["kv_sequences"] == 4
    assert four["devices"][0]["kv"] == 4 * one["devices"][0]["kv"]
    assert four["devices"][0]["weights"] == one["devices"][0]["weights"]


def test_a_model_that_does_not_fit_is_still_described() -> None:
    result = tandem("inspect", "--memory", "1MiB")
    assert result.exit_code == 0
    assert "22.3 M parameters" in result.stdout
    assert "1.0 MiB may be used" in result.stdout
    facts = json.loads(tandem("inspect", "--memory", "1MiB", "--json").stdout)
    assert facts["memory"] is None
    assert "1.0 MiB may be used" in facts["memory_error"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--context", 99999], "context=99,999 is not possible"), (["--memory", "lots"], "'lots'")],
)
def test_what_no_machine_can_do_is_refused(arguments: list[object], message: str) -> None:
    assert message in error_of(tandem("inspect", *arguments))


def test_an_aliased_matrix_counts_once() -> None:
    """TinyStories-656K stores `lm_head.weight` only; its embedding is an alias."""
    facts = json.loads(tandem("inspect", TINY, "--json").stdout)
    assert facts["parameters"] == 656_000
    assert facts["tied_embedding"]
    assert sum(entry["bytes"] for entry in facts["tensor_types"].values()) == 4 * 656_000


def test_text_and_tensors() -> None:
    text = tandem("inspect", "--tensors").stdout
    for line in (
        "Attention      5 layers, window 256: 8 heads and 2 KV heads of 64, rope 10,000, QK-norm",
        "Sampling       temperature 0.6, top_k 40",
        "Memory",
    ):
        assert line in text.splitlines()
    assert "KV per position: 3.0 KiB, of which 512 B stay" in text
    facts = json.loads(tandem("inspect", "--tensors", "--json").stdout)
    assert len(facts["tensors"]) == sum(entry["tensors"] for entry in facts["tensor_types"].values())
    assert all(tensor["name"] in text for tensor in facts["tensors"])
