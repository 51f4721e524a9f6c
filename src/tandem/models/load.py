"""A block's weights, out of the checkpoint."""

from __future__ import annotations

from tandem.models.spec import ModelSpec
from tandem.weights.checkpoint import Checkpoint
from tandem.weights.tensor import Tensor


def block_weights(checkpoint: Checkpoint, spec: ModelSpec, index: int) -> dict[str, Tensor]:
    """Role to tensor for `spec.blocks[index]`, as `Device.load` takes them; mapped, not read."""
    return {role: checkpoint.tensors[name] for role, name in spec.tensors[index].items()}
