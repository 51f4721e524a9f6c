"""What a block is, as data. Devices read these; architectures (`tandem.models`) write them.

A block is one attention block or one FFN block of one layer, its norms and its residual add included; `embed` and
`head` are blocks too. No device has a branch on a model's name: everything an architecture does differently is a
field here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Activation = Literal["silu", "gelu_tanh"]
RopeLayout = Literal["half", "interleaved"]
KVDtype = Literal["f32", "f16", "q8_0"]


@dataclass(frozen=True, slots=True)
class NormSpec:
    """RMS norm in float32: `y = x / sqrt(mean(x^2) + eps) * (offset + w)`. Gemma checkpoints store w around 0."""

    eps: float
    offset: float = 0.0


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position embedding of the first `dims` elements of each head.

    layout: "half" rotates (i, i + dims/2), "interleaved" rotates (2i, 2i + 1).
    linear_factor: positions are divided by it. frequency_factors: one divisor per frequency (dims/2 of them), which is
    how Llama 3's scaling arrives, whether computed from a config or stored in the file.
    """

    base: float
    dims: int
    layout: RopeLayout = "half"
    linear_factor: float = 1.0
    frequency_factors: tuple[float, ...] | None = None

    def inverse_frequencies(self) -> npt.NDArray[np.float32]:
        """Angles per position, shape [dims/2], float32; computed in float64."""
        exponents = np.arange(0, self.dims, 2, dtype=np.float64) / self.dims
        frequencies = self.base**-exponents / self.linear_factor
        if self.frequency_factors is not None:
            frequencies /= np.asarray(self.frequency_factors, dtype=np.float64)
        return frequencies.astype(np.float32)


@dataclass(frozen=True, slots=True)
class EmbedSpec:
    """hidden[row] = embedding[token[row]] * scale. Weights: `embedding` [vocab, hidden]."""

    vocab: int
    hidden: int
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """hidden += post_norm(o(attention(rope(qk_norm(qkv(norm(hidden))))))).

    Weights: `norm` [hidden], `q` [heads*head_dim, hidden], `k`, `v` [kv_heads*head_dim, hidden], `o` [hidden,
    heads*head_dim]; with qk_norm `q_norm`, `k_norm` [head_dim]; with post_norm `post_norm` [hidden]; with qkv_bias
    `q_bias`, `k_bias`, `v_bias`; with o_bias `o_bias`.
    window: a query at position p sees keys of positions (p - window, p]; None sees all.
    softcap: scores become softcap * tanh(scores / softcap) before the softmax.
    """

    layer: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    norm: NormSpec
    rope: RopeSpec | None
    qk_norm: NormSpec | None = None
    post_norm: NormSpec | None = None
    window: int | None = None
    softcap: float | None = None
    qkv_bias: bool = False
    o_bias: bool = False


@dataclass(frozen=True, slots=True)
class FFNSpec:
    """hidden += post_norm(down(activation(gate(norm(hidden))) * up(norm(hidden)))).

    Weights: `norm` [hidden], `gate`, `up` [ffn, hidden], `down` [hidden, ffn]; with post_norm `post_norm` [hidden].
    """

    layer: int
    hidden: int
    ffn: int
    activation: Activation
    norm: NormSpec
    post_norm: NormSpec | None = None


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """logits[sample] = output(norm(hidden[row of sample])), only for rows that are sampled.

    Weights: `norm` [hidden], `output` [vocab, hidden]. softcap as in AttentionSpec, on the logits.
    """

    vocab: int
    hidden: int
    norm: NormSpec
    softcap: float | None = None


@dataclass(frozen=True, slots=True)
class CombineSpec:
    """hidden += post_norm(partials[0] + ... + partials[slices - 1] + bias), added in slice order.

    The owner's part of a block that was sliced; `layer` is that block's. Weights: with post_norm `post_norm` [hidden];
    with bias `bias` [hidden].
    """

    layer: int
    hidden: int
    slices: int
    post_norm: NormSpec | None = None
    bias: bool = False


BlockSpec = EmbedSpec | AttentionSpec | FFNSpec | HeadSpec | CombineSpec


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of a block: FFN columns [start, stop), or the KV heads [start, stop) with their query heads.

    A sliced block writes its bare partial product, without post-norm, residual or bias, to
    `StepBuffers.partials[index]`; the block's owner (`CombineSpec`) adds the partials in slice order. Bounds must be
    multiples of 32 columns and of the weights' quantization block (or whole KV heads), so that no packed row group and
    no block is cut.
    """

    index: int
    start: int
    stop: int
