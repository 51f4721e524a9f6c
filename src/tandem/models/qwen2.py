"""Qwen2 and Qwen2.5: biases on Q, K and V; sliding windows in the upper layers of some configurations."""

from __future__ import annotations

from tandem.models.architecture import Architecture, Decoder
from tandem.models.config import MAX_LAYERS, Config, hf_activation, hf_layer_windows, sliding_window
from tandem.models.rope import rope

DEFAULTS = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32_768,
    "num_key_value_heads": 32,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


def decoder(config: Config) -> Decoder:
    return Decoder(
        windows=windows(config),
        ropes=(rope(config),) * config.layers,
        activation="silu" if config.gguf else hf_activation(config, "hidden_act"),
        qkv_bias=True,
    )


def windows(config: Config) -> tuple[int | None, ...]:
    """A window where `use_sliding_window` asks for it, from layer `max_window_layers` up; never in GGUF."""
    if config.gguf:
        return (None,) * config.layers
    window = sliding_window(config) if config.metadata.flag("use_sliding_window") else None
    first = config.metadata.integer("max_window_layers", low=0, high=MAX_LAYERS)
    return hf_layer_windows(config, window, lambda layer: window is not None and layer >= first)


QWEN2 = Architecture(
    name="qwen2",
    gguf="qwen2",
    model_types=("qwen2",),
    classes=("Qwen2ForCausalLM",),
    decoder=decoder,
    defaults=DEFAULTS,
)
