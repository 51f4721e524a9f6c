"""Checkpoints with the metadata and tensor shapes of real models and no data: what `model_spec` needs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from models.tiny import GGUF_ARCHITECTURES, shapes, write_gguf_metadata
from tandem.weights.checkpoint import Checkpoint
from tandem.weights.tensor import Tensor, TensorType

Shapes = Mapping[str, tuple[int, ...]]


def tensors(shapes: Shapes) -> dict[str, Tensor]:
    return {
        name: Tensor(name, TensorType.F32, shape, np.broadcast_to(np.zeros(1, np.uint8), 4 * math.prod(shape)))
        for name, shape in shapes.items()
    }


def hf_checkpoint(config: Mapping[str, Any], full: Mapping[str, Any] | None = None) -> Checkpoint:
    """`full`: the config with every key that shapes depend on, where `config` leaves some to defaults."""
    return Checkpoint(Path("model"), "safetensors", config, tensors(shapes(full or config)))


def gguf_checkpoint(config: Mapping[str, Any]) -> Checkpoint:
    """The GGUF form of a Hugging Face config, with llama.cpp's keys and names."""
    architecture = GGUF_ARCHITECTURES[config["model_type"]]
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    renamed = {
        names.get_name(name, try_suffixes=(".weight", ".bias")) or name: shape for name, shape in shapes(config).items()
    }
    writer = gguf.GGUFWriter(None, gguf.MODEL_ARCH_NAMES[architecture])
    write_gguf_metadata(writer, config)
    metadata = {key: value.value for key, value in writer.kv_data[0].items()}
    return Checkpoint(Path("model.gguf"), "gguf", metadata, tensors(renamed))
