"""What every device checks when it links: the buffers fit the block, and an attention block has its KV pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from tandem.devices.base import KVPool, StepBuffers
from tandem.devices.spec import AttentionSpec, BlockSpec, CombineSpec, HeadSpec, Slice
from tandem.devices.weights_check import block_name
from tandem.errors import DeviceError

Pool = TypeVar("Pool", bound=KVPool)


def check_buffers(device: str, spec: BlockSpec, slice: Slice | None, buffers: StepBuffers, rows: int) -> None:
    """Raises DeviceError where a buffer that the block reads or writes is too small or of another width."""
    name = f"{device}: {block_name(spec)}"
    if rows > len(buffers.hidden):
        raise DeviceError(f"{name} linked for {rows} rows needs as many in `hidden`, not {len(buffers.hidden)}")
    slices = slice.index + 1 if slice else 0
    if isinstance(spec, CombineSpec):
        slices = spec.slices
    if slices and (len(buffers.partials) < slices or buffers.partials.shape[1:] != buffers.hidden.shape):
        raise DeviceError(f"{name} needs `partials` of {slices} slices, each shaped as `hidden`")
    if buffers.hidden.shape[1] != spec.hidden:
        raise DeviceError(f"{name} works on rows of {spec.hidden}, not {buffers.hidden.shape[1]}")
    if isinstance(spec, HeadSpec) and buffers.logits.shape[1] != spec.vocab:
        raise DeviceError(f"{name} writes logits of {spec.vocab}, not {buffers.logits.shape[1]}")


def pool_of(device: str, spec: AttentionSpec, pools: Sequence[Pool]) -> Pool:
    """The pool that holds the block's layer. Raises DeviceError where there is none, or one of another shape."""
    name = f"{device}: {block_name(spec)}"
    for pool in pools:
        if spec.layer in pool.group.layers:
            shape = (pool.group.kv_heads, pool.group.head_dim, pool.group.window)
            expected = (spec.kv_heads, spec.head_dim, spec.window)
            if shape != expected:
                raise DeviceError(f"{name} needs KV pages of (heads, head size, window) {expected}, not {shape}")
            return pool
    raise DeviceError(f"{name} has no KV pool")
