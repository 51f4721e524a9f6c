"""Mistral: Llama with a sliding window in every layer, null in later versions. GGUF files say `llama`."""

from __future__ import annotations

from tandem.models.architecture import Architecture, Decoder
from tandem.models.config import Config, hf_activation, sliding_window
from tandem.models.rope import rope


def decoder(config: Config) -> Decoder:
    return Decoder(
        windows=(sliding_window(config),) * config.layers,
        ropes=(rope(config),) * config.layers,
        activation=hf_activation(config, "hidden_act"),
    )


MISTRAL = Architecture(
    name="mistral",
    model_types=("mistral",),
    classes=("MistralForCausalLM",),
    decoder=decoder,
    defaults={
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131_072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
)
