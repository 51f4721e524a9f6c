"""Models of known shapes without a file: weights from a seed, in memory, through the normal way of loading.

All matrices are views of one pool of random blocks, each from another start, so that a device holds every one of them
and the host none. Their values are of the size that a trained model's have; what they compute means nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tandem.errors import BenchError
from tandem.weights.checkpoint import Checkpoint
from tandem.weights.tensor import Tensor, TensorType

Bytes = npt.NDArray[np.uint8]

# Bytes of random blocks of which the pool is made, and how far apart matrices begin, in blocks.
_CHUNK = 8 << 20
_APART = 61
# For each type where a block keeps its float16s, with the size that makes weights about 0.02 large.
_SCALES: dict[TensorType, dict[int, float]] = {
    TensorType.Q4_0: {0: 0.004},
    TensorType.Q4_1: {0: 0.004, 2: -0.03},
    TensorType.Q5_0: {0: 0.002},
    TensorType.Q5_1: {0: 0.002, 2: -0.03},
    TensorType.Q8_0: {0: 0.00025},
    TensorType.Q4_K: {0: 0.00015, 2: 0.001},
    TensorType.Q5_K: {0: 0.00008, 2: 0.001},
    TensorType.Q6_K: {208: 0.000015},
}


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder's sizes. scaling: of rope, linear; 0: none."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    window: int
    scaling: float
    vocab: int = 262_144


GEMMA3 = {
    "gemma3-1b": Shape(26, 1152, 6912, 4, 1, 256, 512, 0.0),
    "gemma3-4b": Shape(34, 2560, 10240, 8, 4, 256, 1024, 8.0),
    "gemma3-12b": Shape(48, 3840, 15360, 16, 8, 256, 1024, 8.0),
    "gemma3-27b": Shape(62, 5376, 21504, 32, 16, 128, 1024, 8.0),
}


def synthetic_checkpoint(
    name: str, shape: Shape, type: TensorType, *, context: int = 32_768, seed: int = 0
) -> Checkpoint:
    """A Gemma 3 as a GGUF file would give it, without a tokenizer.

    Raises BenchError for rows that `type` cannot hold.
    """
    shapes = _tensor_shapes(shape)
    matrices = {key: each for key, each in shapes.items() if len(each) == 2}
    for key, (_, columns) in matrices.items():
        if columns % type.block:
            raise BenchError(f"{name}: {key} has rows of {columns}, which {type.name} cannot hold; take Q4_0 or Q8_0")
    sizes = {key: rows * type.row_bytes(columns) for key, (rows, columns) in matrices.items()}
    apart = _APART * type.block_bytes
    pool = _random_blocks(type, max(sizes.values()) + len(sizes) * apart, np.random.default_rng(seed))
    starts = {key: index * apart for index, key in enumerate(sizes)}
    tensors = {
        key: Tensor(key, type, each, pool[starts[key] : starts[key] + sizes[key]]) for key, each in matrices.items()
    }
    for key, each in shapes.items():
        if len(each) == 1:
            tensors[key] = Tensor(key, TensorType.F32, each, np.ones(each, np.float32).view(np.uint8))
    return Checkpoint(Path(f"{name}-{type.name.lower()}"), "gguf", _metadata(name, shape, context), tensors)


def shape_checkpoint(name: str, shape: Shape, type: TensorType, *, context: int = 32_768) -> Checkpoint:
    """The same without weights: for what needs only types and sizes. Its data reads as one byte, and takes no memory.

    Raises BenchError as `synthetic_checkpoint` does.
    """
    tensors = {}
    for key, each in _tensor_shapes(shape).items():
        kind = type if len(each) == 2 else TensorType.F32
        if each[-1] % kind.block:
            raise BenchError(f"{name}: {key} has rows of {each[-1]}, which {kind.name} cannot hold; take Q4_0 or Q8_0")
        size = kind.row_bytes(each[-1]) * (each[0] if len(each) == 2 else 1)
        tensors[key] = Tensor(key, kind, each, np.broadcast_to(np.zeros(1, np.uint8), (size,)))
    return Checkpoint(Path(f"{name}-{type.name.lower()}"), "gguf", _metadata(name, shape, context), tensors)


def _metadata(name: str, shape: Shape, context: int) -> dict[str, Any]:
    values: dict[str, Any] = {
        "block_count": shape.layers,
        "context_length": context,
        "embedding_length": shape.hidden,
        "feed_forward_length": shape.ffn,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "attention.key_length": shape.head_dim,
        "attention.value_length": shape.head_dim,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.sliding_window": shape.window,
        "rope.freq_base": 1e6,
    }
    if shape.scaling:
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": shape.scaling}
    return {
        "general.architecture": "gemma3",
        "general.name": f"{name}, random weights",
        **{f"gemma3.{key}": value for key, value in values.items()},
    }


def _tensor_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    hidden, ffn = shape.hidden, shape.ffn
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm": (hidden,),
        "attn_q": (q, hidden),
        "attn_k": (kv, hidden),
        "attn_v": (kv, hidden),
        "attn_output": (hidden, q),
        "attn_q_norm": (shape.head_dim,),
        "attn_k_norm": (shape.head_dim,),
        "post_attention_norm": (hidden,),
        "ffn_norm": (hidden,),
        "ffn_gate": (ffn, hidden),
        "ffn_up": (ffn, hidden),
        "ffn_down": (hidden, ffn),
        "post_ffw_norm": (hidden,),
    }
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (shape.vocab, hidden), "output_norm.weight": (hidden,)}
    for index in range(shape.layers):
        shapes |= {f"blk.{index}.{key}.weight": each for key, each in layer.items()}
    return shapes


def _random_blocks(type: TensorType, size: int, random: np.random.Generator) -> Bytes:
    """At least `size` bytes of blocks, one chunk of them over and over."""
    if type.block == 1:
        values = random.normal(0, 0.02, _CHUNK // 4).astype(np.float32)
        match type:
            case TensorType.F32:
                chunk = values.view(np.uint8)
            case TensorType.F16:
                chunk = values.astype(np.float16).view(np.uint8)
            case _:
                chunk = (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    else:
        blocks = random.integers(0, 256, (_CHUNK // type.block_bytes, type.block_bytes), dtype=np.uint8)
        for at, scale in _SCALES[type].items():
            drawn = (scale * random.uniform(0.5, 1.5, (len(blocks), 1))).astype(np.float16)
            blocks[:, at : at + 2] = drawn.view(np.uint8)
        chunk = blocks.reshape(-1)
    pool = np.empty(-(-size // chunk.size) * chunk.size, np.uint8)
    pool.reshape(-1, chunk.size)[:] = chunk
    return pool
