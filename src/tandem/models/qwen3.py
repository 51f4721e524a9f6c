"""Qwen3: QK-norm, a head size of its own, no biases unless the config asks for them."""

from __future__ import annotations

from tandem.models.architecture import Architecture, Decoder
from tandem.models.config import Config, attention_biases, hf_activation
from tandem.models.qwen2 import DEFAULTS, windows
from tandem.models.rope import rope


def decoder(config: Config) -> Decoder:
    qkv_bias, o_bias = attention_biases(config)
    return Decoder(
        windows=windows(config),
        ropes=(rope(config),) * config.layers,
        activation="silu" if config.gguf else hf_activation(config, "hidden_act"),
        qk_norm=True,
        qkv_bias=qkv_bias,
        o_bias=o_bias,
    )


QWEN3 = Architecture(
    name="qwen3",
    gguf="qwen3",
    model_types=("qwen3",),
    classes=("Qwen3ForCausalLM",),
    decoder=decoder,
    defaults={**DEFAULTS, "head_dim": 128},
)
