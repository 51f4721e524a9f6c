"""What a model's files hold, as plain JSON values."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tandem.devices.spec import AttentionSpec, RopeSpec
from tandem.models.generation import sampling_defaults
from tandem.models.spec import ModelSpec
from tandem.text.tokenizer import Tokenizer
from tandem.weights.checkpoint import Checkpoint
from tandem.weights.gguf import PART_NAME
from tandem.weights.tensor import Tensor


def describe_model(checkpoint: Checkpoint, spec: ModelSpec, tokenizer: Tokenizer) -> dict[str, Any]:
    """Everything but the memory plan. Sizes are bytes; one entry of `attention` per kind of layer."""
    files = {path.name: path.stat().st_size for path in _files(checkpoint)}
    ffn = spec.ffn[0]
    tensors = _distinct(checkpoint)
    embedding, output = (
        checkpoint.tensors[spec.tensors[block][role]] for block, role in ((0, "embedding"), (-1, "output"))
    )
    return {
        "name": spec.name,
        "path": str(checkpoint.path),
        "format": checkpoint.format,
        "files": files,
        "file_bytes": sum(files.values()),
        "architecture": spec.architecture,
        "parameters": sum(tensor.elements for tensor in tensors),
        "context": spec.context,
        "vocab": spec.vocab,
        "hidden": spec.hidden,
        "layers": spec.layers,
        "attention": _attention(spec.attention),
        "ffn": {"size": ffn.ffn, "activation": ffn.activation},
        "norm": {"eps": ffn.norm.eps, "offset": ffn.norm.offset, "post_norms": ffn.post_norm is not None},
        "embedding_scale": spec.embed.scale,
        "tied_embedding": _address(embedding) == _address(output),
        "logit_softcap": spec.head.softcap,
        "tensor_types": _types(tensors),
        "skipped": dict(Counter(checkpoint.skipped.values())),
        "tokenizer": {
            "kind": _tokenizer_kind(checkpoint),
            "tokens": tokenizer.vocab_size,
            "bos_id": tokenizer.bos_id,
            "eos_ids": sorted(tokenizer.eos_ids),
            "chat_templates": sorted(tokenizer.chat_templates),
        },
        "sampling_defaults": sampling_defaults(checkpoint),
    }


def describe_tensors(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Every tensor, in the file's order; shapes are row-major."""
    return [
        {"name": name, "type": tensor.type.name, "shape": list(tensor.shape), "bytes": tensor.nbytes}
        for name, tensor in checkpoint.tensors.items()
    ]


def _files(checkpoint: Checkpoint) -> list[Path]:
    path = checkpoint.path
    if path.is_dir():
        return sorted(path.glob("*.safetensors"))
    part = PART_NAME.fullmatch(path.name)
    if part is None:
        return [path]
    return sorted(path.parent.glob(f"{part['prefix']}-*-of-{part['count']}{path.suffix}"))


def _attention(layers: Iterable[AttentionSpec]) -> list[dict[str, Any]]:
    kinds: dict[tuple[Any, ...], dict[str, Any]] = {}
    for layer in layers:
        key = (layer.window, layer.heads, layer.kv_heads, layer.head_dim, layer.rope, layer.softcap)
        if key not in kinds:
            kinds[key] = {
                "layers": 0,
                "window": layer.window,
                "heads": layer.heads,
                "kv_heads": layer.kv_heads,
                "head_dim": layer.head_dim,
                "scale": layer.scale,
                "qk_norm": layer.qk_norm is not None,
                "qkv_bias": layer.qkv_bias,
                "softcap": layer.softcap,
                "rope": _rope(layer.rope),
            }
        kinds[key]["layers"] += 1
    return list(kinds.values())


def _rope(rope: RopeSpec | None) -> dict[str, Any] | None:
    if rope is None:
        return None
    return {
        "base": rope.base,
        "dims": rope.dims,
        "linear_factor": rope.linear_factor,
        "frequency_factors": rope.frequency_factors is not None,
    }


def _address(tensor: Tensor) -> int:
    return tensor.data.ctypes.data


def _distinct(checkpoint: Checkpoint) -> list[Tensor]:
    """Tensors without aliases: a tied matrix that the file holds under one name appears under two."""
    return list({_address(tensor): tensor for tensor in checkpoint.tensors.values()}.values())


def _types(tensors: Iterable[Tensor]) -> dict[str, dict[str, int]]:
    """Tensors and bytes by type, the one with the most bytes first."""
    types: dict[str, dict[str, int]] = {}
    for tensor in tensors:
        entry = types.setdefault(tensor.type.name, {"tensors": 0, "bytes": 0})
        entry["tensors"] += 1
        entry["bytes"] += tensor.nbytes
    return dict(sorted(types.items(), key=lambda item: -item[1]["bytes"]))


def _tokenizer_kind(checkpoint: Checkpoint) -> str:
    if checkpoint.format == "gguf":
        keys = ("tokenizer.ggml.model", "tokenizer.ggml.pre")
        return ", ".join(str(checkpoint.metadata[key]) for key in keys if key in checkpoint.metadata)
    source = json.loads((checkpoint.path / "tokenizer.json").read_text(encoding="utf-8"))
    return str(source["model"]["type"])
