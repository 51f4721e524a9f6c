"""The arithmetic of a decoder in numpy float32, written to be read."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tandem.devices.spec import Activation, AttentionSpec, NormSpec, RopeSpec

Float32Array = npt.NDArray[np.float32]
Positions = npt.NDArray[np.int32]


def rms_norm(x: Float32Array, weight: Float32Array, norm: NormSpec) -> Float32Array:
    """Normalizes the last axis of x and scales it by offset + weight."""
    mean_square = np.mean(np.square(x), axis=-1, keepdims=True, dtype=np.float32)
    root = np.sqrt(mean_square + np.float32(norm.eps))
    normalized: Float32Array = np.divide(x, root, dtype=np.float32)
    return normalized * (np.float32(norm.offset) + weight)


def rotate(x: Float32Array, positions: Positions, rope: RopeSpec) -> Float32Array:
    """Rotary embedding (Su et al., 2021) of x [rows, heads, head_dim]; elements past `rope.dims` stay."""
    angles = positions.astype(np.float32)[:, None] * rope.inverse_frequencies()
    cos, sin = np.cos(angles)[:, None, :], np.sin(angles)[:, None, :]
    half = rope.dims // 2
    if rope.layout == "half":
        first, second = slice(0, half), slice(half, rope.dims)
    else:
        first, second = slice(0, rope.dims, 2), slice(1, rope.dims, 2)
    out = x.copy()
    out[..., first] = x[..., first] * cos - x[..., second] * sin
    out[..., second] = x[..., second] * cos + x[..., first] * sin
    return out


def activate(x: Float32Array, activation: Activation) -> Float32Array:
    """SiLU, or GELU in its tanh form (Hendrycks and Gimpel, 2016)."""
    # exp overflows to infinity far below zero, where the quotient is rightly zero.
    with np.errstate(over="ignore"):
        if activation == "silu":
            silu: Float32Array = np.divide(x, np.float32(1) + np.exp(-x), dtype=np.float32)
            return silu
        inner = np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x * x * x)
        gelu: Float32Array = np.multiply(np.float32(0.5) * x, np.float32(1) + np.tanh(inner), dtype=np.float32)
        return gelu


def soft_cap(x: Float32Array, cap: float | None) -> Float32Array:
    if cap is None:
        return x
    capped: Float32Array = np.multiply(np.float32(cap), np.tanh(x / np.float32(cap)), dtype=np.float32)
    return capped


def attend(
    spec: AttentionSpec,
    queries: Float32Array,
    keys: Float32Array,
    values: Float32Array,
    query_positions: Positions,
    key_positions: Positions,
) -> Float32Array:
    """Causal attention of one sequence, windowed as `spec` says.

    queries [n, heads, head_dim]; keys, values [m, kv_heads, head_dim]; the result has the queries' shape.
    """
    distance = query_positions[:, None] - key_positions[None, :]
    visible = distance >= 0
    if spec.window is not None:
        visible &= distance < spec.window
    group = spec.heads // spec.kv_heads
    out = np.empty_like(queries)
    for head in range(spec.heads):
        scores = queries[:, head] @ keys[:, head // group].T * np.float32(spec.scale)
        scores = np.where(visible, soft_cap(scores, spec.softcap), np.float32(-np.inf))
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        out[:, head] = weights @ values[:, head // group]
    return out
