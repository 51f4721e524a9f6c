"""Projections: the cost model on datasheet rates. Never a measurement, and always said to be none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tandem.devices.spec import AttentionSpec, BlockSpec, EmbedSpec
from tandem.models.spec import ModelSpec
from tandem.pipeline.cost_model import CostModel, Prediction
from tandem.pipeline.hardware import Band, Hardware, HardwareDevice
from tandem.pipeline.notation import Weights, parse_placement
from tandem.pipeline.planner import enumerate_placements
from tandem.pipeline.probe import block_keys
from tandem.pipeline.profile import (
    BlockProfile,
    Curve,
    DeviceProfile,
    PairProfile,
    Profile,
    constant,
    model_key,
    pair_key,
    version,
)
from tandem.pipeline.workload import Workload
from tandem.weights.tensor import Tensor

End = Literal["low", "middle", "high"]
ENDS: tuple[End, ...] = ("low", "middle", "high")
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
# Of keys and values as float16.
_KV_BYTES = 2
_SUBMIT_S, _WAKE_S, _HANDOVER_S = 5e-6, 30e-6, 20e-6
ASSUMPTIONS = (
    "a block takes the longer of reading its weights and multiplying, each at its share of the peak",
    "processors that read at the same time share the DRAM's bandwidth evenly; a shared power budget is not modelled",
    f"queueing a program takes {_SUBMIT_S * 1e6:.0f} us, handing on {_HANDOVER_S * 1e6:.0f} us, waking the host "
    f"{_WAKE_S * 1e6:.0f} us; sampling is not counted",
)


@dataclass(frozen=True, slots=True)
class Bound:
    """What no software can exceed on this hardware. macs: multiply-adds of a token; weight_bytes: that a step reads.

    decode: tokens per second of a batch, at peak bandwidth and with all processors' peak arithmetic together.
    any_batch: the same for batches without end, where reading costs nothing.
    """

    macs: float
    weight_bytes: float
    decode: float
    any_batch: float


@dataclass(frozen=True, slots=True)
class Projection:
    """predictions: by placement, for the low, middle and high end of the efficiencies. weights and KV in bytes."""

    hardware: Hardware
    workload: Workload
    predictions: dict[str, dict[End, Prediction]]
    bound: Bound
    memory: int

    @property
    def best(self) -> str:
        """The placement with the highest middle."""
        return max(self.predictions, key=lambda text: self.predictions[text]["middle"].tokens_per_s)

    @property
    def fits(self) -> bool:
        return self.memory <= self.hardware.memory.bytes


def project(
    spec: ModelSpec, weights: Weights, hardware: Hardware, workload: Workload, placements: Sequence[str] = ()
) -> Projection:
    """placements: texts; none: all that make sense. Raises DeviceError for one that is none."""
    keys = block_keys(spec, weights)
    sizes = [_Size.of(block, weights(i)) for i, block in enumerate(spec.blocks)]
    models = {end: CostModel(spec, keys, _profile(spec, keys, sizes, hardware, end)) for end in ENDS}
    names = [device.name for device in hardware.device]
    if placements:
        chosen = [(text, parse_placement(text, spec, weights)) for text in placements]
    else:
        chosen = enumerate_placements(models["middle"], spec, names, workload, weights)
    predictions = {text: {end: models[end].predict(placement, workload) for end in ENDS} for text, placement in chosen}
    macs = sum(size.macs for size in sizes)
    read = sum(size.bytes for size in sizes)
    step = max(read / hardware.memory.bytes_per_s, workload.batch * macs / hardware.macs_per_s)
    bound = Bound(macs, read, workload.batch / step, hardware.macs_per_s / macs)
    resident = sum({id(tensor): tensor.nbytes for i in range(len(keys)) for tensor in weights(i).values()}.values())
    return Projection(hardware, workload, predictions, bound, resident + _kv_bytes(spec, workload))


def impossible(projection: Projection, tokens_per_s: float) -> str | None:
    """Why so many tokens per second cannot be, in a sentence: on this hardware at all, or on its first processor alone.
    None where the arithmetic alone does not forbid it.
    """
    bound, hardware = projection.bound, projection.hardware
    first = hardware.device[0]
    alone = first.macs_per_s / bound.macs
    token = f"a token of this model takes {2 * bound.macs / 1e9:.1f} GFLOP"
    ends = f"the {first.description} alone ends at {alone:,.0f}"
    if tokens_per_s > bound.any_batch:
        parts = ", ".join(f"{name} {2 * rate / 1e12:.1f}" for name, rate in hardware.processors)
        return (
            f"{tokens_per_s:,.0f} tokens/s is impossible on this hardware: {token}, and all its processors together do "
            f"{2 * hardware.macs_per_s / 1e12:.1f} TFLOP/s at peak ({parts}), so that no batch size and no software "
            f"exceed {bound.any_batch:,.0f} tokens/s; {ends}"
        )
    if tokens_per_s > alone:
        return (
            f"{tokens_per_s:,.0f} tokens/s is impossible on {first.name}: {token}, and at its peak of "
            f"{2 * first.macs_per_s / 1e12:.1f} TFLOP/s {ends}, with any batch; all processors together, none of them "
            f"ever waiting for memory, would have to reach {tokens_per_s / bound.any_batch:.0%} of their peak"
        )
    return None


@dataclass(frozen=True, slots=True)
class _Size:
    """Of a block: bytes that a step reads, multiply-adds of a row, and for each position of context, of a sequence."""

    bytes: float
    macs: float
    position_bytes: float = 0.0
    position_macs: float = 0.0

    @classmethod
    def of(cls, block: BlockSpec, tensors: Mapping[str, Tensor]) -> _Size:
        matrices = [tensor for tensor in tensors.values() if len(tensor.shape) == 2]
        if isinstance(block, EmbedSpec):
            return cls(0.0, 0.0)
        size = float(sum(tensor.nbytes for tensor in matrices)), float(sum(tensor.elements for tensor in matrices))
        if isinstance(block, AttentionSpec):
            keys, scores = 2 * block.kv_heads * block.head_dim, 2 * block.heads * block.head_dim
            return cls(*size, keys * _KV_BYTES, scores)
        return cls(*size)


def _profile(spec: ModelSpec, keys: Sequence[str], sizes: Sequence[_Size], hardware: Hardware, end: End) -> Profile:
    by_key = dict(zip(keys, sizes, strict=True))
    devices = {each.name: _device(each, by_key, hardware, end, spec.hidden) for each in hardware.device}
    ffn = next(size for key, size in by_key.items() if key.startswith("ffn"))
    pairs = {}
    for i, one in enumerate(hardware.device):
        for other in hardware.device[i + 1 :]:
            slow = {}
            for each in (one, other):
                # Rows from which on multiplying, not reading, is what the FFN waits for.
                reading = ffn.bytes / (hardware.memory.bytes_per_s * _of(each.read, end))
                rows = max(1.5, reading * each.macs_per_s * _of(each.macs, end) / ffn.macs)
                slow[each.name] = Curve((1.0, rows, 4 * rows), (2.0, 2.0, 1.0))
            pairs[pair_key(one.name, other.name)] = PairProfile(_HANDOVER_S, slow)
    return Profile(version(), model_key(spec, keys, "f16"), spec.name, devices, pairs, 0.0, f"projected, {end}")


def _device(
    device: HardwareDevice, sizes: dict[str, _Size], hardware: Hardware, end: End, hidden: int
) -> DeviceProfile:
    read = hardware.memory.bytes_per_s * _of(device.read, end)
    macs = device.macs_per_s * _of(device.macs, end)

    def block(size: _Size) -> BlockProfile:
        seconds = tuple(max(size.bytes / read, rows * size.macs / macs) for rows in _ROWS)
        position = max(size.position_bytes / read, size.position_macs / macs)
        return BlockProfile(
            Curve(tuple(map(float, _ROWS)), seconds),
            constant(0.5),
            0.5,
            Curve((1.0, 2.0), (position, 2 * position)) if size.position_macs else None,
            None,
            constant(size.position_macs / macs) if size.position_macs else None,
        )

    blocks = {key: block(size) for key, size in sizes.items()}
    adding = Curve((1.0, 2.0), (16.0 * hidden / read, 32.0 * hidden / read))
    blocks["combine"] = BlockProfile(adding)
    return DeviceProfile(
        device.name, device.description, read, macs, _SUBMIT_S, constant(device.program_s), _WAKE_S, blocks
    )


def _of(band: Band, end: End) -> float:
    return {"low": band.low, "middle": band.middle, "high": band.high}[end]


def _held(block: AttentionSpec, workload: Workload) -> int:
    return min(workload.context, block.window or workload.context)


def _kv_bytes(spec: ModelSpec, workload: Workload) -> int:
    return sum(
        2 * block.kv_heads * block.head_dim * _KV_BYTES * workload.batch * _held(block, workload)
        for block in spec.attention
    )
