"""`cpu`: blocks as native programs. Python loads and links; a step is one native call on the lane's threads."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary, ref

import numpy as np

from tandem import _native
from tandem.devices.base import DeviceInfo, Event, Float32Array, KVGroupSpec, MemorySpace, ProgramPlan, StepBuffers
from tandem.devices.batch import Batch, BatchLayout
from tandem.devices.cpu.threads import default_threads
from tandem.devices.linking import check_buffers, pool_of
from tandem.devices.slicing import headers, slice_spec, slice_weights
from tandem.devices.spec import (
    AttentionSpec,
    BlockSpec,
    CombineSpec,
    EmbedSpec,
    FFNSpec,
    HeadSpec,
    NormSpec,
    Slice,
)
from tandem.devices.weights_check import check_weights
from tandem.errors import DeviceError, ModelFileError
from tandem.weights.dequantize import dequantize
from tandem.weights.tensor import Tensor

_NONE = np.zeros(0, dtype=np.float32)
_ACTIVATIONS = {"silu": 0, "gelu_tanh": 1}


class _Packed:
    """A packed matrix that blocks share; weakly held by the device, so that a tied matrix is kept once.

    source: the bytes it was packed from, while they live: an address alone may be another array's by now.
    """

    __slots__ = ("__weakref__", "matrix", "source")

    def __init__(self, matrix: _native.PackedMatrix, tensor: Tensor) -> None:
        self.matrix = matrix
        self.source = ref(tensor.data)


@dataclass(frozen=True, slots=True)
class CpuBlock:
    """`work` is the block that is computed: `spec`, or the part of it that `slice` cuts."""

    spec: BlockSpec
    slice: Slice | None
    work: BlockSpec
    matrices: Mapping[str, _Packed]
    vectors: Mapping[str, Float32Array]

    @property
    def bytes(self) -> int:
        return sum(p.matrix.bytes for p in self.matrices.values()) + sum(v.nbytes for v in self.vectors.values())

    def vector(self, role: str) -> Float32Array:
        return self.vectors.get(role, _NONE)

    def norm(self, role: str, spec: NormSpec | None) -> _native.Norm:
        if spec is None or role not in self.vectors:
            return _native.Norm()
        return _native.Norm(self.vectors[role] + np.float32(spec.offset), spec.eps)


class CpuKVPool:
    """The pages of one KV group, in native memory; zero-filled, touched only when used."""

    def __init__(self, group: KVGroupSpec, pages: int) -> None:
        if group.page_size != _native.PAGE_SIZE:
            raise DeviceError(f"cpu: KV pages hold {_native.PAGE_SIZE} positions, not {group.page_size}")
        self.group = group
        self.pages = pages
        try:
            self.native = _native.KvPool(
                group.index, list(group.layers), group.kv_heads, group.head_dim, group.dtype, pages
            )
        except ValueError as error:
            raise DeviceError(f"cpu: {error}; choose another KV dtype") from None

    @property
    def bytes(self) -> int:
        return self.native.bytes

    def copy_page(self, source: int, target: int) -> None:
        self.native.copy_page(source, target)


class CpuProgram:
    """Linked blocks; keeps alive what the native program points into."""

    def __init__(self, lane: _native.Lane, native: _native.Program, buffers: StepBuffers) -> None:
        self._lane = lane
        self._native = native
        self._buffers = buffers
        self._queued: Batch | None = None

    @property
    def rows(self) -> int:
        return self._native.rows

    @property
    def workspace_bytes(self) -> int:
        return self._native.workspace_bytes

    def submit(self, batch: Batch, wait: Sequence[Event] = (), signal: Event | None = None) -> None:
        self._queued = batch
        timeline, value = (signal.timeline, signal.value) if signal else (None, 0)
        events = [(event.timeline, event.value) for event in wait]
        try:
            self._lane.submit(self._native, batch.data, events, timeline, value)
        except RuntimeError as error:
            raise DeviceError(f"cpu: {error}") from None


class CpuDevice:
    """threads: size of the lane; None: one per usable physical core. isa: scalar, avx2, vnni256, avxvnni or avx512;
    None: the variable TANDEM_CPU_ISA, or else the fastest that this CPU runs. Raises DeviceError for kernels that
    it does not run.
    """

    def __init__(self, threads: int | None = None, isa: str | None = None) -> None:
        if threads is not None and not 1 <= threads <= 1024:
            raise DeviceError(f"cpu: {threads} threads; expected 1 to 1024")
        try:
            self.isa = _native.choose_isa(isa or os.environ.get("TANDEM_CPU_ISA", ""))
        except ValueError as error:
            raise DeviceError(f"cpu: {error}") from None
        self.threads = threads or default_threads()
        self._lane = _native.Lane(self.threads)
        self._packed: WeakValueDictionary[tuple[int, int], _Packed] = WeakValueDictionary()
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = os.sysconf("SC_PHYS_PAGES") * page, os.sysconf("SC_AVPHYS_PAGES") * page
        self.info = DeviceInfo(
            name="cpu",
            kind="cpu",
            description=f"{self.threads} threads, {self.isa} kernels",
            memory=(MemorySpace("host", total, free, host_mapped=True),),
            threads=self.threads,
        )

    def load(self, spec: BlockSpec, weights: Mapping[str, Tensor], slice: Slice | None = None) -> CpuBlock:
        check_weights(spec, weights)
        work = spec
        if slice is not None:
            work = slice_spec(spec, slice)
            weights = slice_weights(spec, weights, slice)
        matrices = self._pack({role: t for role, t in weights.items() if len(t.shape) == 2})
        vectors = {role: dequantize(t) for role, t in weights.items() if len(t.shape) == 1}
        return CpuBlock(spec, slice, work, matrices, vectors)

    def plan_weights(self, blocks: Sequence[tuple[BlockSpec, Mapping[str, Tensor], Slice | None]]) -> int:
        total = 0
        matrices: set[tuple[int, int]] = set()
        for _, weights in headers(blocks):
            for tensor in weights.values():
                if len(tensor.shape) != 2:
                    total += 4 * tensor.elements
                elif (key := (tensor.data.ctypes.data, tensor.nbytes)) not in matrices:
                    matrices.add(key)
                    total += _native.packed_bytes(tensor.type.ggml_id, *tensor.shape)
        return total

    def plan_workspace(self, programs: Sequence[ProgramPlan], samples: int) -> int:
        return max((self._workspace(program, samples) for program in programs), default=0)

    def _workspace(self, program: ProgramPlan, samples: int) -> int:
        need = _native.WorkspaceNeed()
        ropes = set()
        for spec in program.specs:
            match spec:
                case AttentionSpec():
                    need.attention(spec.hidden, spec.heads, spec.kv_heads, spec.head_dim)
                    ropes |= {spec.rope} if spec.rope else set()
                case FFNSpec():
                    need.ffn(spec.hidden, spec.ffn)
                case CombineSpec():
                    need.combine(spec.hidden)
                case HeadSpec():
                    need.head(spec.hidden)
                case EmbedSpec():
                    pass
        for rope in ropes:
            need.ropes(len(ropes), rope.dims // 2)
        operands = max(program.rows, samples) if isinstance(program.specs[-1], HeadSpec) else program.rows
        return need.bytes(program.rows, operands, self.threads)

    def plan_host(self, programs: Sequence[ProgramPlan], layout: BatchLayout) -> int:
        """0: it works in the step's own buffers."""
        return 0

    def allocate_kv(self, group: KVGroupSpec, pages: int) -> CpuKVPool:
        return CpuKVPool(group, pages)

    def link(
        self, blocks: Sequence[CpuBlock], *, rows: int, buffers: StepBuffers, kv: Sequence[CpuKVPool] = ()
    ) -> CpuProgram:
        """Raises DeviceError where a block's KV pool or buffers are missing or too small."""
        native = self._program(rows, buffers)
        for block in blocks:
            check_buffers("cpu", block.spec, block.slice, buffers, rows)
            _add(native, block, kv)
        native.seal(self._lane)
        return CpuProgram(self._lane, native, buffers)

    def close(self) -> None:
        self._lane.close()

    def _program(self, rows: int, buffers: StepBuffers) -> _native.Program:
        try:
            return _native.Program(
                self.isa, self.threads, rows, buffers.hidden, buffers.logits, buffers.partials, buffers.slots
            )
        except ValueError as error:
            raise DeviceError(f"cpu: {error}") from None

    def _pack(self, tensors: Mapping[str, Tensor]) -> dict[str, _Packed]:
        """The matrices by role, those that are not packed yet all in one go."""
        found: dict[tuple[int, int], _Packed] = {}
        missing: dict[tuple[int, int], Tensor] = {}
        for tensor in tensors.values():
            packed = self._packed.get(_address(tensor))
            if packed is not None and packed.source() is tensor.data:
                found[_address(tensor)] = packed
            else:
                missing[_address(tensor)] = tensor
        sources = [(t.type.ggml_id, t.shape[0], t.shape[1], t.data, t.file) for t in missing.values()]
        try:
            matrices = self._lane.pack(self.isa, sources)
        except _native.StepFailed as error:
            raise ModelFileError(str(error)) from None
        for (key, tensor), matrix in zip(missing.items(), matrices, strict=True):
            found[key] = self._packed[key] = _Packed(matrix, tensor)
        return {role: found[_address(tensor)] for role, tensor in tensors.items()}


