"""What each kind of block computes, on a batch's rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from tandem.devices.base import StepBuffers
from tandem.devices.batch import Batch
from tandem.devices.ref.kv import PageView, RefKVPool, sequences_of
from tandem.devices.ref.math import Float32Array, activate, attend, rms_norm, rotate, soft_cap
from tandem.devices.spec import (
    AttentionSpec,
    BlockSpec,
    CombineSpec,
    EmbedSpec,
    FFNSpec,
    HeadSpec,
    Slice,
)
from tandem.errors import DeviceError


@dataclass(frozen=True, slots=True)
class RefBlock:
    """A loaded block. `work` is the block that is computed: `spec`, or the part of it that `slice` is."""

    spec: BlockSpec
    slice: Slice | None
    work: BlockSpec
    weights: Mapping[str, Float32Array]

    @property
    def bytes(self) -> int:
        return sum(weight.nbytes for weight in self.weights.values())


# Told of each product before it is made: the block, the matrix's role, and the rows that meet it.
Observer = Callable[[BlockSpec, str, Float32Array], None]


@dataclass(frozen=True, slots=True)
class Step:
    """What a program's blocks work on; `pools` by layer."""

    batch: Batch
    buffers: StepBuffers
    pools: Mapping[int, RefKVPool]
    observe: Observer | None = None

    @property
    def hidden(self) -> Float32Array:
        return self.buffers.hidden[: self.batch.n_rows]


def run_block(block: RefBlock, step: Step) -> None:
    """Runs one block on the step's rows, in place."""
    match block.work:
        case EmbedSpec() as spec:
            _embed(spec, block.weights, step)
        case AttentionSpec() as spec:
            _add(block, step, _attention(spec, block.weights, step))
        case FFNSpec() as spec:
            _add(block, step, _ffn(spec, block.weights, step))
        case CombineSpec() as spec:
            _combine(spec, block.weights, step)
        case HeadSpec() as spec:
            _head(spec, block.weights, step)


def _embed(spec: EmbedSpec, weights: Mapping[str, Float32Array], step: Step) -> None:
    tokens = step.batch.rows[: step.batch.n_rows, 2]
    slots = step.buffers.slots
    if np.any(tokens < -len(slots)):
        raise DeviceError(f"ref: a row names token slot {-1 - int(tokens.min())} of {len(slots)}")
    if np.any(tokens < 0):
        tokens = np.where(tokens < 0, slots[np.where(tokens < 0, -1 - tokens, 0)], tokens)
    outside = tokens[(tokens < 0) | (tokens >= spec.vocab)]
    if outside.size:
        raise DeviceError(f"ref: token {outside[0]} is not in the vocabulary of {spec.vocab}")
    step.hidden[:] = weights["embedding"][tokens] * np.float32(spec.scale)


def _attention(spec: AttentionSpec, weights: Mapping[str, Float32Array], step: Step) -> Float32Array:
    rows = step.batch.n_rows
    x = rms_norm(step.hidden, weights["norm"], spec.norm)
    q, k, v = (_product(spec, role, weights, x, step) for role in "qkv")
    if spec.qkv_bias:
        q, k, v = q + weights["q_bias"], k + weights["k_bias"], v + weights["v_bias"]
    q = q.reshape(rows, spec.heads, spec.head_dim)
    k = k.reshape(rows, spec.kv_heads, spec.head_dim)
    v = v.reshape(rows, spec.kv_heads, spec.head_dim)
    if spec.qk_norm:
        q = rms_norm(q, weights["q_norm"], spec.qk_norm)
        k = rms_norm(k, weights["k_norm"], spec.qk_norm)
    if spec.rope:
        positions = step.batch.rows[:rows, 1]
        q, k = rotate(q, positions, spec.rope), rotate(k, positions, spec.rope)
    attended = _attend_pages(spec, step, q, k, v)
    return _product(spec, "o", weights, attended.reshape(rows, spec.heads * spec.head_dim), step)


def _attend_pages(spec: AttentionSpec, step: Step, q: Float32Array, k: Float32Array, v: Float32Array) -> Float32Array:
    """Stores the rows' keys and values, then attends to each sequence's pages."""
    sequences = sequences_of(step.batch)
    views = [PageView(step.pools[spec.layer], spec.layer, step.batch, each.index) for each in sequences]
    for sequence, view in zip(sequences, views, strict=True):
        view.write(sequence.start, k[sequence.rows], v[sequence.rows])
    out = np.empty_like(q)
    for sequence, view in zip(sequences, views, strict=True):
        first = 0 if spec.window is None else max(0, sequence.start - spec.window + 1)
        keys, values = view.read(first, sequence.stop)
        out[sequence.rows] = attend(
            spec,
            q[sequence.rows],
            keys,
            values,
            np.arange(sequence.start, sequence.stop, dtype=np.int32),
            np.arange(first, sequence.stop, dtype=np.int32),
        )
    return out


def _ffn(spec: FFNSpec, weights: Mapping[str, Float32Array], step: Step) -> Float32Array:
    x = rms_norm(step.hidden, weights["norm"], spec.norm)
    gate = _product(spec, "gate", weights, x, step)
    gated = activate(gate, spec.activation) * _product(spec, "up", weights, x, step)
    return _product(spec, "down", weights, gated, step)


def _product(
    spec: BlockSpec, role: str, weights: Mapping[str, Float32Array], x: Float32Array, step: Step
) -> Float32Array:
    if step.observe is not None:
        step.observe(spec, role, x)
    return x @ weights[role].T


def _add(block: RefBlock, step: Step, product: Float32Array) -> None:
    """Adds an attention or FFN product to the residual stream; a slice's goes bare to its partials."""
    if block.slice is not None:
        step.buffers.partials[block.slice.index, : step.batch.n_rows] = product
        return
    spec = block.work
    assert isinstance(spec, AttentionSpec | FFNSpec)
    if isinstance(spec, AttentionSpec) and spec.o_bias:
        product = product + block.weights["o_bias"]
    if spec.post_norm:
        product = rms_norm(product, block.weights["post_norm"], spec.post_norm)
    step.hidden[:] += product


def _combine(spec: CombineSpec, weights: Mapping[str, Float32Array], step: Step) -> None:
    partials = step.buffers.partials[: spec.slices, : step.batch.n_rows]
    total = partials[0].copy()
    for partial in partials[1:]:
        total += partial
    if spec.bias:
        total += weights["bias"]
    step.hidden[:] += rms_norm(total, weights["post_norm"], spec.post_norm) if spec.post_norm else total


def _head(spec: HeadSpec, weights: Mapping[str, Float32Array], step: Step) -> None:
    count = step.batch.n_samples
    rows = step.batch.samples[:count, 0]
    if np.any(rows < 0) or np.any(rows >= step.batch.n_rows):
        raise DeviceError(f"batch: a sample names a row outside the batch's {step.batch.n_rows}")
    x = rms_norm(step.hidden[rows], weights["norm"], spec.norm)
    step.buffers.logits[:count] = soft_cap(_product(spec, "output", weights, x, step), spec.softcap)
