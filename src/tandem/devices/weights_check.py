"""What every device checks before it repacks a block's weights: roles, shapes and bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tandem.devices.spec import AttentionSpec, BlockSpec, CombineSpec, EmbedSpec, FFNSpec, HeadSpec
from tandem.errors import ModelFileError
from tandem.weights.tensor import Tensor


def expected_shapes(spec: BlockSpec) -> dict[str, tuple[int, ...]]:
    """Role to shape of every weight that the block takes."""
    match spec:
        case EmbedSpec():
            return {"embedding": (spec.vocab, spec.hidden)}
        case AttentionSpec():
            return _attention_shapes(spec)
        case FFNSpec():
            shapes: dict[str, tuple[int, ...]] = {
                "norm": (spec.hidden,),
                "gate": (spec.ffn, spec.hidden),
                "up": (spec.ffn, spec.hidden),
                "down": (spec.hidden, spec.ffn),
            }
            if spec.post_norm:
                shapes["post_norm"] = (spec.hidden,)
            return shapes
        case HeadSpec():
            return {"norm": (spec.hidden,), "output": (spec.vocab, spec.hidden)}
        case CombineSpec():
            present = {"post_norm": spec.post_norm is not None, "bias": spec.bias}
            return {role: (spec.hidden,) for role, used in present.items() if used}


def check_weights(spec: BlockSpec, weights: Mapping[str, Tensor]) -> None:
    """Raises ModelFileError where a role is missing or unexpected, or a tensor does not fit its role."""
    expected = expected_shapes(spec)
    block = block_name(spec)
    for role in weights:
        if role not in expected:
            raise ModelFileError(f"{block} takes no weight '{role}'; it takes {', '.join(expected) or 'none'}")
    for role, shape in expected.items():
        if role not in weights:
            raise ModelFileError(f"{block} needs a weight '{role}' of shape {shape}, which is missing")
        check_tensor(weights[role], shape, f"{block}, weight '{role}'")


def check_tensor(tensor: Tensor, shape: tuple[int, ...], what: str) -> None:
    """Raises ModelFileError unless the tensor has `shape` and the bytes that its type needs for it."""
    if tensor.shape != shape:
        raise ModelFileError(f"{what}: tensor '{tensor.name}' has shape {tensor.shape}; expected {shape}")
    if shape[-1] % tensor.type.block:
        raise ModelFileError(
            f"{what}: tensor '{tensor.name}' has rows of {shape[-1]} elements; "
            f"{tensor.type.name} needs a multiple of {tensor.type.block}"
        )
    needed = math.prod(shape[:-1]) * tensor.type.row_bytes(shape[-1])
    if tensor.nbytes != needed:
        raise ModelFileError(f"{what}: tensor '{tensor.name}' has {tensor.nbytes} bytes; expected {needed}")


def block_name(spec: BlockSpec) -> str:
    """How messages call the block: `attention 3`."""
    match spec:
        case EmbedSpec():
            return "embed"
        case HeadSpec():
            return "head"
        case AttentionSpec():
            return f"attention {spec.layer}"
        case FFNSpec():
            return f"ffn {spec.layer}"
        case CombineSpec():
            return f"combine {spec.layer}"


def _attention_shapes(spec: AttentionSpec) -> dict[str, tuple[int, ...]]:
    queries = spec.heads * spec.head_dim
    keys = spec.kv_heads * spec.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "norm": (spec.hidden,),
        "q": (queries, spec.hidden),
        "k": (keys, spec.hidden),
        "v": (keys, spec.hidden),
        "o": (spec.hidden, queries),
    }
    if spec.qkv_bias:
        shapes |= {"q_bias": (queries,), "k_bias": (keys,), "v_bias": (keys,)}
    if spec.o_bias:
        shapes["o_bias"] = (spec.hidden,)
    if spec.qk_norm:
        shapes |= {"q_norm": (spec.head_dim,), "k_norm": (spec.head_dim,)}
    if spec.post_norm:
        shapes["post_norm"] = (spec.hidden,)
    return shapes