def _address(tensor: Tensor) -> tuple[int, int]:
    return tensor.data.ctypes.data, tensor.nbytes


def _add(native: _native.Program, block: CpuBlock, kv: Sequence[CpuKVPool]) -> None:
    """Appends the block's operations to a program."""
    matrices = {role: packed.matrix for role, packed in block.matrices.items()}
    partial = block.slice.index if block.slice else -1
    match block.work:
        case EmbedSpec() as spec:
            native.add_embed(matrices["embedding"], spec.scale)
        case AttentionSpec() as spec:
            native.add_attention(
                **matrices,
                q_bias=block.vector("q_bias"),
                k_bias=block.vector("k_bias"),
                v_bias=block.vector("v_bias"),
                o_bias=block.vector("o_bias"),
                norm=block.norm("norm", spec.norm),
                q_norm=block.norm("q_norm", spec.qk_norm),
                k_norm=block.norm("k_norm", spec.qk_norm),
                post_norm=block.norm("post_norm", spec.post_norm),
                rope=_rope(spec),
                pool=pool_of("cpu", spec, kv).native,
                layer=spec.layer,
                heads=spec.heads,
                kv_heads=spec.kv_heads,
                head_dim=spec.head_dim,
                window=spec.window or 0,
                scale=spec.scale,
                softcap=spec.softcap or 0.0,
                partial=partial,
            )
        case FFNSpec() as spec:
            native.add_ffn(
                **matrices,
                norm=block.norm("norm", spec.norm),
                post_norm=block.norm("post_norm", spec.post_norm),
                activation=_ACTIVATIONS[spec.activation],
                partial=partial,
            )
        case CombineSpec() as spec:
            native.add_combine(
                slices=spec.slices,
                post_norm=block.norm("post_norm", spec.post_norm),
                bias=block.vector("bias"),
            )
        case HeadSpec() as spec:
            native.add_head(output=matrices["output"], norm=block.norm("norm", spec.norm), softcap=spec.softcap or 0.0)


def _rope(spec: AttentionSpec) -> _native.Rope:
    if spec.rope is None:
        return _native.Rope()
    return _native.Rope(spec.rope.inverse_frequencies(), spec.rope.layout == "interleaved")
