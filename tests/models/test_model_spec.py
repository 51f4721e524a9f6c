"""What `model_spec` makes of the metadata of real models, in both worlds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from models.cases import config
from models.phantom import gguf_checkpoint, hf_checkpoint, tensors
from tandem.models.load import block_weights
from tandem.models.open import model_spec
from tandem.weights.checkpoint import Checkpoint
from tandem.weights.tensor import TensorType

GEMMA3_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "mm_tokens_per_image": 256,
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
}
GEMMA3_27B = GEMMA3_4B | {
    "text_config": {
        "head_dim": 128,
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "model_type": "gemma3_text",
        "num_attention_heads": 32,
        "num_hidden_layers": 62,
        "num_key_value_heads": 16,
        "query_pre_attn_scalar": 168,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
}
# What transformers' Gemma3TextConfig fills in.
GEMMA3_DEFAULTS = {
    "model_type": "gemma3_text",
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
}
LLAMA32_1B = config(
    "llama",
    vocab_size=128_256,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=64,
    max_position_embeddings=131_072,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
    rope_theta=500_000.0,
    rope_scaling={
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
)
QWEN25 = config(
    "qwen2",
    vocab_size=151_936,
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    head_dim=None,
    max_position_embeddings=32_768,
    max_window_layers=24,
    sliding_window=32_768,
    use_sliding_window=False,
    tie_word_embeddings=True,
    rope_theta=1e6,
)


def full_gemma(nested: Mapping[str, Any]) -> dict[str, Any]:
    return {**GEMMA3_DEFAULTS, **nested["text_config"]}


def test_gemma3_multimodal_config_leaves_defaults_out() -> None:
    spec = model_spec(hf_checkpoint(GEMMA3_4B, full_gemma(GEMMA3_4B)))
    assert (spec.architecture, spec.vocab, spec.context, spec.layers) == ("gemma3", 262_208, 131_072, 34)
    assert spec.embed.scale == math.sqrt(2560)
    first, full = spec.attention[0], spec.attention[5]
    assert (first.heads, first.kv_heads, first.head_dim, first.scale) == (8, 4, 256, 1 / 16)
    assert [block.window for block in spec.attention[:7]] == [1024] * 5 + [None, 1024]
    assert first.rope and (first.rope.base, first.rope.linear_factor) == (10_000.0, 1.0)
    assert full.rope and (full.rope.base, full.rope.linear_factor) == (1_000_000.0, 8.0)
    assert first.norm.offset == 1.0 and first.post_norm == first.qk_norm == spec.head.norm == first.norm
    assert spec.ffn[0].activation == "gelu_tanh" and spec.ffn[0].post_norm == first.norm
    assert spec.tensors[0]["embedding"] == spec.tensors[-1]["output"] == "model.embed_tokens.weight"


@pytest.mark.parametrize("make", [hf_checkpoint, gguf_checkpoint], ids=["hf", "gguf"])
def test_gemma3_27b_attention_scale(make: Any) -> None:
    full = full_gemma(GEMMA3_27B)
    checkpoint = hf_checkpoint(GEMMA3_27B, full) if make is hf_checkpoint else gguf_checkpoint(full)
    spec = model_spec(checkpoint)
    assert spec.attention[0].scale == pytest.approx(168**-0.5, rel=1e-12)
    assert spec.attention[0].norm.offset == (1.0 if make is hf_checkpoint else 0.0)
    assert [layer for layer, block in enumerate(spec.attention) if block.window is None] == list(range(5, 62, 6))


def test_gemma3_without_62_layers_scales_by_its_head_size() -> None:
    full = full_gemma(GEMMA3_27B) | {"num_hidden_layers": 6}
    assert model_spec(gguf_checkpoint(full)).attention[0].scale == pytest.approx(128**-0.5, rel=1e-12)


def test_gemma3_gguf_may_give_its_attention_scale_and_its_pattern() -> None:
    full = full_gemma(GEMMA3_27B) | {"num_hidden_layers": 3}
    checkpoint = gguf_checkpoint(full)
    given = {"gemma3.attention.scale": 0.25, "gemma3.attention.sliding_window_pattern": [True, False, True]}
    spec = model_spec(replace(checkpoint, metadata={**checkpoint.metadata, **given}))
    assert [block.scale for block in spec.attention] == [0.25] * 3
    assert [block.window for block in spec.attention] == [1024, None, 1024]


def test_gemma3_soft_caps() -> None:
    caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    spec = model_spec(hf_checkpoint(config("gemma3_text", sliding_window=8, **caps)))
    assert spec.attention[0].softcap == 50.0 and spec.head.softcap == 30.0


def test_gemma3_without_a_window_in_gguf_is_full_attention() -> None:
    spec = model_spec(gguf_checkpoint(config("gemma3_text", rope_theta=1e6)))
    assert all(block.window is None for block in spec.attention)
    assert all(block.rope and block.rope.base == 1e6 for block in spec.attention)


@pytest.mark.parametrize("make", [hf_checkpoint, gguf_checkpoint], ids=["hf", "gguf"])
def test_llama(make: Any) -> None:
    spec = model_spec(make(LLAMA32_1B))
    first = spec.attention[0]
    assert (first.heads, first.kv_heads, first.head_dim, first.scale) == (32, 8, 64, 1 / 8)
    assert (first.window, first.qk_norm, first.post_norm, first.qkv_bias, first.o_bias) == (None,) * 3 + (False,) * 2
    assert first.rope and (first.rope.base, first.rope.dims) == (500_000.0, 64)
    assert first.rope.layout == ("half" if make is hf_checkpoint else "interleaved")
    assert spec.ffn[0].activation == "silu" and spec.embed.scale == 1.0 and first.norm.offset == 0.0


def test_llama3_rope_factors_follow_from_the_config() -> None:
    rope = model_spec(hf_checkpoint(LLAMA32_1B)).attention[0].rope
    assert rope and rope.frequency_factors
    factors = np.array(rope.frequency_factors)
    wavelengths = 2 * math.pi * 500_000.0 ** (np.arange(0, 64, 2) / 64)
    assert np.all(factors[wavelengths < 8192 / 4] == 1.0)
    assert np.all(factors[wavelengths > 8192] == pytest.approx(32.0))
    between = factors[(wavelengths >= 8192 / 4) & (wavelengths <= 8192)]
    assert len(between) and np.all((between > 1.0) & (between < 32.0))


def test_llama3_rope_factors_stored_in_gguf() -> None:
    checkpoint = gguf_checkpoint(LLAMA32_1B)
    stored = np.linspace(1, 8, 32, dtype=np.float32)
    factors = replace(tensors({"rope_freqs.weight": (32,)})["rope_freqs.weight"], data=stored.view(np.uint8))
    spec = model_spec(replace(checkpoint, tensors={**checkpoint.tensors, "rope_freqs.weight": factors}))
    assert spec.attention[0].rope and spec.attention[0].rope.frequency_factors == tuple(stored.tolist())


def test_partial_rotary_in_gguf() -> None:
    checkpoint = gguf_checkpoint(config("qwen3", head_dim=16, rope_theta=10000.0))
    spec = model_spec(replace(checkpoint, metadata={**checkpoint.metadata, "qwen3.rope.dimension_count": 8}))
    assert spec.attention[0].rope and spec.attention[0].rope.dims == 8


def test_gguf_without_optional_keys() -> None:
    """Old files give neither the head size nor the KV heads nor the rope base."""
    checkpoint = gguf_checkpoint(config("llama", num_key_value_heads=4, hidden_size=48, rope_theta=1.0))
    absent = ("llama.attention.key_length", "llama.attention.head_count_kv", "llama.rope.freq_base")
    metadata = {key: value for key, value in checkpoint.metadata.items() if key not in absent}
    attention = model_spec(replace(checkpoint, metadata=metadata)).attention[0]
    assert (attention.kv_heads, attention.head_dim) == (4, 12)
    assert attention.rope and attention.rope.base == 10_000.0


@pytest.mark.parametrize("window", [4096, None])
def test_mistral_window(window: int | None) -> None:
    given = config("mistral", sliding_window=window, rope_theta=1e4)
    assert {block.window for block in model_spec(hf_checkpoint(given)).attention} == {window}
    del given["sliding_window"]
    assert {block.window for block in model_spec(hf_checkpoint(given)).attention} == {4096}


@pytest.mark.parametrize("window", [4096, None])
def test_mistral_in_gguf_is_a_llama(window: int | None) -> None:
    given = config("mistral", sliding_window=window, rope_theta=1e4)
    spec = model_spec(gguf_checkpoint(given))
    assert spec.architecture == "llama" and {block.window for block in spec.attention} == {window}


@pytest.mark.parametrize("make", [hf_checkpoint, gguf_checkpoint], ids=["hf", "gguf"])
def test_qwen2(make: Any) -> None:
    spec = model_spec(make(QWEN25))
    first = spec.attention[0]
    assert (first.head_dim, first.qkv_bias, first.o_bias, first.window) == (64, True, False, None)
    assert first.rope and first.rope.layout == "half"


@pytest.mark.parametrize("make", [hf_checkpoint, gguf_checkpoint], ids=["hf", "gguf"])
def test_qwen3(make: Any) -> None:
    spec = model_spec(make(config("qwen3", head_dim=32, tie_word_embeddings=True, rope_theta=1e6)))
    first = spec.attention[0]
    assert first.qk_norm == first.norm and (first.head_dim, first.qkv_bias, first.post_norm) == (
        32,
        False,
        None,
    )
    assert spec.tensors[0]["embedding"] == spec.tensors[-1]["output"]


def test_qwen3_default_head_size_is_128() -> None:
    full = config("qwen3", head_dim=128)
    assert model_spec(hf_checkpoint(config("qwen3", head_dim=None), full)).attention[0].head_dim == 128


def renamed(checkpoint: Checkpoint, old: str, new: str) -> Checkpoint:
    return replace(checkpoint, tensors={new if name == old else name: t for name, t in checkpoint.tensors.items()})


def test_tied_weights_stored_as_the_output() -> None:
    checkpoint = hf_checkpoint(config("llama", tie_word_embeddings=True))
    spec = model_spec(renamed(checkpoint, "model.embed_tokens.weight", "lm_head.weight"))
    assert spec.tensors[0]["embedding"] == spec.tensors[-1]["output"] == "lm_head.weight"


def test_tied_weights_under_both_names_are_one_tensor() -> None:
    checkpoint = hf_checkpoint(config("llama", tie_word_embeddings=True))
    both = {**checkpoint.tensors, "lm_head.weight": checkpoint.tensors["model.embed_tokens.weight"]}
    spec = model_spec(replace(checkpoint, tensors=both))
    assert spec.tensors[-1]["output"] == "model.embed_tokens.weight"


def test_an_output_of_its_own_is_used() -> None:
    for make, name in ((hf_checkpoint, "lm_head.weight"), (gguf_checkpoint, "output.weight")):
        assert (
            model_spec(make(config("qwen2", hidden_size=64, head_dim=None, rope_theta=1e4))).tensors[-1]["output"]
            == name
        )


def test_block_weights_are_the_checkpoints_tensors() -> None:
    checkpoint = hf_checkpoint(config("gemma3_text", sliding_window=8))
    spec = model_spec(checkpoint)
    for index in range(len(spec.blocks)):
        for role, tensor in block_weights(checkpoint, spec, index).items():
            assert tensor is checkpoint.tensors[spec.tensors[index][role]]
    assert set(block_weights(checkpoint, spec, 2)) == {"norm", "gate", "up", "down", "post_norm"}
    assert block_weights(checkpoint, spec, 2)["norm"].name.endswith("0.pre_feedforward_layernorm.weight")


def test_quantized_tensors_are_checked_by_their_packed_size() -> None:
    checkpoint = gguf_checkpoint(config("llama", hidden_size=64, rope_theta=1e4))
    name = "blk.0.ffn_gate.weight"
    packed = replace(checkpoint.tensors[name], type=TensorType.Q8_0, data=np.zeros(56 * 2 * 34, dtype=np.uint8))
    assert model_spec(replace(checkpoint, tensors={**checkpoint.tensors, name: packed})).layers == 2
