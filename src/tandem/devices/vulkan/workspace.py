"""Scratch memory of a device: named buffers that all its programs share, as they run one at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tandem._native import Timeline
from tandem.devices.base import Event
from tandem.devices.lane import Lane
from tandem.devices.spec import AttentionSpec, BlockSpec, FFNSpec, HeadSpec
from tandem.devices.vulkan.dispatch import MAX_SPLITS, SPLIT_ROWS
from tandem.devices.vulkan.memory import Buffer, Memory, View, rounded
from tandem.devices.vulkan.packing import BLOCK, blocks_of
from tandem.devices.vulkan.sampling import scratch_bytes
from tandem.devices.vulkan.tiles import result_rows

# Counters in front of what workgroups of one dispatch make together, as in ticket.glsl, and where there are some.
TICKETS = 4096
_TICKETED = {"splits", "product"}
# What products write for those who add.
_RESULTS = {"qkv", "gate_up", "product"}


def padded(width: int) -> int:
    """Elements of a row that feeds a product: whole blocks, padded with zeros."""
    return -(-width // BLOCK) * BLOCK


def quantized_words(width: int) -> int:
    """Words of a row of 8-bit activations: integers, scales, sums and bounds, as quantize.glsl lays them out."""
    blocks = blocks_of(width)
    return -(-(10 * blocks + -(-blocks // 32)) // 4) * 4


def widths(spec: BlockSpec) -> dict[str, int]:
    """Elements (of 4 bytes) a row that a block needs of each scratch buffer."""
    match spec:
        case AttentionSpec():
            heads = spec.heads * spec.head_dim
            return {
                "normed": padded(spec.hidden),
                "qkv": heads + 2 * spec.kv_heads * spec.head_dim,
                "attended": padded(heads),
                "quantized": max(quantized_words(spec.hidden), quantized_words(heads)),
                "product": spec.hidden,
            }
        case FFNSpec():
            return {
                "normed": padded(spec.hidden),
                "gate_up": 2 * spec.ffn,
                "gated": padded(spec.ffn),
                "quantized": max(quantized_words(spec.hidden), quantized_words(spec.ffn)),
                "product": spec.hidden,
            }
        case HeadSpec():
            return {"normed": padded(spec.hidden), "quantized": quantized_words(spec.hidden)}
        case _:
            return {}


def split_words(spec: AttentionSpec, rows: int) -> int:
    """Words of what attention keeps of each head and split: its values, their weights' sum and the largest score."""
    return spec.heads * (spec.head_dim + 2) * max(rows, min(rows, SPLIT_ROWS) * MAX_SPLITS)


def sizes(specs: Iterable[BlockSpec], rows: int, samples: int, *, resident: bool, splits: bool) -> dict[str, int]:
    """Bytes of each scratch buffer for programs of these blocks. resident: the residual stream lives here, too, and
    logits to pick from. splits: products may have several results to be added.
    """
    needed: dict[str, int] = {}
    for spec in specs:
        count = samples if isinstance(spec, HeadSpec) else rows
        scratch = {name: 4 * count * width for name, width in widths(spec).items()}
        if splits:
            for name in _RESULTS & scratch.keys():
                scratch[name] = 4 * widths(spec)[name] * result_rows(widths(spec)[name], rows)
        if isinstance(spec, AttentionSpec):
            scratch["splits"] = 4 * split_words(spec, rows)
        if isinstance(spec, HeadSpec):
            scratch |= scratch_bytes(spec, samples)
            if resident:
                scratch["logits"] = 4 * samples * spec.vocab
        if resident:
            scratch["resident"] = 4 * rows * spec.hidden
        for name in _TICKETED & scratch.keys():
            scratch[name] += 4 * TICKETS
        for name, size in scratch.items():
            needed[name] = max(needed.get(name, 0), rounded(size))
    return needed


class Workspace:
    """Grows when a program needs more. generation: counts how often; what was recorded before names buffers that are
    gone.
    """

    def __init__(self, memory: Memory, lane: Lane, *, resident: bool, splits: bool) -> None:
        self._memory = memory
        self._lane = lane
        self._resident, self._splits = resident, splits
        self._buffers: dict[str, Buffer] = {}
        self.generation = 0

    def reserve(self, specs: Sequence[BlockSpec], rows: int, samples: int) -> None:
        """Between two steps, on the lane's thread."""
        needed = sizes(specs, rows, samples, resident=self._resident, splits=self._splits)
        if all(name in self._buffers and self._buffers[name].size >= size for name, size in needed.items()):
            return
        grown = Event(Timeline(), 1)
        self._lane.submit(lambda: self._grow(needed), (), grown)
        grown.wait()

    def _grow(self, needed: Mapping[str, int]) -> None:
        for name, size in needed.items():
            old = self._buffers.get(name)
            if old is not None and old.size < size:
                self.generation += 1
                del self._buffers[name]
                self._memory.free(old)
            if name not in self._buffers:
                self._buffers[name] = self._memory.device(size)

    def view(self, name: str) -> View:
        """A buffer that `reserve` made, without its tickets."""
        whole = self._buffers[name].all()
        return whole.part(4 * TICKETS, whole.size - 4 * TICKETS) if name in _TICKETED else whole

    def ticketed(self, name: str) -> View:
        """With its tickets in front; between two dispatches they are zero."""
        return self._buffers[name].all()

    @property
    def logits(self) -> View | None:
        """The logits where they live on the device: across a bus, for a head."""
        return self._buffers["logits"].all() if self._resident else None

    @property
    def resident(self) -> View | None:
        """The residual stream where it lives on the device: across a bus. It comes and goes once a program."""
        return self._buffers["resident"].all() if self._resident else None
