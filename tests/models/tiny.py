"""Writes tiny models as Hugging Face folders and GGUF files, without the code under test.

Weights follow from a seed and each tensor's name, so that golden tests need only store logits: uniform
numbers from Philox's raw output (which numpy guarantees never to change), scaled to what the tensor does.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from models.cases import Case

Floats = npt.NDArray[np.float32]
Weights = dict[str, Floats]

GGUF_ARCHITECTURES = {
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a Hugging Face checkpoint of this config."""
    kind, hidden, ffn = config["model_type"], config["hidden_size"], config["intermediate_size"]
    head_dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, keys = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    norms = ["input_layernorm", "post_attention_layernorm"]
    if kind == "gemma3_text":
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        matrices = {"q": (queries, hidden), "k": (keys, hidden), "v": (keys, hidden), "o": (hidden, queries)}
        for role, shape in matrices.items():
            found[f"{prefix}self_attn.{role}_proj.weight"] = shape
            if config.get("attention_bias") or (kind == "qwen2" and role != "o"):
                found[f"{prefix}self_attn.{role}_proj.bias"] = shape[:1]
        if kind in ("gemma3_text", "qwen3"):
            found[f"{prefix}self_attn.q_norm.weight"] = (head_dim,)
            found[f"{prefix}self_attn.k_norm.weight"] = (head_dim,)
        for role, shape in {"gate": (ffn, hidden), "up": (ffn, hidden), "down": (hidden, ffn)}.items():
            found[f"{prefix}mlp.{role}_proj.weight"] = shape
        found |= {f"{prefix}{norm}.weight": (hidden,) for norm in norms}
    found["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (config["vocab_size"], hidden)
    return found


def weights(case: Case) -> Weights:
    """Float32 weights by name; the same on every machine and with every version of numpy."""
    gemma = case.config["model_type"] == "gemma3_text"
    made = {}
    for name, shape in shapes(case.config).items():
        values = uniform(name, shape, case.seed)
        if "norm" in name:
            values = np.float32(0.0 if gemma else 1.0) + np.float32(0.3) * values
        elif name.endswith("bias"):
            values *= np.float32(0.5)
        elif "embed_tokens" not in name or gemma:
            # Gemma scales its embeddings by sqrt(hidden).
            values *= np.float32(1.5 / math.sqrt(shape[-1]))
        for part, gain in case.gains.items():
            values *= np.float32(gain if part in name else 1.0)
        made[name] = values
    return made


def uniform(name: str, shape: tuple[int, ...], seed: int) -> Floats:
    """Uniform numbers of variance 1: 24 bits of raw Philox output with key (seed, CRC-32 of the name)."""
    key = np.array([seed, zlib.crc32(name.encode())], dtype=np.uint64)
    raw = np.random.Philox(key=key).random_raw(math.prod(shape)) >> np.uint64(40)
    unit = raw.astype(np.float32) * np.float32(2.0**-23) - np.float32(1)
    return (unit * np.float32(math.sqrt(3))).reshape(shape)


def write_hf(folder: Path, config: Mapping[str, Any], tensors: Weights) -> Path:
    """`config.json` and one F32 safetensors file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, values in tensors.items():
        header[name] = {
            "dtype": "F32",
            "shape": values.shape,
            "data_offsets": [offset, offset + values.nbytes],
        }
        offset += values.nbytes
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for values in tensors.values():
            file.write(values.tobytes())
    return folder


def write_gguf(path: Path, config: Mapping[str, Any], tensors: Weights) -> Path:
    """An F32 GGUF file as llama.cpp's converter makes it: its keys, its names, its changes to weights."""
    architecture = GGUF_ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    write_gguf_metadata(writer, config)
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    for name, values in tensors.items():
        if config["model_type"] == "gemma3_text" and name.endswith("norm.weight"):
            values = values + np.float32(1)
        if architecture is gguf.MODEL_ARCH.LLAMA and (".q_proj." in name or ".k_proj." in name):
            heads = config["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"]
            values = interleave(values, heads)
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert target is not None, name
        writer.add_tensor(target, np.ascontiguousarray(values))
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(rope, config["head_dim"]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_gguf_metadata(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    writer.add_name("tiny")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if "head_dim" in config:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    ropes = config.get("rope_parameters") or config.get("rope_scaling") or {}
    full = ropes.get("full_attention", ropes)
    writer.add_rope_freq_base(full.get("rope_theta", config.get("rope_theta")))
    if full.get("rope_type", full.get("type")) == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(full["factor"])
    if config["model_type"] == "gemma3_text":
        if config.get("final_logit_softcapping"):
            writer.add_final_logit_softcapping(config["final_logit_softcapping"])
        if local := config.get("rope_local_base_freq"):
            writer.add_rope_freq_base_swa(local)
        if pattern := config.get("sliding_window_pattern"):
            writer.add_sliding_window_pattern(pattern)
    if config["model_type"] in ("gemma3_text", "mistral") and config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])


def interleave(values: Floats, heads: int) -> Floats:
    """Rows of each head from (first halves, second halves) to (pair after pair)."""
    head_dim = len(values) // heads
    order = np.arange(head_dim).reshape(2, head_dim // 2).T.reshape(-1)
    rows = (np.arange(heads)[:, None] * head_dim + order).reshape(-1)
    return values[rows]


def llama3_factors(rope: Mapping[str, Any], dims: int) -> Floats:
    """What GGUF stores for Llama 3's rope: 1, the factor, or something between, by wavelength."""
    low, high, trained = (
        rope["low_freq_factor"],
        rope["high_freq_factor"],
        rope["original_max_position_embeddings"],
    )
    wavelengths = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, dims, 2) / dims)
    smooth = (trained / wavelengths - low) / (high - low)
    between = 1 / ((1 - smooth) / rope["factor"] + smooth)
    factors = np.where(wavelengths < trained / high, 1.0, between)
    return np.where(wavelengths > trained / low, rope["factor"], factors).astype(np.float32)
