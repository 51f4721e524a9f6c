"""Where each block's weights are found: role to tensor name, in both worlds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from tandem.devices.spec import AttentionSpec, BlockSpec, EmbedSpec, FFNSpec

Kind = Literal["embed", "attention", "ffn", "head"]
NameTable = Mapping[Kind, Mapping[str, str]]

GGUF_NAMES: NameTable = {
    "embed": {"embedding": "token_embd.weight"},
    "attention": {
        "norm": "blk.{layer}.attn_norm.weight",
        "q": "blk.{layer}.attn_q.weight",
        "k": "blk.{layer}.attn_k.weight",
        "v": "blk.{layer}.attn_v.weight",
        "o": "blk.{layer}.attn_output.weight",
        "q_bias": "blk.{layer}.attn_q.bias",
        "k_bias": "blk.{layer}.attn_k.bias",
        "v_bias": "blk.{layer}.attn_v.bias",
        "o_bias": "blk.{layer}.attn_output.bias",
        "q_norm": "blk.{layer}.attn_q_norm.weight",
        "k_norm": "blk.{layer}.attn_k_norm.weight",
        "post_norm": "blk.{layer}.post_attention_norm.weight",
    },
    "ffn": {
        "norm": "blk.{layer}.ffn_norm.weight",
        "gate": "blk.{layer}.ffn_gate.weight",
        "up": "blk.{layer}.ffn_up.weight",
        "down": "blk.{layer}.ffn_down.weight",
        "post_norm": "blk.{layer}.post_ffw_norm.weight",
    },
    "head": {"norm": "output_norm.weight", "output": "output.weight"},
}

HF_NAMES: NameTable = {
    "embed": {"embedding": "model.embed_tokens.weight"},
    "attention": {
        "norm": "model.layers.{layer}.input_layernorm.weight",
        "q": "model.layers.{layer}.self_attn.q_proj.weight",
        "k": "model.layers.{layer}.self_attn.k_proj.weight",
        "v": "model.layers.{layer}.self_attn.v_proj.weight",
        "o": "model.layers.{layer}.self_attn.o_proj.weight",
        "q_bias": "model.layers.{layer}.self_attn.q_proj.bias",
        "k_bias": "model.layers.{layer}.self_attn.k_proj.bias",
        "v_bias": "model.layers.{layer}.self_attn.v_proj.bias",
        "o_bias": "model.layers.{layer}.self_attn.o_proj.bias",
        "q_norm": "model.layers.{layer}.self_attn.q_norm.weight",
        "k_norm": "model.layers.{layer}.self_attn.k_norm.weight",
    },
    "ffn": {
        "norm": "model.layers.{layer}.post_attention_layernorm.weight",
        "gate": "model.layers.{layer}.mlp.gate_proj.weight",
        "up": "model.layers.{layer}.mlp.up_proj.weight",
        "down": "model.layers.{layer}.mlp.down_proj.weight",
    },
    "head": {"norm": "model.norm.weight", "output": "lm_head.weight"},
}

GGUF_ROPE_FACTORS = "rope_freqs.weight"


def tensor_name(table: NameTable, differences: NameTable, kind: Kind, role: str, layer: int = 0) -> str:
    """The name of a role's tensor: as an architecture's `differences` say, or else the common `table`."""
    template = differences.get(kind, {}).get(role) or table[kind][role]
    return template.format(layer=layer)


def block_kind(block: BlockSpec) -> Kind:
    if isinstance(block, EmbedSpec):
        return "embed"
    if isinstance(block, AttentionSpec):
        return "attention"
    return "ffn" if isinstance(block, FFNSpec) else "head"
