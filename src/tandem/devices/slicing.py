"""Cutting a block: the part of its spec and of its packed weights that one slice computes with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from tandem.devices.spec import AttentionSpec, BlockSpec, CombineSpec, FFNSpec, Slice
from tandem.devices.weights_check import block_name, check_weights
from tandem.errors import DeviceError
from tandem.weights.tensor import Tensor

# Applied by the block's owner after adding the partials.
_OWNER_ROLES = frozenset({"post_norm", "o_bias"})


def slice_spec(spec: BlockSpec, slice: Slice) -> AttentionSpec | FFNSpec:
    """The block that a slice is: fewer heads or columns, no post-norm and no output bias.

    Raises DeviceError for a block that cannot be sliced, or bounds outside it.
    """
    match spec:
        case AttentionSpec():
            _check_bounds(spec, slice, spec.kv_heads, "KV heads")
            kv_heads = slice.stop - slice.start
            heads = spec.heads // spec.kv_heads * kv_heads
            return replace(spec, heads=heads, kv_heads=kv_heads, post_norm=None, o_bias=False)
        case FFNSpec():
            _check_bounds(spec, slice, spec.ffn, "columns")
            return replace(spec, ffn=slice.stop - slice.start, post_norm=None)
        case _:
            raise DeviceError(f"{block_name(spec)} cannot be sliced; attention and FFN blocks can")


def combine_spec(spec: AttentionSpec | FFNSpec, slices: int) -> CombineSpec:
    """What the owner of a block does with the partials of its `slices` slices."""
    bias = isinstance(spec, AttentionSpec) and spec.o_bias
    return CombineSpec(spec.layer, spec.hidden, slices, spec.post_norm, bias)


def combine_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The owner's weights of a sliced block, under the roles of `CombineSpec`."""
    names = {"post_norm": "post_norm", "o_bias": "bias"}
    return {names[role]: tensor for role, tensor in weights.items() if role in _OWNER_ROLES}


def headers(
    blocks: Sequence[tuple[BlockSpec, Mapping[str, Tensor], Slice | None]],
) -> list[tuple[BlockSpec, Mapping[str, Tensor]]]:
    """What is computed for each of these blocks, and the weights for it: types and shapes, and an address of its own
    for every tensor that is not shared; the bytes of cut columns are undefined. Raises as loading does.
    """
    found: list[tuple[BlockSpec, Mapping[str, Tensor]]] = []
    for spec, weights, slice in blocks:
        check_weights(spec, weights)
        if slice is None:
            found.append((spec, weights))
        else:
            found.append((slice_spec(spec, slice), slice_weights(spec, weights, slice, copy=False)))
    return found


def slice_weights(
    spec: BlockSpec, weights: Mapping[str, Tensor], slice: Slice, *, copy: bool = True
) -> dict[str, Tensor]:
    """The weights of `slice_spec(spec, slice)`, cut from the block's packed tensors.

    Rows are views; columns are copies, or without `copy` memory that nobody has written. Raises DeviceError where a
    bound would cut a quantization block.
    """
    slice_spec(spec, slice)
    start, stop = slice.start, slice.stop
    if isinstance(spec, AttentionSpec):
        keys = (start * spec.head_dim, stop * spec.head_dim)
        group = spec.heads // spec.kv_heads
        queries = (keys[0] * group, keys[1] * group)
        rows = {"q": queries, "q_bias": queries, "k": keys, "k_bias": keys, "v": keys, "v_bias": keys}
        columns = {"o": queries}
    else:
        rows = {"gate": (start, stop), "up": (start, stop)}
        columns = {"down": (start, stop)}
    cut = {}
    for role, tensor in weights.items():
        if role in rows:
            cut[role] = _rows(tensor, *rows[role])
        elif role in columns:
            cut[role] = _columns(tensor, *columns[role], copy)
        elif role not in _OWNER_ROLES:
            cut[role] = tensor
    return cut


def _check_bounds(spec: BlockSpec, slice: Slice, size: int, what: str) -> None:
    if not 0 <= slice.start < slice.stop <= size:
        raise DeviceError(f"{block_name(spec)} has {size} {what}; [{slice.start}, {slice.stop}) is not a slice of them")


def _rows(tensor: Tensor, start: int, stop: int) -> Tensor:
    row_bytes = tensor.nbytes // tensor.shape[0]
    data = tensor.data[start * row_bytes : stop * row_bytes]
    return Tensor(tensor.name, tensor.type, (stop - start, *tensor.shape[1:]), data)


def _columns(tensor: Tensor, start: int, stop: int, copy: bool) -> Tensor:
    rows, columns = tensor.shape
    for bound in (start, stop):
        if bound % tensor.type.block and bound != columns:
            raise DeviceError(
                f"tensor '{tensor.name}' cannot be cut at column {bound}: {tensor.type.name} packs blocks of "
                f"{tensor.type.block}"
            )
    packed = tensor.data.reshape(rows, tensor.type.row_bytes(columns))
    part = packed[:, tensor.type.row_bytes(start) : tensor.type.row_bytes(stop)]
    data = np.ascontiguousarray(part) if copy else np.empty(part.shape, dtype=np.uint8)
    return Tensor(tensor.name, tensor.type, (rows, stop - start), data.reshape(-1))
