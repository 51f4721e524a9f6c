"""Attention over one pool of pages: what a step stores there, and the graphs' calls that read it.

A step's sequences are cut into calls: neighbours that decode go together, a chunk of a prompt goes alone. A call reads
q and writes its result where they lie; what it writes past its own rows, a later call overwrites or nobody reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tandem.devices.base import Float32Array
from tandem.devices.batch import Batch, Int32Array
from tandem.devices.onnx.attention_graph import UNSEEN
from tandem.devices.onnx.buckets import Shape, attention_shapes, chunk_shape, decoding_shape
from tandem.devices.onnx.kv import OnnxKVPool
from tandem.devices.onnx.sessions import Session
from tandem.devices.onnx.workspace import Workspace
from tandem.devices.ref.kv import SequenceRows
from tandem.devices.spec import AttentionSpec
from tandem.errors import DeviceError

_SLOTS = np.arange(16)


@dataclass(slots=True)
class Counters:
    """bytes_gathered: keys and values, brought together for a processor that does not read pages where they lie."""

    bytes_gathered: int = 0


@dataclass(frozen=True, slots=True)
class _Seen:
    """A sequence of the step: the pages that its rows see, from position `base` on."""

    rows: SequenceRows
    pages: Int32Array
    base: int

    @property
    def span(self) -> int:
        return self.rows.stop - self.base


@dataclass(frozen=True, slots=True)
class _Call:
    shape: Shape
    sequences: tuple[_Seen, ...]

    @property
    def first(self) -> int:
        return self.sequences[0].rows.first


def attention_needs(spec: AttentionSpec, rows: int, reach: int, *, gathers: bool) -> dict[str, int]:
    """Bytes of scratch by name."""
    shapes = attention_shapes(rows, reach)
    group = group_name(spec)
    # Twice the rows: a call may begin at any row and takes as many as its shape has.
    reached = 2 * rows * spec.head_dim * 4
    needs = {
        "q": reached * spec.heads,
        "k": rows * spec.kv_heads * spec.head_dim * 4,
        "v": rows * spec.kv_heads * spec.head_dim * 4,
        "stored": rows * spec.kv_heads * spec.head_dim * 4,
        "attended": reached * spec.heads,
        f"page {group}": rows * 8,
        f"slot {group}": rows * 8,
        f"mask {group}": max(each.scores for each in shapes) * 4,
        f"table {group}": max(each.sequences * each.context for each in shapes) // 16 * 8,
        "seen": max(each.scores for each in shapes),
        "near": max(each.scores for each in shapes),
        "offsets": max(each.sequences * each.rows for each in shapes) * 4,
        f"counting {group}": reach * 4,
    }
    if gathers:
        elements = max(each.sequences * each.context for each in shapes) * spec.kv_heads * spec.head_dim
        needs |= {"keys": elements * 4, "values": elements * 4}
    return needs


def group_name(spec: AttentionSpec) -> str:
    """Of the layers that share pages and masks."""
    return f"{spec.kv_heads}.{spec.head_dim}.{spec.window}"


class GroupAttention:
    """sessions: by shape. gathers: whether keys and values are brought together on the host."""

    def __init__(
        self,
        device: str,
        spec: AttentionSpec,
        pool: OnnxKVPool,
        rows: int,
        reach: int,
        sessions: Mapping[Shape, Session],
        workspace: Workspace,
        counters: Counters,
        *,
        gathers: bool,
    ) -> None:
        self._device = device
        self._name = group_name(spec)
        self._window = spec.window
        self._pool = pool
        self._rows = rows
        self._reach = reach
        self._sessions = sessions
        self._shapes = attention_shapes(rows, reach)
        self._workspace = workspace
        self._counters = counters
        self._gathers = gathers
        self._calls: list[_Call] = []
        self._fresh: list[int] = []
        self._count = 0
        # The call whose mask and table are there.
        self._filled = -1

    def prepare(self, batch: Batch, sequences: Sequence[SequenceRows]) -> None:
        """Of a step. Raises DeviceError where a page table does not cover what its rows see."""
        self._count, self._filled = batch.n_rows, -1
        self._fresh.clear()
        seen = [self._seen(batch, each) for each in sequences]
        page, slot = self._where()
        for each in seen:
            at = each.rows.start
            while at < each.rows.stop:
                stop = min(each.rows.stop, at // 16 * 16 + 16)
                row = each.rows.first + at - each.rows.start
                number = int(each.pages[(at - each.base) // 16])
                page[row : row + stop - at] = number
                slot[row : row + stop - at] = _SLOTS[at % 16 : at % 16 + stop - at]
                if at % 16 == 0:
                    self._fresh.append(number)
                at = stop
        self._calls = self._plan(seen)

    def store(self, layer: int, k: Float32Array, v: Float32Array) -> None:
        """The step's keys and values, [rows or more, kv_heads, head_dim] each."""
        n = self._count
        page, slot = (each[:n] for each in self._where())
        for pages, rows in zip(self._pool.layer(layer), (k, v), strict=True):
            # What nobody has written yet is hidden by a mask, and must be finite for that.
            for number in self._fresh:
                pages[:, number] = 0
            stored = self._workspace.array("stored", (pages.shape[0], n, pages.shape[3]), pages.dtype)
            with np.errstate(over="ignore"):
                np.copyto(stored, rows[:n].transpose(1, 0, 2), casting="same_kind")
            pages[:, page, slot] = stored

    def attend(self, layer: int, q: Float32Array, attended: Float32Array) -> None:
        """q [rows or more, heads, head_dim]; attended [rows or more, heads * head_dim] is written."""
        keys, values = self._pool.layer(layer)
        for number, call in enumerate(self._calls):
            shape = call.shape
            if self._filled != number:
                self._fill(call)
                self._filled = number
            arrays: dict[str, npt.NDArray[Any]] = {
                "q": q[call.first :],
                "mask": self._mask(shape),
                "attended": attended[call.first :],
            }
            if self._gathers:
                arrays |= {"keys": self._gather("keys", keys, shape), "values": self._gather("values", values, shape)}
            else:
                arrays |= {"keys": keys, "values": values, "table": self._table(shape)}
            self._sessions[shape].run(arrays)

    def _seen(self, batch: Batch, rows: SequenceRows) -> _Seen:
        index = self._pool.group.index
        what = f"batch: sequence {rows.index}, KV group {index}: its page table"
        if index >= batch.layout.kv_groups:
            raise DeviceError(f"{what} is not there")
        offset, first = (int(each) for each in batch.sequences[rows.index, 4 + 2 * index : 6 + 2 * index])
        lowest = 0 if self._window is None else max(0, rows.start - self._window + 1) // 16
        start, stop = offset + lowest - first, offset + (rows.stop - 1) // 16 - first + 1
        if lowest < first or offset < 0 or stop > len(batch.pages):
            raise DeviceError(f"{what} does not cover what the sequence attends to")
        pages = batch.pages[start:stop]
        if pages.min() < 0 or pages.max() >= self._pool.pages:
            raise DeviceError(f"{what} names a page outside the pool of {self._pool.pages}")
        if 16 * len(pages) > self._reach:
            raise DeviceError(
                f"{self._device}: {16 * len(pages)} positions of a sequence, for graphs that reach {self._reach}"
            )
        return _Seen(rows, pages, 16 * lowest)

    def _plan(self, sequences: Sequence[_Seen]) -> list[_Call]:
        calls: list[_Call] = []
        decoding: list[_Seen] = []

        def end() -> None:
            if decoding:
                shape = decoding_shape(self._shapes, len(decoding), max(each.span for each in decoding))
                assert shape is not None
                calls.append(_Call(shape, tuple(decoding)))
                decoding.clear()

        for each in sequences:
            if each.rows.count > 1:
                end()
                calls.append(_Call(chunk_shape(self._shapes, each.rows.count, each.span), (each,)))
                continue
            span = max([each.span, *(other.span for other in decoding)])
            if decoding_shape(self._shapes, len(decoding) + 1, span) is None:
                end()
            decoding.append(each)
        end()
        return calls

    def _fill(self, call: _Call) -> None:
        """The mask and the page table of a call."""
        shape = call.shape
        offsets = self._workspace.array("offsets", (shape.sequences, shape.rows))
        offsets.fill(-1)
        table = self._table(shape)
        table[len(call.sequences) :] = call.sequences[0].pages[0]
        for at, each in enumerate(call.sequences):
            offsets[at, : each.rows.count] = self._counting()[each.rows.start - each.base : each.rows.stop - each.base]
            table[at, : len(each.pages)] = each.pages
            # A page of its own: nothing of another sequence may reach it, were it only as 0 times infinity.
            table[at, len(each.pages) :] = each.pages[-1]
        mask = self._mask(shape)
        seen, near = (self._workspace.array(name, mask.shape, np.bool_) for name in ("seen", "near"))
        np.subtract(offsets[:, :, None], self._counting()[: shape.context], out=mask)
        np.greater_equal(mask, 0, out=seen)
        if self._window is not None:
            np.less(mask, self._window, out=near)
            np.logical_and(seen, near, out=seen)
        mask.fill(UNSEEN)
        np.copyto(mask, np.float32(0), where=seen)

    def _where(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Of each row, the page and the position in it that keep its keys and values."""
        names = (f"page {self._name}", f"slot {self._name}")
        page, slot = (self._workspace.array(name, (self._rows,), np.int64) for name in names)
        return page, slot

    def _counting(self) -> Float32Array:
        """0, 1, 2, ..."""
        counting: Float32Array = self._workspace.array(f"counting {self._name}", (self._reach,))
        if self._reach > 1 and counting[1] != 1:
            counting[:] = range(self._reach)
        return counting

    def _mask(self, shape: Shape) -> Float32Array:
        return self._workspace.array(f"mask {self._name}", (shape.sequences, shape.rows, shape.context))

    def _table(self, shape: Shape) -> npt.NDArray[Any]:
        dtype = np.int64 if self._gathers else np.int32
        return self._workspace.array(f"table {self._name}", (shape.sequences, shape.context // 16), dtype)

    def _gather(self, name: str, pages: npt.NDArray[Any], shape: Shape) -> npt.NDArray[Any]:
        heads, count, size, width = pages.shape
        together = self._workspace.array(name, (heads, shape.sequences, shape.context // 16, size * width), pages.dtype)
        np.take(pages.reshape(heads, count, size * width), self._table(shape), axis=1, out=together, mode="clip")
        self._counters.bytes_gathered += together.nbytes
        return together
