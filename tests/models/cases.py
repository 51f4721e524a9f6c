"""Tiny random models of every architecture: configurations in the dialects that real files use.

Used by the golden tests, by the script that makes their expected logits with transformers, and by the live
parity suite. Sizes are small and odd on purpose: heads * head_dim is not the hidden size, prompts exceed
windows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

PROMPT_LENGTHS = (45, 19, 1)
VOCAB = 48

CLASSES = {
    "gemma3_text": "Gemma3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


@dataclass(frozen=True)
class Case:
    """config: `config.json`. seed: of weights and prompts. gains: factors of tensors whose name has the key.

    gguf: whether GGUF can say what the config says.
    """

    name: str
    config: dict[str, Any]
    seed: int
    gains: Mapping[str, float] = field(default_factory=dict)
    gguf: bool = True

    @property
    def prompts(self) -> list[list[int]]:
        raw = np.random.Philox(key=self.seed).random_raw(sum(PROMPT_LENGTHS)) % np.uint64(self.config["vocab_size"])
        ends = np.cumsum(PROMPT_LENGTHS)[:-1]
        return [[int(token) for token in part] for part in np.split(raw, ends)]


def config(model_type: str, **settings: Any) -> dict[str, Any]:
    """A `config.json` with every checkpoint's keys, changed by `settings`; head_dim=None leaves it out."""
    gemma = model_type == "gemma3_text"
    base: dict[str, Any] = {
        "architectures": [CLASSES[model_type]],
        "model_type": model_type,
        "vocab_size": VOCAB,
        "hidden_size": 40,
        "intermediate_size": 56,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": gemma,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "torch_dtype": "float32",
        ("hidden_activation" if gemma else "hidden_act"): "gelu_pytorch_tanh" if gemma else "silu",
    }
    merged = base | settings
    if merged["head_dim"] is None:
        del merged["head_dim"]
    return merged


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
GEMMA_ROPES = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}

CASES = [
    Case(
        "llama-multi-head",
        config("llama", num_key_value_heads=4, hidden_size=48, rope_theta=10000.0, rope_scaling=None),
        seed=101,
    ),
    Case(
        "llama-llama3-rope",
        config(
            "llama",
            hidden_size=48,
            num_attention_heads=6,
            head_dim=16,
            tie_word_embeddings=True,
            rope_parameters=LLAMA3_ROPE,
        ),
        seed=102,
    ),
    Case(
        "llama-linear-rope-biases",
        config(
            "llama",
            num_key_value_heads=1,
            attention_bias=True,
            rope_theta=500000.0,
            rope_scaling={"type": "linear", "factor": 4.0},
            rms_norm_eps=1e-6,
        ),
        seed=103,
    ),
    Case(
        "mistral-window",
        config(
            "mistral",
            hidden_size=48,
            num_attention_heads=6,
            num_key_value_heads=3,
            sliding_window=9,
            rope_theta=10000.0,
        ),
        seed=104,
    ),
    Case(
        "mistral-full",
        config(
            "mistral",
            sliding_window=None,
            head_dim=20,
            rope_parameters={"rope_theta": 1000000.0, "rope_type": "default"},
        ),
        seed=105,
    ),
    Case(
        "qwen2-full",
        config(
            "qwen2",
            hidden_size=64,
            head_dim=None,
            tie_word_embeddings=True,
            use_sliding_window=False,
            sliding_window=32768,
            max_window_layers=1,
            rope_theta=1000000.0,
        ),
        seed=106,
    ),
    Case(
        "qwen2-upper-windows",
        config(
            "qwen2",
            num_hidden_layers=3,
            hidden_size=64,
            head_dim=None,
            use_sliding_window=True,
            sliding_window=7,
            max_window_layers=1,
            rope_theta=10000.0,
        ),
        seed=107,
        gguf=False,
    ),
    Case(
        "qwen3-linear-rope",
        config(
            "qwen3",
            num_attention_heads=8,
            head_dim=16,
            tie_word_embeddings=True,
            rope_parameters={"rope_theta": 1000000.0, "rope_type": "linear", "factor": 2.0},
        ),
        seed=108,
    ),
    Case(
        "qwen3-biases-layer-types",
        config(
            "qwen3",
            num_hidden_layers=3,
            attention_bias=True,
            use_sliding_window=True,
            sliding_window=11,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            rope_theta=10000.0,
        ),
        seed=109,
        gguf=False,
    ),
    Case(
        "gemma3-layer-ropes",
        config(
            "gemma3_text",
            num_hidden_layers=7,
            query_pre_attn_scalar=12,
            sliding_window=8,
            layer_types=["sliding_attention"] * 5 + ["full_attention", "sliding_attention"],
            rope_parameters=GEMMA_ROPES,
        ),
        seed=110,
    ),
    Case(
        "gemma3-older-config",
        config(
            "gemma3_text",
            num_hidden_layers=6,
            num_key_value_heads=1,
            head_dim=16,
            query_pre_attn_scalar=16,
            sliding_window=13,
            sliding_window_pattern=3,
            rope_theta=1000000.0,
            rope_local_base_freq=5000.0,
            rope_scaling={"rope_type": "linear", "factor": 8.0},
            final_logit_softcapping=2.0,
            attn_logit_softcapping=None,
            rms_norm_eps=1e-3,
        ),
        seed=111,
    ),
    Case(
        # The 27B model's attention scale, 1/sqrt(168), and its 62 layers, from which GGUF readers infer it.
        "gemma3-27b-scale",
        config(
            "gemma3_text",
            num_hidden_layers=62,
            hidden_size=168,
            intermediate_size=32,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=16,
            query_pre_attn_scalar=168,
            sliding_window=10,
            rope_theta=1000000.0,
            rope_local_base_freq=10000.0,
        ),
        seed=112,
    ),
    Case(
        "gemma3-residual-1e6",
        config(
            "gemma3_text",
            num_hidden_layers=4,
            query_pre_attn_scalar=12,
            sliding_window=8,
            sliding_window_pattern=2,
            rope_theta=1000000.0,
            rope_local_base_freq=10000.0,
        ),
        seed=113,
        gains={"post_attention_layernorm": 1e6, "post_feedforward_layernorm": 1e6, "embed_tokens": 1e5},
    ),
]
