"""The seam. Everything above it plans in blocks; everything below it knows how a kernel is tiled.

block    = device.load(spec, weights)            # repacked, resident until unload
pool     = device.allocate_kv(group, pages)      # the device owns the bytes, the engine owns the page ids
program  = device.link(blocks, rows=…, …)        # consecutive blocks, one executable
program.submit(batch, wait=[…], signal=…)        # queued on the device's lane, in order
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from tandem._native import StepFailed, Timeline
from tandem.devices.batch import Batch, BatchLayout, Int32Array
from tandem.devices.candidates import CandidateBuffers
from tandem.devices.spec import BlockSpec, KVDtype, Slice
from tandem.errors import DeviceError
from tandem.weights.tensor import Tensor

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Event:
    """A point on a timeline, reached once its value is at least `value`; host and devices wait for it and signal it."""

    timeline: Timeline
    value: int

    def wait(self) -> None:
        """Blocks without the GIL; raises DeviceError with the reason if the run that signals this value failed."""
        try:
            self.timeline.wait(self.value)
        except StepFailed as failure:
            raise DeviceError(str(failure)) from None


@dataclass(frozen=True, slots=True)
class MemorySpace:
    """A kind of memory a device works in. `host_mapped`: the host reads and writes it by pointer, without a copy."""

    name: str
    bytes_total: int
    bytes_free: int
    host_mapped: bool


# A GPU that was idle for seconds needs so many seconds of work until it runs at its full clock: whoever measures one
# keeps it busy first.
WAKING_SECONDS = 0.4


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """What a device is. Rates are None until a profile has measured them; they are never guessed.

    candidates: how many of a row's likeliest tokens its heads can pick; 0 where they give whole rows only.
    """

    name: str
    kind: str
    description: str
    memory: tuple[MemorySpace, ...]
    threads: int | None = None
    bandwidth_bytes_per_s: float | None = None
    int8_ops_per_s: float | None = None
    candidates: int = 0


@dataclass(frozen=True, slots=True)
class KVGroupSpec:
    """Layers that share one page table: equal device, window, layout and dtype.

    A page holds `page_size` positions of every layer of the group, keys and values. context: of the longest sequence;
    None where only the pool's size bounds it.
    """

    index: int
    layers: tuple[int, ...]
    kv_heads: int
    head_dim: int
    window: int | None
    page_size: int = 16
    dtype: KVDtype = "f16"
    context: int | None = None

    @property
    def page_bytes(self) -> int:
        """Keys and values; 8-bit ones with a float16 scale per 32."""
        elements = 2 * len(self.layers) * self.kv_heads * self.head_dim * self.page_size
        return elements * {"f32": 32 * 4, "f16": 32 * 2, "q8_0": 32 + 2}[self.dtype] // 32


class KVPool(Protocol):
    """The pages of one KV group on one device."""

    @property
    def group(self) -> KVGroupSpec: ...

    @property
    def pages(self) -> int: ...

    def copy_page(self, source: int, target: int) -> None:
        """Copies a page, all layers; for copy on write of a shared last page. Not while a step is in flight."""
        ...


@dataclass(slots=True)
class StepBuffers:
    """Host memory that a step's programs share; planned once, page-aligned, imported by devices that can.

    hidden: [max_rows, hidden] float32, the residual stream that programs hand on.
    logits: [max_samples, vocab] float32, written by the head.
    partials: [slices, max_rows, hidden] float32, written by sliced blocks; empty when nothing is sliced.
    slots: [max_sequences] int32, tokens that a batch names by slot; written by a head that is asked to, or by the host.
    candidates: given to devices that pick candidates, one for each turn of the batches; without, or on other devices,
        every row comes whole.
    """

    hidden: Float32Array
    logits: Float32Array
    partials: Float32Array
    slots: Int32Array = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    candidates: tuple[CandidateBuffers, ...] = ()


class Block(Protocol):
    """A loaded block. `bytes` is what it keeps resident in the device's own layout."""

    @property
    def spec(self) -> BlockSpec: ...

    @property
    def slice(self) -> Slice | None: ...

    @property
    def bytes(self) -> int: ...


