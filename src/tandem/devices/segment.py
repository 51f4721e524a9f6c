"""What one device does in a row: blocks, slices of blocks, and adding up slices. A segment becomes one program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tandem.devices.slicing import combine_spec, combine_weights, slice_spec
from tandem.devices.spec import AttentionSpec, BlockSpec, FFNSpec, Slice
from tandem.devices.weights_check import block_name
from tandem.errors import DeviceError
from tandem.weights.tensor import Tensor

# What `Device.load` and `Device.plan_weights` take.
Loadable = tuple[BlockSpec, Mapping[str, Tensor], Slice | None]


@dataclass(frozen=True, slots=True)
class Part:
    """Of the model's block number `block`: all, a slice, or (combines > 0) what its owner does with so many slices."""

    block: int
    slice: Slice | None = None
    combines: int = 0

    def loadable(self, spec: BlockSpec, weights: Mapping[str, Tensor]) -> Loadable:
        """What a device loads for it, given the block's spec and weights. Raises DeviceError for a block that cannot
        be sliced.
        """
        if not self.combines:
            return spec, weights, self.slice
        if not isinstance(spec, AttentionSpec | FFNSpec):
            raise DeviceError(f"{block_name(spec)} cannot be sliced; attention and FFN blocks can")
        return combine_spec(spec, self.combines), combine_weights(weights), None

    def work(self, spec: BlockSpec) -> BlockSpec:
        """What is computed for it. Raises DeviceError as `loadable` does, and for bounds outside the block."""
        if self.slice is not None:
            return slice_spec(spec, self.slice)
        return self.loadable(spec, {})[0]


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive parts on one device."""

    device: str
    parts: tuple[Part, ...]

    @property
    def slices(self) -> int:
        """Of the step's `partials`, those that it writes or adds up."""
        return max(max(part.combines, part.slice.index + 1 if part.slice else 0) for part in self.parts)


# Segments that run side by side; the next stage waits for all of them.
Stage = tuple[Segment, ...]
