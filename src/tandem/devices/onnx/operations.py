"""What a program does for each of its blocks: fills what the block's graphs read, and runs them.

`hidden` is read where it lies, in the step's own buffers, whole buckets of rows at a time; what a block adds to it
comes apart, and the host adds the batch's rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tandem.devices.base import Float32Array, StepBuffers
from tandem.devices.batch import Batch
from tandem.devices.onnx.attention import GroupAttention
from tandem.devices.onnx.block_graphs import (
    combine_graph,
    embed_graph,
    ffn_graph,
    head_graph,
    output_graph,
    projection_graph,
)
from tandem.devices.onnx.buckets import MOST_ROW_BUCKETS, bucket_of, row_buckets
from tandem.devices.onnx.graph import Graph
from tandem.devices.onnx.sessions import Session
from tandem.devices.onnx.weights_form import PackedBlock
from tandem.devices.onnx.workspace import Workspace
from tandem.devices.spec import AttentionSpec, BlockSpec, CombineSpec, EmbedSpec, FFNSpec, HeadSpec, RopeSpec, Slice
from tandem.errors import DeviceError

Open = Callable[[Graph], Session]

# Of a block's weights: as they were packed, and what the sessions of each row bucket keep.
COPIES = 1 + MOST_ROW_BUCKETS


class OnnxBlock:
    """A loaded block. Its sessions are made when it is linked, and shared by all programs that have it."""

    def __init__(self, packed: PackedBlock) -> None:
        self.packed = packed
        self._sessions: dict[tuple[str, int, int], Session] = {}

    @property
    def spec(self) -> BlockSpec:
        return self.packed.spec

    @property
    def slice(self) -> Slice | None:
        return self.packed.slice

    @property
    def work(self) -> BlockSpec:
        return self.packed.work

    @property
    def bytes(self) -> int:
        return self.packed.nbytes * COPIES

    def session(self, open: Open, kind: str, rows: int, samples: int = 0) -> Session:
        key = (kind, rows, samples)
        if key not in self._sessions:
            self._sessions[key] = open(self._graph(kind, rows, samples))
        return self._sessions[key]

    def _graph(self, kind: str, rows: int, samples: int) -> Graph:
        match kind:
            case "projection":
                return projection_graph(self.packed, rows)
            case "output":
                return output_graph(self.packed, rows)
            case "ffn":
                return ffn_graph(self.packed, rows)
            case "combine":
                return combine_graph(self.packed, rows)
            case "embed":
                return embed_graph(self.packed, rows)
            case _:
                return head_graph(self.packed, rows, samples)


@dataclass(slots=True)
class Step:
    """A batch on its way through a program. rows: the bucket that it takes."""

    batch: Batch
    rows: int
    buffers: StepBuffers
    workspace: Workspace

    def add(self, session: Session, arrays: Mapping[str, Float32Array], slice: Slice | None) -> None:
        """Runs a block's last graph, and adds what it gives to the residual stream; a slice's goes to its partials."""
        if slice is not None:
            session.run({**arrays, "partial": self.buffers.partials[slice.index]})
            return
        n, hidden = self.batch.n_rows, self.buffers.hidden
        addend = self.workspace.array("addend", (self.rows, hidden.shape[1]))
        session.run({**arrays, "addend": addend})
        np.add(hidden[:n], addend[:n], out=hidden[:n])


class Operation(Protocol):
    def run(self, step: Step) -> None: ...


def block_needs(spec: BlockSpec, rows: int, samples: int) -> dict[str, int]:
    """Bytes of scratch by name, attention's own apart."""
    match spec:
        case AttentionSpec() if spec.rope:
            angles = rows * (spec.rope.dims // 2) * 4
            names = (f"cos {rope_name(spec.rope)}", f"sin {rope_name(spec.rope)}")
            return dict.fromkeys(names, angles) | {"positions": 4 * rows, "addend": 4 * rows * spec.hidden}
        case AttentionSpec() | FFNSpec() | CombineSpec():
            return {"addend": 4 * rows * spec.hidden}
        case EmbedSpec():
            return {"tokens": 4 * rows}
        case HeadSpec():
            return {"samples": 4 * samples}


def rope_name(rope: RopeSpec) -> str:
    return f"{hash(rope) & 0xFFFFFFFF:08x}"


class Embed:
    def __init__(self, block: OnnxBlock, open: Open, rows: int) -> None:
        assert isinstance(block.work, EmbedSpec)
        self._spec = block.work
        self._sessions = {size: block.session(open, "embed", size) for size in row_buckets(rows)}

    def run(self, step: Step) -> None:
        n = step.batch.n_rows
        tokens = step.workspace.array("tokens", (step.rows,), np.int32)
        tokens[n:] = 0
        tokens[:n] = step.batch.rows[:n, 2]
        if tokens.min() < 0:
            slots, asked = step.buffers.slots, tokens < 0
            if tokens.min() < -len(slots):
                raise DeviceError(f"batch: a row names token slot {-1 - int(tokens.min())} of {len(slots)}")
            tokens[asked] = slots[-1 - tokens[asked]]
        if tokens.min() < 0 or tokens.max() >= self._spec.vocab:
            raise DeviceError(f"batch: a token is not in the vocabulary of {self._spec.vocab}")
        self._sessions[step.rows].run({"tokens": tokens, "hidden": step.buffers.hidden})


class Attention:
    def __init__(self, block: OnnxBlock, open: Open, rows: int, group: GroupAttention) -> None:
        assert isinstance(block.work, AttentionSpec)
        self._spec, self._slice, self._group = block.work, block.slice, group
        sizes = row_buckets(rows)
        self._projections = {size: block.session(open, "projection", size) for size in sizes}
        self._outputs = {size: block.session(open, "output", size) for size in sizes}

    def run(self, step: Step) -> None:
        spec = self._spec
        q, k, v = (
            step.workspace.array(name, (step.rows, heads, spec.head_dim))
            for name, heads in (("q", spec.heads), ("k", spec.kv_heads), ("v", spec.kv_heads))
        )
        arrays: dict[str, Float32Array] = {"hidden": step.buffers.hidden, "q": q, "k": k, "v": v}
        if spec.rope:
            half = (step.rows, spec.rope.dims // 2)
            for name in ("cos", "sin"):
                arrays[name] = step.workspace.array(f"{name} {rope_name(spec.rope)}", half)
        self._projections[step.rows].run(arrays)
        self._group.store(spec.layer, k, v)
        # Calls reach past the batch's rows.
        reached = 2 * max(self._outputs)
        q = step.workspace.array("q", (reached, spec.heads, spec.head_dim))
        attended = step.workspace.array("attended", (reached, spec.heads * spec.head_dim))
        self._group.attend(spec.layer, q, attended)
        step.add(self._outputs[step.rows], {"attended": attended}, self._slice)


class FFN:
    def __init__(self, block: OnnxBlock, open: Open, rows: int) -> None:
        self._slice = block.slice
        self._sessions = {size: block.session(open, "ffn", size) for size in row_buckets(rows)}

    def run(self, step: Step) -> None:
        step.add(self._sessions[step.rows], {"hidden": step.buffers.hidden}, self._slice)


class Combine:
    def __init__(self, block: OnnxBlock, open: Open, rows: int) -> None:
        assert isinstance(block.work, CombineSpec)
        self._slices = block.work.slices
        self._sessions = {size: block.session(open, "combine", size) for size in row_buckets(rows)}

    def run(self, step: Step) -> None:
        partials = {f"partial_{index}": step.buffers.partials[index] for index in range(self._slices)}
        step.add(self._sessions[step.rows], partials, None)


class Head:
    """samples: the largest batch's."""

    def __init__(self, block: OnnxBlock, open: Open, rows: int, samples: int) -> None:
        self._sizes = row_buckets(samples)
        self._rows = rows
        self._sessions = {size: block.session(open, "head", rows, size) for size in self._sizes}

    def run(self, step: Step) -> None:
        n = step.batch.n_samples
        if n == 0:
            return
        if n > self._sizes[-1]:
            raise DeviceError(f"batch: {n} samples, for a program linked for {self._sizes[-1]}")
        size = bucket_of(self._sizes, n)
        samples = step.workspace.array("samples", (size,), np.int32)
        samples[n:] = 0
        samples[:n] = step.batch.samples[:n, 0]
        if samples.min() < 0 or samples.max() >= step.batch.n_rows:
            raise DeviceError(f"batch: a sample names a row outside the batch's {step.batch.n_rows}")
        hidden, logits = step.buffers.hidden, step.buffers.logits
        self._sessions[size].run({"hidden": hidden, "samples": samples, "logits": logits})


def make_operation(
    block: OnnxBlock, open: Open, rows: int, samples: int, groups: Mapping[int, GroupAttention]
) -> Operation:
    """groups: of attention, by layer."""
    match block.work:
        case EmbedSpec():
            return Embed(block, open, rows)
        case AttentionSpec() as spec:
            return Attention(block, open, rows, groups[spec.layer])
        case FFNSpec():
            return FFN(block, open, rows)
        case CombineSpec():
            return Combine(block, open, rows)
        case HeadSpec():
            return Head(block, open, rows, samples)
