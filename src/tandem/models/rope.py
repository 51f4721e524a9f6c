"""Rotary embeddings as both worlds describe them."""

from __future__ import annotations

import math

import numpy as np

from tandem.devices.spec import RopeLayout, RopeSpec
from tandem.devices.weights_check import check_tensor
from tandem.errors import ModelFileError
from tandem.models.config import MAX_CONTEXT, Config
from tandem.models.metadata import Metadata
from tandem.models.names import GGUF_ROPE_FACTORS
from tandem.weights.checkpoint import Checkpoint
from tandem.weights.dequantize import dequantize

MAX_BASE = 1e15
MAX_FACTOR = 1e6


def rope(config: Config, *, gguf_layout: RopeLayout = "half") -> RopeSpec:
    """The rotary embedding of a model that has only one."""
    return gguf_rope(config, gguf_layout) if config.gguf else hf_rope(config, "full_attention")


def gguf_rope(config: Config, layout: RopeLayout, *, scaled: bool = True, base: float | None = None) -> RopeSpec:
    """`scaled`: with the file's linear scaling. `base`: instead of the file's frequency base."""
    metadata = config.metadata
    dims = metadata.integer("rope.dimension_count", low=2, high=config.head_dim, default=config.head_dim)
    if dims % 2:
        raise metadata.invalid("rope.dimension_count", dims, "an even number")
    if metadata.number("rope.scaling.attn_factor", low=0.0, high=MAX_FACTOR, default=1.0) != 1.0:
        raise metadata.unsupported("rope.scaling.attn_factor", metadata.get("rope.scaling.attn_factor"), "supported: 1")
    return RopeSpec(
        base=_base(metadata, "rope.freq_base", 10000.0) if base is None else base,
        dims=dims,
        layout=layout,
        linear_factor=_gguf_linear_factor(metadata) if scaled else 1.0,
    )


def with_stored_factors(rope: RopeSpec, checkpoint: Checkpoint) -> RopeSpec:
    """`rope` with the frequency divisors that a Llama 3 GGUF file stores as a tensor, if it does."""
    tensor = checkpoint.tensors.get(GGUF_ROPE_FACTORS)
    if tensor is None:
        return rope
    check_tensor(tensor, (rope.dims // 2,), str(checkpoint.path))
    factors = dequantize(tensor)
    if not (np.isfinite(factors).all() and (factors > 0).all()):
        raise ModelFileError(f"{checkpoint.path}: tensor '{GGUF_ROPE_FACTORS}' must hold positive numbers")
    return RopeSpec(rope.base, rope.dims, rope.layout, rope.linear_factor, tuple(float(factor) for factor in factors))


def hf_rope(config: Config, kind: str, *, base_key: str = "rope_theta", base: float = 10000.0) -> RopeSpec:
    """The rotary embedding of layers of `kind` ("full_attention" or "sliding_attention").

    Two dialects: `rope_parameters` (transformers 5), flat or with a table for each kind; `rope_theta` and
    `rope_scaling` (4.x). Scaling given flat belongs to the full-attention layers. `base_key`, `base`: where
    the base is when the table has none, and its default.
    """
    metadata = config.metadata
    table = metadata.table("rope_parameters")
    nested = table is not None and ("full_attention" in table or "sliding_attention" in table)
    if table is not None and nested:
        table = table.table(kind)
    elif kind != "full_attention":
        table = None
    if kind == "full_attention" and (scaling := metadata.table("rope_scaling")) is not None:
        table = scaling
    fallback = _base(metadata, base_key, base)
    if table is None:
        table = Metadata({}, str(config.checkpoint.path))
    for source in (metadata, table):
        if source.number("partial_rotary_factor", low=0.0, high=1.0, default=1.0) != 1.0:
            raise source.unsupported(
                "partial_rotary_factor", source.get("partial_rotary_factor"), "the whole head must be rotated"
            )
    spec = RopeSpec(base=_base(table, "rope_theta", fallback), dims=config.head_dim)
    type_key = "rope_type" if "rope_type" in table else "type"
    match table.text(type_key) if type_key in table else "default":
        case "default":
            return spec
        case "linear":
            return RopeSpec(spec.base, spec.dims, linear_factor=_factor(table))
        case "llama3":
            return RopeSpec(spec.base, spec.dims, frequency_factors=_llama3_factors(config, table, spec))
        case other:
            raise table.unsupported(type_key, other, "supported: default, linear, llama3")


def _llama3_factors(config: Config, table: Metadata, rope: RopeSpec) -> tuple[float, ...]:
    """One divisor per frequency: 1 for short wavelengths, the factor for long ones, smooth in between.

    Meta's rule for Llama 3.1, as in transformers' `_compute_llama3_parameters`.
    """
    factor = _factor(table)
    low = table.number("low_freq_factor", low=1e-6, high=MAX_FACTOR)
    high = table.number("high_freq_factor", low=1e-6, high=MAX_FACTOR)
    if high <= low:
        raise table.invalid("high_freq_factor", high, f"more than low_freq_factor, {low:g}")
    trained = table.integer("original_max_position_embeddings", high=MAX_CONTEXT, default=config.context)
    factors = []
    for frequency in rope.base ** -(np.arange(0, rope.dims, 2, dtype=np.float64) / rope.dims):
        periods = trained * frequency / (2 * math.pi)
        smooth = min(max((periods - low) / (high - low), 0.0), 1.0)
        factors.append(float(1 / ((1 - smooth) / factor + smooth)))
    return tuple(factors)


def _gguf_linear_factor(metadata: Metadata) -> float:
    key = "rope.scaling.type"
    kind = metadata.text(key) if key in metadata else "linear"
    if kind == "none":
        return 1.0
    if kind != "linear":
        raise metadata.unsupported(key, kind, "supported: none, linear")
    for factor_key in ("rope.scaling.factor", "rope.scale_linear"):
        if factor_key in metadata:
            # llama.cpp reads a factor of 0 as "not scaled".
            return metadata.number(factor_key, low=0.0, high=MAX_FACTOR) or 1.0
    return 1.0


def _base(metadata: Metadata, key: str, default: float) -> float:
    return metadata.number(key, low=1.0, high=MAX_BASE, default=default)


def _factor(table: Metadata) -> float:
    return table.number("factor", low=1e-3, high=MAX_FACTOR)