class Program(Protocol):
    """Consecutive blocks on one device, linked. `rows` is the largest batch it takes."""

    @property
    def rows(self) -> int: ...

    def submit(self, batch: Batch, wait: Sequence[Event] = (), signal: Event | None = None) -> None:
        """Queues one run. `batch` and the buffers must stay untouched until `signal` is reached, whose timeline tells
        from when to when it ran.
        """
        ...


@dataclass(frozen=True, slots=True)
class ProgramPlan:
    """A program before it is linked.

    specs: what it computes, slices cut to their part. rows: the largest batch it takes, and what its `hidden` holds.
    buffers: programs of the same number work on the same StepBuffers. slices: what their `partials` hold, for a
    program that writes them or adds them up; 0 for others. context: positions of the longest sequence; 0 where nothing
    attends.
    """

    specs: tuple[BlockSpec, ...]
    rows: int
    buffers: int = 0
    slices: int = 0
    context: int = 0


class CandidateProgram(Program, Protocol):
    """A program whose head picks candidates."""

    def fetch(self, samples: Sequence[int]) -> None:
        """Brings the whole logits of samples of the last run into their rows of `logits`; waits. Not while a run is in
        flight. Raises DeviceError as a run does.
        """
        ...


@dataclass(frozen=True, slots=True)
class KernelTime:
    """One kernel of a program's run. variant: of the kernel, as its device names it. block: what it works for, such as
    `attention 3`. bytes, macs: weights, keys and values that it must read, and multiply-adds, where they are known.
    """

    kernel: str
    variant: str
    block: str
    seconds: float
    bytes: int = 0
    macs: int = 0


@runtime_checkable
class ProfiledProgram(Protocol):
    """A program that can tell where its time goes."""

    def profile(self, batch: Batch) -> list[KernelTime]:
        """Runs a step, its kernels one after another, and waits for it.

        Raises DeviceError where the device keeps no time, or the step fails.
        """
        ...


@runtime_checkable
class LosableDevice(Protocol):
    """A device that may go away while it works."""

    @property
    def lost(self) -> bool:
        """Whether it has: whatever is submitted from then on fails."""
        ...


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What a device was measured to do at best. None: it was not, or cannot."""

    read_bytes_per_s: float | None = None
    copy_bytes_per_s: float | None = None
    int8_macs_per_s: float | None = None


@runtime_checkable
class MeasuredDevice(Protocol):
    """A device that can measure its own ceilings."""

    def measure_ceilings(self) -> Ceilings:
        """Takes some memory for the time of the call. Raises DeviceError where that is not there."""
        ...


@runtime_checkable
class Device(Protocol):
    """Something that runs programs: `cpu`, `vulkan:0`, `onnx:<provider>`, `ref`; its lane is one in-order queue."""

    @property
    def info(self) -> DeviceInfo: ...

    def load(self, spec: BlockSpec, weights: Mapping[str, Tensor], slice: Slice | None = None) -> Any:
        """Repacks `weights` (roles as the spec's docstring names them) into the device's layout.

        Raises ModelFileError where a tensor is missing or has the wrong shape, UnsupportedModelError for a type the
        device cannot hold.
        """
        ...

    def plan_weights(self, blocks: Sequence[tuple[BlockSpec, Mapping[str, Tensor], Slice | None]]) -> int:
        """Bytes that loading these blocks will keep resident, from types and shapes alone.

        A tensor that several of them share counts as often as the device holds it. Raises as `load` does.
        """
        ...

    def plan_workspace(self, programs: Sequence[ProgramPlan], samples: int) -> int:
        """Bytes of scratch for these programs, which share it as they run one at a time; for batches of at most
        `samples` samples.
        """
        ...

    def plan_host(self, programs: Sequence[ProgramPlan], layout: BatchLayout) -> int:
        """Bytes of the host's memory beside: what passes on to a device that does not work in the step's own buffers,
        for these programs and batches of this layout.
        """
        ...

    def allocate_kv(self, group: KVGroupSpec, pages: int) -> Any:
        """Allocates `pages` pages of the group; zero-filled."""
        ...

    def link(self, blocks: Sequence[Any], *, rows: int, buffers: StepBuffers, kv: Sequence[Any] = ()) -> Any:
        """Links consecutive blocks for batches of at most `rows` rows. `kv` are this device's pools."""
        ...

    def close(self) -> None:
        """Ends the lane; queued work is finished first."""
        ...
