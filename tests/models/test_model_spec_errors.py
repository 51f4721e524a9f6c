"""Bad metadata and tensors: one sentence that names the thing, and only ever a TandemError."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from models.cases import CASES, LLAMA3_ROPE, config
from models.phantom import gguf_checkpoint, hf_checkpoint, tensors
from tandem.errors import ModelFileError, TandemError, UnsupportedModelError
from tandem.models.open import model_spec
from tandem.weights.checkpoint import Checkpoint
from tandem.weights.tensor import Tensor, TensorType

LLAMA = config("llama", rope_theta=10000.0)
GEMMA = config("gemma3_text", sliding_window=8, rope_theta=1e6)
QWEN2 = config("qwen2", hidden_size=64, head_dim=None, use_sliding_window=True, sliding_window=8, max_window_layers=1)


def changed(checkpoint: Checkpoint, changes: Mapping[str, Any], without: tuple[str, ...] = ()) -> Checkpoint:
    metadata = {**checkpoint.metadata, **changes}
    return replace(checkpoint, metadata={key: value for key, value in metadata.items() if key not in without})


def refuses(checkpoint: Checkpoint, error: type[TandemError], *words: str) -> None:
    """`model_spec` raises `error` with a message of one line that holds every word and the file's name."""
    with pytest.raises(error) as caught:
        model_spec(checkpoint)
    assert type(caught.value) is error
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    for word in (*words, str(checkpoint.path)):
        assert word in message


@pytest.mark.parametrize(
    ("base", "changes", "words"),
    [
        (LLAMA, {"hidden_size": None}, ("hidden_size", "missing")),
        (LLAMA, {"num_hidden_layers": 0}, ("num_hidden_layers", "from 1 to")),
        (LLAMA, {"num_hidden_layers": 10**9}, ("num_hidden_layers", "from 1 to")),
        (LLAMA, {"num_hidden_layers": "two"}, ("num_hidden_layers", "'two'")),
        (LLAMA, {"num_hidden_layers": True}, ("num_hidden_layers", "True")),
        (LLAMA, {"num_attention_heads": 2.5}, ("num_attention_heads", "2.5")),
        (LLAMA, {"num_key_value_heads": 3}, ("num_key_value_heads", "a divisor of the 4 heads")),
        (LLAMA, {"head_dim": 11}, ("head_dim", "even")),
        (LLAMA, {"head_dim": None, "hidden_size": 41}, ("num_attention_heads", "the hidden size 41")),
        (LLAMA, {"rms_norm_eps": float("nan")}, ("rms_norm_eps", "nan")),
        (LLAMA, {"rms_norm_eps": "1e-6"}, ("rms_norm_eps",)),
        (LLAMA, {"max_position_embeddings": -1}, ("max_position_embeddings", "-1")),
        (LLAMA, {"vocab_size": 50}, ("vocab_size", "the 48 rows")),
        (LLAMA, {"architectures": "LlamaForCausalLM"}, ("architectures",)),
        (LLAMA, {"model_type": None}, ("model_type", "missing")),
        (LLAMA, {"tie_word_embeddings": "yes"}, ("tie_word_embeddings", "true or false")),
        (LLAMA, {"rope_theta": 0.0}, ("rope_theta",)),
        (LLAMA, {"rope_scaling": ["linear"]}, ("rope_scaling", "table")),
        (LLAMA, {"rope_scaling": {"type": "linear"}}, ("rope_scaling.factor", "missing")),
        (LLAMA, {"rope_scaling": {"type": "linear", "factor": -2}}, ("rope_scaling.factor", "-2")),
        (
            LLAMA,
            {"rope_parameters": LLAMA3_ROPE | {"high_freq_factor": 1.0}},
            ("rope_parameters.high_freq_factor", "more than low_freq_factor"),
        ),
        (GEMMA, {"layer_types": ["full_attention"]}, ("layer_types", "a list of 2 values")),
        (GEMMA, {"sliding_window": None}, ("sliding_window", "missing")),
        (GEMMA, {"query_pre_attn_scalar": 0}, ("query_pre_attn_scalar",)),
        (GEMMA, {"sliding_window_pattern": 0}, ("sliding_window_pattern",)),
        (QWEN2, {"max_window_layers": -1}, ("max_window_layers",)),
    ],
    ids=lambda value: None if isinstance(value, tuple) or "vocab_size" in value else ",".join(value),
)  # fmt: skip
def test_bad_config_json(base: dict[str, Any], changes: dict[str, Any], words: tuple[str, ...]) -> None:
    refuses(changed(hf_checkpoint(base), changes), ModelFileError, *words)


