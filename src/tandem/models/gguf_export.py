"""A Hugging Face checkpoint as GGUF: names, metadata and values as llama.cpp expects them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tandem.devices.spec import AttentionSpec, FFNSpec
from tandem.errors import ModelFileError, UnsupportedModelError
from tandem.models.names import GGUF_NAMES, GGUF_ROPE_FACTORS, block_kind
from tandem.models.registry import find_architecture
from tandem.models.spec import ModelSpec
from tandem.text.pretokenizers import splitting_name
from tandem.weights.checkpoint import Checkpoint
from tandem.weights.dequantize import dequantize
from tandem.weights.gguf_writer import Value
from tandem.weights.quantize import quantize
from tandem.weights.tensor import Tensor, TensorType

# `tokenizer.ggml.token_type`
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4


@dataclass(frozen=True, slots=True)
class Exported:
    """A tensor as GGUF has it: `source` under the name `name`, its rows in another order where there is one."""

    name: str
    source: Tensor
    order: npt.NDArray[np.int64] | None = None


def export_metadata(checkpoint: Checkpoint, spec: ModelSpec, about: Mapping[str, str]) -> dict[str, Value]:
    """What GGUF says of `checkpoint`, a Hugging Face folder, as if all of it were float32.

    about: `general.*` strings (name, license, …). Raises UnsupportedModelError where GGUF has no place for what the
    model is, ModelFileError where a file is missing.
    """
    metadata: dict[str, Value] = {f"general.{key}": value for key, value in about.items()}
    metadata |= _model_metadata(checkpoint, spec)
    metadata |= {"general.file_type": 0, "general.quantization_version": 2}
    metadata |= _sampling_metadata(checkpoint.files.get("generation_config.json") or {})
    return metadata | _tokenizer_metadata(checkpoint)


def _model_metadata(checkpoint: Checkpoint, spec: ModelSpec) -> dict[str, Value]:
    architecture, _ = find_architecture(checkpoint)
    name = architecture.gguf or "llama"
    attention, ffn = spec.attention[0], spec.ffn[0]
    # The layer without a window, where there is one: its rope is the model's, the sliding layers' has a key of its own.
    full = next((block for block in spec.attention if block.window is None), attention)
    values: dict[str, Value] = {
        "context_length": spec.context,
        "embedding_length": spec.hidden,
        "block_count": spec.layers,
        "feed_forward_length": ffn.ffn,
        "attention.head_count": attention.heads,
        "attention.head_count_kv": attention.kv_heads,
        "attention.key_length": attention.head_dim,
        "attention.value_length": attention.head_dim,
        "attention.layer_norm_rms_epsilon": attention.norm.eps,
        "vocab_size": spec.vocab,
    }
    if attention.scale != attention.head_dim**-0.5:
        values["attention.scale"] = attention.scale
    if full.rope is not None:
        values["rope.dimension_count"] = full.rope.dims
        values["rope.freq_base"] = float(full.rope.base)
        if full.rope.linear_factor != 1.0:
            values["rope.scaling.type"] = "linear"
            values["rope.scaling.factor"] = float(full.rope.linear_factor)
    sliding = [block for block in spec.attention if block.window is not None]
    if sliding and sliding[0].window is not None:
        values["attention.sliding_window"] = sliding[0].window
        if sliding[0].rope is not None and sliding[0].rope != full.rope:
            values["rope.freq_base_swa"] = float(sliding[0].rope.base)
    return {"general.architecture": name} | {f"{name}.{key}": value for key, value in values.items()}


def export_tensors(checkpoint: Checkpoint, spec: ModelSpec) -> Iterator[Exported]:
    """The tensors of a Hugging Face folder under GGUF's names; matrices stay mapped, vectors become float32."""
    tied = spec.tensors[0]["embedding"] == spec.tensors[-1]["output"]
    for block, roles in zip(spec.blocks, spec.tensors, strict=True):
        layer = block.layer if isinstance(block, AttentionSpec | FFNSpec) else 0
        for role, source in roles.items():
            if role == "output" and tied:
                continue
            name = GGUF_NAMES[block_kind(block)][role].format(layer=layer)
            tensor, order = checkpoint.tensors[source], None
            if (
                role in ("q", "k", "q_bias", "k_bias")
                and isinstance(block, AttentionSpec)
                and spec.architecture in ("llama", "mistral")
            ):
                order = _interleaved(tensor.shape[0], block.head_dim)
            if len(tensor.shape) == 2:
                yield Exported(name, tensor, order)
                continue
            values = dequantize(tensor)
            norm = {"norm": "norm", "post_norm": "post_norm", "q_norm": "qk_norm", "k_norm": "qk_norm"}.get(role)
            if norm is not None:
                # GGUF keeps norms with their offset added.
                values += np.float32(getattr(block, norm).offset)
            yield Exported(name, quantize(name, values if order is None else values[order], TensorType.F32))
    rope = spec.attention[0].rope
    if rope is not None and rope.frequency_factors is not None:
        factors = np.asarray(rope.frequency_factors, np.float32)
        yield Exported(GGUF_ROPE_FACTORS, quantize(GGUF_ROPE_FACTORS, factors, TensorType.F32))


