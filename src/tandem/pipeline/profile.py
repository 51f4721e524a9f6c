"""What a machine's devices were measured to do with one model's blocks: data, and the cache that keeps it.

A profile holds seconds, not rates: each kind of block at 1, 2, 4, … rows, what one more position of context costs, what
a program costs by itself, and what happens while two devices work at once. `probe.py` measures it, `cost_model.py`
reads it.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from itertools import pairwise
from pathlib import Path

import msgspec

from tandem.cache import cache_folder
from tandem.devices.spec import AttentionSpec, BlockSpec, CombineSpec, EmbedSpec, FFNSpec
from tandem.models.spec import ModelSpec
from tandem.weights.tensor import Tensor

# What is kept under another schema or by another version is not found: its name tells both.
SCHEMA = 1


class Curve(msgspec.Struct, frozen=True):
    """A quantity that was measured at some sizes, ascending. Between them it is linear, beyond the last it goes on as
    the last two of them say, below the first it is the first.
    """

    at: tuple[float, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.at or len(self.at) != len(self.values) or any(b <= a for a, b in pairwise(self.at)):
            raise ValueError("a curve needs ascending sizes, each with its value")

    def __call__(self, size: float) -> float:
        at, values = self.at, self.values
        if size <= at[0] or len(at) == 1:
            return values[0]
        i = min(bisect_right(at, size), len(at) - 1)
        slope = (values[i] - values[i - 1]) / (at[i] - at[i - 1])
        if size > at[-1]:
            # More work never takes less time, whatever the noise of two measurements says.
            return values[-1] + max(0.0, slope) * (size - at[-1])
        return values[i - 1] + slope * (size - at[i - 1])

    def scaled(self, factor: float) -> Curve:
        return Curve(self.at, tuple(value * factor for value in self.values))


def constant(value: float) -> Curve:
    return Curve((1.0,), (value,))


class BlockProfile(msgspec.Struct, frozen=True):
    """One kind of block on one device.

    seconds: by rows (of a head: by samples), each row a sequence of one position. share: seconds of a slice with the
    `fraction` of its columns over those of the whole block, by rows; None where no slice was measured.
    decode: seconds that one more position of every sequence's context takes, by sequences of one row each.
    chunk: seconds by rows of one sequence, without what they see; prefill: seconds for one row of those to see one
    position. None but for attention.
    """

    seconds: Curve
    share: Curve | None = None
    fraction: float = 0.5
    decode: Curve | None = None
    chunk: Curve | None = None
    prefill: Curve | None = None

    def part(self, rows: float, fraction: float) -> float:
        """Seconds of a slice that has `fraction` of the block: on the line through the measured slice and the whole."""
        whole = self.seconds(rows)
        if fraction >= 1 or self.share is None:
            return whole * fraction
        measured = self.share(rows)
        slope = (1 - measured) / (1 - self.fraction)
        return whole * max(1 + slope * (fraction - 1), 0.1 * fraction)


class DeviceProfile(msgspec.Struct, frozen=True):
    """One device.

    read, int8_macs: bytes and integer multiply-adds per second at best, where the device can tell.
    submit: seconds of the host to queue one program. program: seconds of the lane that a program takes beside its
    blocks, by rows. wake: seconds from a program's end until a waiting host goes on.
    host: seconds of the host between two steps, sampling included, by sequences, where this device has the head; None
    where it was not measured. runs_ahead: whether the next decode step can be queued behind one, as its head picks.
    """

    name: str
    description: str
    read: float | None
    int8_macs: float | None
    submit: float
    program: Curve
    wake: float
    blocks: dict[str, BlockProfile]
    host: Curve | None = None
    runs_ahead: bool = False


class PairProfile(msgspec.Struct, frozen=True):
    """Two devices that work together.

    handover: seconds from the end of a program on one until one that waits for it begins on the other, beyond what
    the programs cost by themselves. slow: for each of the two, by rows, the seconds of its work while the other works,
    too, over those when it is alone.
    """

    handover: float
    slow: dict[str, Curve]


class Profile(msgspec.Struct, frozen=True):
    """devices in the order in which they were asked for; pairs by `pair_key`. seconds: how long measuring took.

    model: key of the model's shape; effort: full or quick. noting: seconds of the host after a step
    to note when one of its programs ran.
    """

    version: str
    model: str
    model_name: str
    devices: dict[str, DeviceProfile]
    pairs: dict[str, PairProfile]
    seconds: float
    effort: str = "full"
    noting: float = 0.0

    def pair(self, one: str, other: str) -> PairProfile:
        return self.pairs[pair_key(one, other)]


def pair_key(one: str, other: str) -> str:
    return "|".join(sorted((one, other)))


def block_key(spec: BlockSpec, weights: Mapping[str, Tensor]) -> str:
    """The same for blocks that cost the same: kind, sizes and types of weights; not the layer, not the rope's base."""
    match spec:
        case EmbedSpec():
            kind, sizes = "embed", f"{spec.vocab}x{spec.hidden}"
        case AttentionSpec():
            kind, sizes = "attention", f"{spec.hidden}.{spec.heads}.{spec.kv_heads}.{spec.head_dim}.{spec.window}"
        case FFNSpec():
            kind, sizes = "ffn", f"{spec.hidden}.{spec.ffn}"
        case CombineSpec():
            kind, sizes = "combine", f"{spec.hidden}"
        case _:
            kind, sizes = "head", f"{spec.vocab}x{spec.hidden}"
    types = sorted({f"{role}:{tensor.type.name}" for role, tensor in weights.items() if len(tensor.shape) == 2})
    return " ".join([kind, sizes, *types])


def model_key(spec: ModelSpec, keys: Sequence[str], kv_dtype: str) -> str:
    """Of all that a profile depends on in a model: kinds of blocks, how many of each, type of keys and values."""
    counts = [f"{keys.count(key)} {key}" for key in dict.fromkeys(keys)]
    return hashlib.sha256("\n".join([spec.architecture, kv_dtype, *counts]).encode()).hexdigest()[:16]


def block_without_layer(spec: BlockSpec, layer: int) -> BlockSpec:
    """The block as one of layer `layer`; what has no layer as it is."""
    return replace(spec, layer=layer) if isinstance(spec, AttentionSpec | FFNSpec | CombineSpec) else spec


def version() -> str:
    try:
        return metadata.version("tandem-llm")
    except metadata.PackageNotFoundError:
        return "source"


def cache_path(what: str, model: str, descriptions: Mapping[str, str], folder: Path | None = None) -> Path:
    """Where something about a model's shape on these devices is kept. descriptions: of devices, with their drivers."""
    text = "\n".join([str(SCHEMA), version(), *(f"{name} {descriptions[name]}" for name in sorted(descriptions))])
    machine = hashlib.sha256(text.encode()).hexdigest()[:16]
    return (folder or cache_folder()) / what / f"{model}-{machine}.json"