@pytest.mark.parametrize(
    ("base", "changes", "words"),
    [
        (LLAMA, {"llama.block_count": None}, ("llama.block_count", "missing")),
        (LLAMA, {"llama.embedding_length": 2**40}, ("llama.embedding_length", "from 1 to")),
        (LLAMA, {"llama.attention.head_count": 0}, ("llama.attention.head_count",)),
        (LLAMA, {"llama.feed_forward_length": []}, ("llama.feed_forward_length", "at least one value")),
        (LLAMA, {"llama.rope.dimension_count": 7}, ("llama.rope.dimension_count", "even")),
        (LLAMA, {"llama.rope.dimension_count": 14}, ("llama.rope.dimension_count", "from 2 to 12")),
        (LLAMA, {"llama.rope.freq_base": -1.0}, ("llama.rope.freq_base",)),
        (LLAMA, {"llama.vocab_size": 32000}, ("llama.vocab_size", "the 48 rows")),
        (LLAMA, {"tokenizer.ggml.tokens": ["x"] * 49}, ("49 tokens", "48 rows")),
        (LLAMA, {"general.architecture": None}, ("general.architecture", "missing")),
        (LLAMA, {"general.architecture": 7}, ("general.architecture", "7")),
        (GEMMA, {"gemma3.rope.freq_base": None}, ("gemma3.rope.freq_base", "missing")),
        (GEMMA, {"gemma3.attention.sliding_window_pattern": [True]}, ("sliding_window_pattern", "2 values")),
    ],
    ids=lambda value: None if isinstance(value, tuple) or "vocab_size" in value else ",".join(value),
)
def test_bad_gguf_metadata(base: dict[str, Any], changes: dict[str, Any], words: tuple[str, ...]) -> None:
    refuses(changed(gguf_checkpoint(base), changes), ModelFileError, *words)


@pytest.mark.parametrize(
    ("checkpoint", "changes", "words"),
    [
        (hf_checkpoint(LLAMA), {"model_type": "mamba"}, ("'mamba'", "gemma3, llama, mistral, qwen2, qwen3")),
        (gguf_checkpoint(LLAMA), {"general.architecture": "mamba"}, ("'mamba'", "gemma3, llama, mistral")),
        (
            hf_checkpoint(LLAMA),
            {"architectures": ["LlamaForSequenceClassification"]},
            ("LlamaForSequenceClassification", "LlamaForCausalLM"),
        ),
        (hf_checkpoint(LLAMA), {"quantization_config": {"quant_method": "gptq"}}, ("gptq", "GGUF")),
        (hf_checkpoint(LLAMA), {"hidden_act": "relu"}, ("hidden_act", "'relu'", "silu")),
        (hf_checkpoint(LLAMA), {"mlp_bias": True}, ("mlp_bias",)),
        (
            hf_checkpoint(LLAMA),
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            ("rope_scaling.rope_type", "'yarn'", "llama3"),
        ),
        (hf_checkpoint(LLAMA), {"partial_rotary_factor": 0.5}, ("partial_rotary_factor", "0.5")),
        (hf_checkpoint(GEMMA), {"use_bidirectional_attention": True}, ("use_bidirectional_attention",)),
        (
            hf_checkpoint(GEMMA),
            {"layer_types": ["chunked_attention", "full_attention"]},
            ("layer_types", "'chunked_attention'"),
        ),
        (gguf_checkpoint(LLAMA), {"llama.expert_count": 8}, ("llama.expert_count", "dense")),
        (gguf_checkpoint(LLAMA), {"llama.rope.scaling.type": "yarn"}, ("'yarn'", "none, linear")),
        (gguf_checkpoint(LLAMA), {"llama.rope.scaling.attn_factor": 1.5}, ("attn_factor", "1.5")),
        (gguf_checkpoint(LLAMA), {"llama.attention.value_length": 16}, ("value_length", "keys have 12")),
        (gguf_checkpoint(LLAMA), {"llama.attention.head_count_kv": [2, 1]}, ("head_count_kv", "every layer")),
    ],
    ids=lambda value: None if not isinstance(value, dict) else ",".join(value),
)  # fmt: skip
def test_unsupported(checkpoint: Checkpoint, changes: dict[str, Any], words: tuple[str, ...]) -> None:
    refuses(changed(checkpoint, changes), UnsupportedModelError, *words)


