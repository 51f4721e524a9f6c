"""A program: linked blocks whose graphs run one after another on the device's lane."""

from __future__ import annotations

from collections.abc import Sequence

from tandem.devices.base import Event, StepBuffers
from tandem.devices.batch import Batch
from tandem.devices.lane import Lane
from tandem.devices.onnx.attention import GroupAttention
from tandem.devices.onnx.block_graphs import rope_rows
from tandem.devices.onnx.buckets import bucket_of, row_buckets
from tandem.devices.onnx.operations import Operation, Step, rope_name
from tandem.devices.onnx.workspace import Workspace
from tandem.devices.ref.kv import sequences_of
from tandem.devices.spec import RopeSpec
from tandem.errors import DeviceError


class OnnxProgram:
    """`rows` is the largest batch it takes."""

    def __init__(
        self,
        name: str,
        lane: Lane,
        operations: Sequence[Operation],
        rows: int,
        buffers: StepBuffers,
        workspace: Workspace,
        groups: Sequence[GroupAttention],
        ropes: Sequence[RopeSpec],
    ) -> None:
        self.rows = rows
        self._name = name
        self._lane = lane
        self._operations = operations
        self._buffers = buffers
        self._workspace = workspace
        self._groups = groups
        self._ropes = ropes
        self._buckets = row_buckets(rows)

    def submit(self, batch: Batch, wait: Sequence[Event] = (), signal: Event | None = None) -> None:
        self._lane.submit(lambda: self._run(batch), wait, signal)

    def _run(self, batch: Batch) -> None:
        n = batch.n_rows
        if n > self.rows:
            raise DeviceError(f"{self._name}: a batch of {n} rows, for a program linked for {self.rows}")
        if n == 0:
            return
        step = Step(batch, bucket_of(self._buckets, n), self._buffers, self._workspace)
        if self._groups:
            sequences = sequences_of(batch)
            for group in self._groups:
                group.prepare(batch, sequences)
            self._rotate(batch, step.rows)
        for operation in self._operations:
            operation.run(step)

    def _rotate(self, batch: Batch, rows: int) -> None:
        """Cosines and sines of the step's positions."""
        n = batch.n_rows
        for rope in self._ropes:
            positions = self._workspace.array("positions", (n,))
            positions[:] = batch.rows[:n, 1]
            half = (rows, rope.dims // 2)
            cos, sin = (self._workspace.array(f"{what} {rope_name(rope)}", half) for what in ("cos", "sin"))
            rope_rows(rope, positions, cos, sin)
