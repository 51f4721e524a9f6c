"""`ref`: the Device in numpy float32. It is slow, and right; tests compare every other device with it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np

from tandem.devices.base import DeviceInfo, Event, KVGroupSpec, MemorySpace, ProgramPlan, StepBuffers
from tandem.devices.batch import Batch, BatchLayout
from tandem.devices.lane import Lane
from tandem.devices.linking import check_buffers, pool_of
from tandem.devices.ref.blocks import Observer, RefBlock, Step, run_block
from tandem.devices.ref.kv import RefKVPool
from tandem.devices.slicing import headers, slice_spec, slice_weights
from tandem.devices.spec import AttentionSpec, BlockSpec, Slice
from tandem.devices.weights_check import check_weights
from tandem.errors import DeviceError
from tandem.weights.dequantize import dequantize
from tandem.weights.tensor import Tensor


class RefDevice:
    """Weights are dequantized to float32 at load; activations, KV pages and every sum are float32.

    observer: told of every product that programs linked from then on make.
    """

    def __init__(self, name: str = "ref") -> None:
        self.observer: Observer | None = None
        self._lane = Lane(name)
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = os.sysconf("SC_PHYS_PAGES") * page, os.sysconf("SC_AVPHYS_PAGES") * page
        self.info = DeviceInfo(
            name=name,
            kind="ref",
            description=f"float32 reference in numpy {np.__version__}",
            memory=(MemorySpace("host", total, free, host_mapped=True),),
        )

    def load(self, spec: BlockSpec, weights: Mapping[str, Tensor], slice: Slice | None = None) -> RefBlock:
        check_weights(spec, weights)
        work = spec
        if slice is not None:
            work = slice_spec(spec, slice)
            weights = slice_weights(spec, weights, slice)
        return RefBlock(spec, slice, work, {role: dequantize(tensor) for role, tensor in weights.items()})

    def plan_weights(self, blocks: Sequence[tuple[BlockSpec, Mapping[str, Tensor], Slice | None]]) -> int:
        return sum(4 * tensor.elements for _, weights in headers(blocks) for tensor in weights.values())

    def plan_workspace(self, programs: Sequence[ProgramPlan], samples: int) -> int:
        """0: nothing is held between runs. The temporaries of a run are numpy's, and unplanned."""
        return 0

    def plan_host(self, programs: Sequence[ProgramPlan], layout: BatchLayout) -> int:
        """0: it works in the step's own buffers."""
        return 0

    def allocate_kv(self, group: KVGroupSpec, pages: int) -> RefKVPool:
        return RefKVPool(group, pages)

    def link(
        self, blocks: Sequence[RefBlock], *, rows: int, buffers: StepBuffers, kv: Sequence[RefKVPool] = ()
    ) -> RefProgram:
        """Raises DeviceError where a block's KV pool or buffers are missing or too small."""
        for block in blocks:
            check_buffers("ref", block.spec, block.slice, buffers, rows)
        pools = {
            block.work.layer: pool_of("ref", block.work, kv)
            for block in blocks
            if isinstance(block.work, AttentionSpec)
        }
        return RefProgram(self._lane, tuple(blocks), rows, buffers, pools, self.observer)

    def close(self) -> None:
        self._lane.close()


class RefProgram:
    """Consecutive blocks, run one after another on the device's lane."""

    def __init__(
        self,
        lane: Lane,
        blocks: tuple[RefBlock, ...],
        rows: int,
        buffers: StepBuffers,
        pools: Mapping[int, RefKVPool],
        observer: Observer | None,
    ) -> None:
        self.rows = rows
        self._observer = observer
        self._lane = lane
        self._blocks = blocks
        self._buffers = buffers
        self._pools = pools

    def submit(self, batch: Batch, wait: Sequence[Event] = (), signal: Event | None = None) -> None:
        self._lane.submit(lambda: self._run(batch), wait, signal)

    def _run(self, batch: Batch) -> None:
        if batch.n_rows > self.rows:
            raise DeviceError(f"ref: a batch of {batch.n_rows} rows, for a program linked for {self.rows}")
        step = Step(batch, self._buffers, self._pools, self._observer)
        for block in self._blocks:
            run_block(block, step)
