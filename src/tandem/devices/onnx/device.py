"""`onnx:PROVIDER`: blocks as ONNX graphs of static shapes, through one of ONNX Runtime's execution providers.

A block's weights are packed once, in the form that the provider multiplies by itself, and sit in the graphs before and
after attention and in those of the FFN, three row buckets each at most. Providers keep a copy of them in every session
(ONNX Runtime's own, too, when it is handed them by reference), and all of these are in the plan. What a provider takes
beside, for intermediate results and compiled code, only it knows: it is not in the plan.

A sequence's results depend on the bucket that its batch took, and so on the batch: in the last bits only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tandem.cache import cache_folder
from tandem.devices.base import DeviceInfo, KVGroupSpec, MemorySpace, ProgramPlan, StepBuffers
from tandem.devices.batch import BatchLayout
from tandem.devices.cpu.threads import default_threads
from tandem.devices.lane import Lane
from tandem.devices.linking import check_buffers, pool_of
from tandem.devices.onnx.attention import Counters, GroupAttention, attention_needs
from tandem.devices.onnx.attention_graph import Pages, attention_graph
from tandem.devices.onnx.buckets import Shape, attention_shapes, reach
from tandem.devices.onnx.graph import Array, Graph
from tandem.devices.onnx.kv import OnnxKVPool
from tandem.devices.onnx.operations import COPIES, OnnxBlock, block_needs, make_operation
from tandem.devices.onnx.probe_forms import probe_forms
from tandem.devices.onnx.program import OnnxProgram
from tandem.devices.onnx.providers import resolve, runtime
from tandem.devices.onnx.sessions import Session, Sessions
from tandem.devices.onnx.weights_form import Forms, pack_block, packed_bytes
from tandem.devices.onnx.workspace import Workspace, merge, workspace_bytes
from tandem.devices.slicing import headers
from tandem.devices.spec import AttentionSpec, BlockSpec, RopeSpec, Slice
from tandem.errors import DeviceError
from tandem.weights.tensor import Tensor

# Of MatMulNBits: activations may become 8-bit by blocks, as the CPU device's do; some kernels exist for nothing else.
_ACCURACY = 4
AttentionKey = tuple[int, int, int, float, float | None, str, int]


class OnnxDevice:
    """name: as `tandem.devices.onnx.providers` has it. threads: of the host, for OpenVINO's CPU; None takes one per
    usable core; ONNX Runtime's own kernels compute on the lane's thread alone. cache: a folder for compiled graphs;
    None: the user's, for processors whose compiler is slow. forms: of weights; None asks the provider. gathers: whether
    the host brings keys and values together; None: where the provider does not work on the host's memory.

    Raises DeviceError, in one sentence, where the provider is not there or refuses to work.
    """

    def __init__(
        self,
        name: str = "onnx:cpu",
        threads: int | None = None,
        *,
        cache: Path | None = None,
        forms: Forms | None = None,
        gathers: bool | None = None,
    ) -> None:
        target = resolve(name)
        self.counters = Counters()
        self._threads = threads or default_threads()
        if cache is None and target.accelerator and target.provider.name == "openvino":
            cache = cache_folder() / "onnx" / f"{target.provider.name}-{target.processor}-{runtime().__version__}"
        self._sessions = Sessions(target, self._threads, cache)
        self._gathers = not target.in_place if gathers is None else gathers
        self._forms = probe_forms(self._once, _ACCURACY) if forms is None else forms
        self._lane = Lane(name)
        self._workspace = Workspace()
        self._attention: dict[AttentionKey, dict[Shape, Session]] = {}
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = os.sysconf("SC_PHYS_PAGES") * page, os.sysconf("SC_AVPHYS_PAGES") * page
        self.info = DeviceInfo(
            name=name,
            kind="onnx",
            description=target.description,
            memory=(MemorySpace("host", total, free, host_mapped=True),),
            threads={"openvino": self._threads, "cpu": 1}[target.provider.name] if not target.accelerator else None,
        )

    def load(self, spec: BlockSpec, weights: Mapping[str, Tensor], slice: Slice | None = None) -> OnnxBlock:
        return OnnxBlock(pack_block(spec, weights, self._forms, slice))

    def plan_weights(self, blocks: Sequence[tuple[BlockSpec, Mapping[str, Tensor], Slice | None]]) -> int:
        return COPIES * sum(packed_bytes(spec, weights, self._forms) for spec, weights in headers(blocks))

    def plan_workspace(self, programs: Sequence[ProgramPlan], samples: int) -> int:
        return workspace_bytes(
            merge(
                [
                    self._needs(program.specs, program.rows, samples, program.context or program.rows)
                    for program in programs
                ]
            )
        )

    def plan_host(self, programs: Sequence[ProgramPlan], layout: BatchLayout) -> int:
        """0: it works in the step's own buffers."""
        return 0

    def allocate_kv(self, group: KVGroupSpec, pages: int) -> OnnxKVPool:
        return OnnxKVPool(self.info.name, group, pages)

    def link(
        self, blocks: Sequence[OnnxBlock], *, rows: int, buffers: StepBuffers, kv: Sequence[OnnxKVPool] = ()
    ) -> OnnxProgram:
        """Compiles what the blocks need and is not compiled yet. Raises DeviceError where a block's KV pool or buffers
        are missing or too small, or the provider refuses a graph.
        """
        name = self.info.name
        for block in blocks:
            check_buffers(name, block.spec, block.slice, buffers, rows)
        if rows < 1:
            raise DeviceError(f"{name}: a program of {rows} rows")
        samples = len(buffers.logits)
        works = [block.work for block in blocks]
        groups: dict[int, GroupAttention] = {}
        by_pool: dict[int, GroupAttention] = {}
        ropes: dict[RopeSpec, None] = {}
        for spec in works:
            if not isinstance(spec, AttentionSpec):
                self._workspace.reserve(block_needs(spec, rows, samples))
                continue
            pool = pool_of(name, spec, kv)
            context = pool.group.context or 16 * pool.pages
            self._workspace.reserve(self._needs([spec], rows, samples, context))
            if id(pool) not in by_pool:
                by_pool[id(pool)] = self._group(spec, pool, rows, context)
            groups[spec.layer] = by_pool[id(pool)]
            if spec.rope:
                ropes[spec.rope] = None
        operations = [make_operation(block, self._sessions.open, rows, samples, groups) for block in blocks]
        return OnnxProgram(
            name, self._lane, operations, rows, buffers, self._workspace, list(by_pool.values()), list(ropes)
        )

    def close(self) -> None:
        self._lane.close()

    def _needs(self, specs: Sequence[BlockSpec], rows: int, samples: int, context: int) -> dict[str, int]:
        needs = []
        for spec in specs:
            needs.append(block_needs(spec, rows, samples))
            if isinstance(spec, AttentionSpec):
                needs.append(attention_needs(spec, rows, reach(spec.window, rows, context), gathers=self._gathers))
        return merge(needs)

    def _group(self, spec: AttentionSpec, pool: OnnxKVPool, rows: int, context: int) -> GroupAttention:
        """Attention over a pool, with its sessions: those of equal shapes are shared."""
        seen = reach(spec.window, rows, context)
        pages = 0 if self._gathers else pool.pages
        key = (spec.heads, spec.kv_heads, spec.head_dim, spec.scale, spec.softcap, pool.group.dtype, pages)
        sessions = self._attention.setdefault(key, {})
        for shape in attention_shapes(rows, seen):
            if shape not in sessions:
                graph = attention_graph(
                    spec,
                    shape.sequences,
                    shape.rows,
                    shape.context,
                    pages=Pages(pages) if pages else None,
                    kv_dtype="f16" if pool.group.dtype == "f16" else "f32",
                )
                sessions[shape] = self._sessions.open(graph)
        return GroupAttention(
            self.info.name, spec, pool, rows, seen, sessions, self._workspace, self.counters, gathers=self._gathers
        )

    def _once(self, graph: Graph, arrays: Mapping[str, Array]) -> Mapping[str, Array]:
        """Runs a graph that nobody runs again."""
        outputs = {port.name: np.zeros(port.shape, port.dtype) for port in graph.outputs}
        self._sessions.open(graph).run({**arrays, **outputs})
        return outputs
