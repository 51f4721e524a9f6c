"""Llama 2 and 3.x: the plain decoder, with Llama 3's rope scaling."""

from __future__ import annotations

from tandem.models.architecture import Architecture, Decoder
from tandem.models.config import Config, attention_biases, hf_activation, sliding_window
from tandem.models.names import GGUF_ROPE_FACTORS
from tandem.models.rope import rope, with_stored_factors


def decoder(config: Config) -> Decoder:
    metadata = config.metadata
    if metadata.flag("mlp_bias"):
        raise metadata.unsupported("mlp_bias", True, "FFN biases are not supported")
    qkv_bias, o_bias = attention_biases(config)
    # GGUF stores Q and K with the rows of each head interleaved.
    spec = rope(config, gguf_layout="interleaved")
    return Decoder(
        # GGUF files of Mistral models are of this architecture, and may give their window.
        windows=(sliding_window(config) if config.gguf else None,) * config.layers,
        ropes=(with_stored_factors(spec, config.checkpoint) if config.gguf else spec,) * config.layers,
        activation="silu" if config.gguf else hf_activation(config, "hidden_act"),
        qkv_bias=qkv_bias,
        o_bias=o_bias,
    )


LLAMA = Architecture(
    name="llama",
    gguf="llama",
    model_types=("llama",),
    classes=("LlamaForCausalLM", "LLaMAForCausalLM"),
    decoder=decoder,
    own_tensors=(GGUF_ROPE_FACTORS,),
    defaults={"hidden_act": "silu", "rms_norm_eps": 1e-6, "max_position_embeddings": 2048},
)
