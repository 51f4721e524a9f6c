"""Gemma 3, text: pre- and post-norms, QK-norm, sliding and full layers, two rope bases, scaled embeddings."""

from __future__ import annotations

import math

from tandem.devices.spec import RopeSpec
from tandem.models.architecture import Architecture, Decoder
from tandem.models.config import MAX_LAYERS, Config, hf_activation, hf_layer_windows, sliding_window
from tandem.models.rope import gguf_rope, hf_rope

LOCAL_BASE = 10_000.0
PATTERN = 6
# The 27B model scales attention by its hidden size per head. GGUF has no key for that; its 62 layers tell.
LAYERS_27B = 62


def decoder(config: Config) -> Decoder:
    metadata = config.metadata
    if metadata.flag("use_bidirectional_attention"):
        raise metadata.unsupported("use_bidirectional_attention", True, "Tandem generates text, with causal models")
    windows = _gguf_windows(config) if config.gguf else _hf_windows(config)
    full, local = _gguf_ropes(config) if config.gguf else _hf_ropes(config)
    return Decoder(
        windows=windows,
        ropes=tuple(full if window is None else local for window in windows),
        activation="gelu_tanh" if config.gguf else hf_activation(config, "hidden_activation"),
        # Checkpoints store norm weights around 0; conversion to GGUF adds the 1.
        norm_offset=0.0 if config.gguf else 1.0,
        qk_norm=True,
        post_norms=True,
        qkv_bias=metadata.flag("attention_bias"),
        o_bias=metadata.flag("attention_bias"),
        embedding_scale=math.sqrt(config.hidden),
        attention_scale=_gguf_scale(config) if config.gguf else _hf_scale(config),
        attention_softcap=_softcap(config, "attn_logit_softcapping"),
        logit_softcap=_softcap(config, "final_logit_softcapping"),
    )


def _hf_windows(config: Config) -> tuple[int | None, ...]:
    key = "_sliding_window_pattern" if "_sliding_window_pattern" in config.metadata else "sliding_window_pattern"
    pattern = config.metadata.integer(key, high=MAX_LAYERS, default=PATTERN)
    return hf_layer_windows(config, sliding_window(config), lambda layer: (layer + 1) % pattern != 0)


def _gguf_windows(config: Config) -> tuple[int | None, ...]:
    window = sliding_window(config)
    key = "attention.sliding_window_pattern"
    if isinstance(config.metadata.get(key), int | None):
        pattern = config.metadata.integer(key, high=MAX_LAYERS, default=PATTERN)
        sliding = [(layer + 1) % pattern != 0 for layer in range(config.layers)]
    else:
        sliding = [bool(value) for value in config.metadata.items(key, config.layers)]
    return tuple(window if slides else None for slides in sliding)


def _hf_ropes(config: Config) -> tuple[RopeSpec, RopeSpec]:
    full = hf_rope(config, "full_attention", base=1_000_000.0)
    return full, hf_rope(config, "sliding_attention", base_key="rope_local_base_freq", base=LOCAL_BASE)


def _gguf_ropes(config: Config) -> tuple[RopeSpec, RopeSpec]:
    metadata = config.metadata
    if "rope.freq_base" not in metadata:
        raise metadata.missing("rope.freq_base", "the rope base of the full-attention layers")
    local = metadata.number("rope.freq_base_swa", low=1.0, high=1e15, default=LOCAL_BASE)
    return gguf_rope(config, "half"), gguf_rope(config, "half", scaled=False, base=local)


def _hf_scale(config: Config) -> float:
    return 1 / math.sqrt(config.metadata.number("query_pre_attn_scalar", low=1e-6, high=1e9))


def _gguf_scale(config: Config) -> float:
    per_head = config.hidden // config.heads if config.layers == LAYERS_27B else config.head_dim
    return config.metadata.number("attention.scale", low=1e-9, high=1e9, default=1 / math.sqrt(per_head))


def _softcap(config: Config, key: str) -> float | None:
    return config.metadata.number(key, low=0.0, high=1e9, default=0.0) or None


GEMMA3 = Architecture(
    name="gemma3",
    gguf="gemma3",
    model_types=("gemma3_text", "gemma3"),
    classes=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    decoder=decoder,
    tied=True,
    # The text part of a multimodal config.json holds only what differs from these.
    defaults={
        "vocab_size": 262_208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-6,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
    },
    hf_names={
        "attention": {"post_norm": "model.layers.{layer}.post_attention_layernorm.weight"},
        "ffn": {
            "norm": "model.layers.{layer}.pre_feedforward_layernorm.weight",
            "post_norm": "model.layers.{layer}.post_feedforward_layernorm.weight",
        },
    },
)