def test_missing_tensor() -> None:
    for make, name in (
        (hf_checkpoint, "model.layers.1.mlp.up_proj.weight"),
        (gguf_checkpoint, "blk.1.ffn_up.weight"),
    ):
        checkpoint = make(LLAMA)
        rest = {key: tensor for key, tensor in checkpoint.tensors.items() if key != name}
        refuses(replace(checkpoint, tensors=rest), ModelFileError, name, "missing", "(56, 40)")


def test_wrong_shape() -> None:
    checkpoint = hf_checkpoint(LLAMA)
    name = "model.layers.0.self_attn.k_proj.weight"
    wrong = {**checkpoint.tensors, **tensors({name: (24, 41)})}
    refuses(replace(checkpoint, tensors=wrong), ModelFileError, name, "(24, 41)", "(24, 40)")


def test_heads_that_contradict_the_tensors() -> None:
    refuses(
        changed(hf_checkpoint(LLAMA), {"num_key_value_heads": 4}),
        ModelFileError,
        "k_proj",
        "(24, 40)",
        "(48, 40)",
    )


def test_too_few_bytes() -> None:
    checkpoint = hf_checkpoint(LLAMA)
    name = "model.norm.weight"
    short = replace(checkpoint.tensors[name], data=np.zeros(4, np.uint8))
    refuses(
        replace(checkpoint, tensors={**checkpoint.tensors, name: short}),
        ModelFileError,
        name,
        "4 bytes",
        "160",
    )


def test_embedding_that_is_no_matrix() -> None:
    checkpoint = hf_checkpoint(LLAMA)
    wrong = {**checkpoint.tensors, **tensors({"model.embed_tokens.weight": (48,)})}
    refuses(replace(checkpoint, tensors=wrong), ModelFileError, "model.embed_tokens.weight", "(vocabulary, 40)")


def test_output_missing_where_it_is_not_tied() -> None:
    checkpoint = hf_checkpoint(LLAMA)
    rest = {key: tensor for key, tensor in checkpoint.tensors.items() if key != "lm_head.weight"}
    refuses(replace(checkpoint, tensors=rest), ModelFileError, "lm_head.weight", "missing")


def test_embedding_missing() -> None:
    checkpoint = gguf_checkpoint(LLAMA)
    rest = {key: t for key, t in checkpoint.tensors.items() if key not in ("token_embd.weight", "output.weight")}
    refuses(replace(checkpoint, tensors=rest), ModelFileError, "token_embd.weight", "missing")


def test_tensors_without_a_place() -> None:
    """Biases that the config does not speak of would be left out of the arithmetic."""
    checkpoint = hf_checkpoint(LLAMA)
    more = tensors({"model.layers.0.mlp.up_proj.bias": (56,)})
    refuses(
        replace(checkpoint, tensors={**checkpoint.tensors, **more}),
        UnsupportedModelError,
        "up_proj.bias",
        "llama",
    )


def test_stored_rope_frequencies_are_not_needed() -> None:
    checkpoint = hf_checkpoint(LLAMA)
    more = tensors({"model.layers.0.self_attn.rotary_emb.inv_freq": (6,)})
    assert model_spec(replace(checkpoint, tensors={**checkpoint.tensors, **more})).layers == 2


def test_bad_rope_factors() -> None:
    checkpoint = gguf_checkpoint(LLAMA)
    for count, word in ((5, "(6,)"), (6, "positive")):
        zeros = np.zeros(4 * count, np.uint8)
        more = {"rope_freqs.weight": Tensor("rope_freqs.weight", TensorType.F32, (count,), zeros)}
        refuses(replace(checkpoint, tensors={**checkpoint.tensors, **more}), ModelFileError, "rope_freqs", word)


def test_text_config_that_is_no_table() -> None:
    refuses(changed(hf_checkpoint(GEMMA), {"text_config": 3}), ModelFileError, "text_config", "table")


NASTY = [None, True, -1, 0, 3, 1.5, 1e308, float("nan"), 2**63, 10**400, "x", [], [1, 2], [None, "x"], {}, {"a": 1}]


@pytest.mark.parametrize("case", [c for c in CASES if c.config["num_hidden_layers"] < 10], ids=lambda c: c.name)
@pytest.mark.parametrize("make", [hf_checkpoint, gguf_checkpoint], ids=["hf", "gguf"])
def test_any_value_of_any_key_is_read_or_refused(case: Any, make: Any) -> None:
    checkpoint = changed(make(case.config), {"tokenizer.ggml.tokens": []})
    refused = 0
    for key in checkpoint.metadata:
        for value in NASTY:
            try:
                model_spec(changed(checkpoint, {key: value}))
            except TandemError:
                refused += 1
    assert refused > len(checkpoint.metadata)