def _interleaved(rows: int, head_dim: int) -> npt.NDArray[np.int64]:
    """GGUF keeps Llama's Q and K rows paired for interleaved rope: which row stands where."""
    return np.arange(rows).reshape(-1, 2, head_dim // 2).swapaxes(1, 2).reshape(-1)


def _sampling_metadata(generation: Mapping[str, Any]) -> dict[str, Value]:
    keys = {"temperature": "temp", "top_p": "top_p", "min_p": "min_p"}
    values: dict[str, Value] = {
        f"general.sampling.{gguf}": float(generation[key])
        for key, gguf in keys.items()
        if generation.get(key) is not None
    }
    if generation.get("top_k") is not None:
        values["general.sampling.top_k"] = np.int32(generation["top_k"])
    return values


def _tokenizer_metadata(checkpoint: Checkpoint) -> dict[str, Value]:
    """Byte-level BPE, from `tokenizer.json`."""
    path = checkpoint.path / "tokenizer.json"
    try:
        source = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path}: the tokenizer cannot be read: {error}") from None
    split = splitting_name(source)
    if source["model"]["type"] != "BPE" or split is None:
        raise UnsupportedModelError(
            f"{path}: Tandem knows no name of GGUF's for how this tokenizer splits a text; take the model's "
            "GGUF file in bf16 or f16"
        )
    pieces = {id: piece for piece, id in source["model"]["vocab"].items()}
    types = dict.fromkeys(pieces, _NORMAL)
    for token in source["added_tokens"]:
        pieces[token["id"]] = token["content"]
        types[token["id"]] = _CONTROL if token["special"] else _USER_DEFINED
    merges = [m if isinstance(m, str) else " ".join(m) for m in source["model"]["merges"]]
    config = checkpoint.files.get("tokenizer_config.json") or {}
    ids = {piece: id for id, piece in pieces.items()}
    values: dict[str, Value] = {
        "model": "gpt2",
        "pre": split,
        "tokens": [pieces[id] for id in range(len(pieces))],
        "token_type": np.array([types[id] for id in range(len(pieces))], np.int32),
        "merges": merges,
        "add_bos_token": bool(config.get("add_bos_token", False)),
    }
    names = {"bos": "bos_token", "eos": "eos_token", "padding": "pad_token", "unknown": "unk_token"}
    for gguf, key in names.items():
        if config.get(key) in ids:
            values[f"{gguf}_token_id"] = ids[config[key]]
    ends = (checkpoint.files.get("generation_config.json") or {}).get("eos_token_id")
    turns = [id for id in ends if id != values.get("eos_token_id")] if isinstance(ends, list) else []
    if turns:
        values["eot_token_id"] = turns[0]
    metadata = {f"tokenizer.ggml.{key}": value for key, value in values.items()}
    if "chat_template" in config:
        metadata["tokenizer.chat_template"] = config["chat_template"]
    return metadata
