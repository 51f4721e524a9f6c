"""`vulkan:N`: blocks as recorded command buffers of our own compute shaders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

from tandem._native import MAX_CANDIDATES, Timeline
from tandem.devices.base import Ceilings, DeviceInfo, Event, KVGroupSpec, ProgramPlan, StepBuffers
from tandem.devices.batch import BatchLayout
from tandem.devices.candidates import candidate_shapes
from tandem.devices.lane import Lane
from tandem.devices.linking import check_buffers, pool_of
from tandem.devices.slicing import headers, slice_spec, slice_weights
from tandem.devices.spec import AttentionSpec, BlockSpec, EmbedSpec, HeadSpec, Slice
from tandem.devices.vulkan.blocks import VulkanBlock, grouped, load_block, vector_sizes
from tandem.devices.vulkan.budget import memory_spaces
from tandem.devices.vulkan.ceilings import measure_ceilings
from tandem.devices.vulkan.context import Context, byte_matrix_shape, byte_matrix_shapes, matrix_shapes
from tandem.devices.vulkan.instance import Instance, shared_instance
from tandem.devices.vulkan.kept import pipelines_path, tuning_path
from tandem.devices.vulkan.kv import VulkanKVPool
from tandem.devices.vulkan.matrices import Matrix, Vectors, matrix_bytes, matrix_key
from tandem.devices.vulkan.memory import Counters, Memory, rounded
from tandem.devices.vulkan.pipelines import Pipelines
from tandem.devices.vulkan.probe import Gpu, probe_all
from tandem.devices.vulkan.products import Kernels
from tandem.devices.vulkan.program import Machine, VulkanProgram, step_data_bytes
from tandem.devices.vulkan.shared import SharedArrays
from tandem.devices.vulkan.tiles import NARROW_ROWS
from tandem.devices.vulkan.tuning import Tuner, wants_tuning
from tandem.devices.vulkan.variants import Abilities
from tandem.devices.vulkan.workspace import Workspace, sizes
from tandem.devices.weights_check import check_weights
from tandem.errors import DeviceError
from tandem.weights.tensor import Tensor


@dataclass(frozen=True, slots=True)
class Mask:
    """What to pretend that a GPU lacks, for tests. storage_range: a lower limit of a binding's bytes."""

    unified: bool = False
    external_host_memory: bool = False
    integer_dot: bool = False
    cooperative_matrix: bool = False
    storage_range: int | None = None

    def apply(self, gpu: Gpu) -> Gpu:
        limits = gpu.limits
        if self.external_host_memory:
            limits = replace(limits, import_alignment=0)
        if self.storage_range is not None:
            limits = replace(limits, storage_range=min(limits.storage_range, self.storage_range))
        features = replace(gpu.features, integer_dot=gpu.features.integer_dot and not self.integer_dot)
        if self.cooperative_matrix:
            features = replace(features, cooperative_matrix=())
        return replace(gpu, limits=limits, features=features, type="discrete" if self.unified else gpu.type)


class VulkanDevice:
    """index: the device's number in `tandem devices`. lane: 0, or the number of another logical device of the same GPU,
    with a queue of its own. deterministic: a sequence's results are bitwise the same alone and in any batch; without
    it, the fastest kernel for a step's rows runs, whose order of adding shows in last bits. tune: whether kernels are
    chosen by measuring them (`tuning.py`); None as TANDEM_VULKAN_TUNE says.
    Raises DeviceError where there is no such device, or it lacks what our shaders need.
    """

    def __init__(
        self,
        index: int = 0,
        *,
        lane: int = 0,
        deterministic: bool = True,
        tune: bool | None = None,
        mask: Mask | None = None,
        instance: Instance | None = None,
    ) -> None:
        name = f"vulkan:{index}/{lane}" if lane else f"vulkan:{index}"
        instance = instance or shared_instance()
        found = probe_all(instance)
        if not 0 <= index < len(found):
            names = ", ".join(f"vulkan:{gpu.index} ({gpu.name})" for gpu in found)
            raise DeviceError(f"device '{name}' does not exist; there are: {names}")
        gpu = (mask or Mask()).apply(found[index])
        context = Context(instance, gpu, name)
        memory = Memory(context)
        worker = Lane(name)
        self._context = context
        kernels = _kernels(gpu, deterministic)
        tuned = wants_tuning(gpu) if tune is None else tune
        # A software driver has its own cache, and what it compiles is soon made. A masked one would make what
        # others have used.
        keeps = mask is None and (tuned or gpu.type != "cpu")
        self._machine = Machine(
            context,
            memory,
            Pipelines(context, pipelines_path(gpu) if keeps else None),
            Workspace(memory, worker, resident=not gpu.unified, splits=kernels.matrices),
            SharedArrays(memory),
            worker,
            kernels,
        )
        self._tuner = _tuner(self._machine, tuning_path(gpu, deterministic)) if tuned else None
        self._matrices: WeakValueDictionary[tuple[tuple[int, int], ...], Matrix] = WeakValueDictionary()
        self._closed = False
        self.info = DeviceInfo(
            name=name,
            kind="vulkan",
            description=f"{gpu.name}, {gpu.driver}",
            memory=memory_spaces(gpu),
            candidates=MAX_CANDIDATES,
        )

    @property
    def lost(self) -> bool:
        """See LosableDevice."""
        return self._context.queue.lost

    @property
    def counters(self) -> Counters:
        """What was allocated and copied since the device was opened."""
        return self._machine.memory.counters

    def load(self, spec: BlockSpec, weights: Mapping[str, Tensor], slice: Slice | None = None) -> VulkanBlock:
        check_weights(spec, weights)
        work = spec
        if slice is not None:
            work = slice_spec(spec, slice)
            weights = slice_weights(spec, weights, slice)
        memory = self._machine.memory
        return load_block(spec, slice, work, weights, self._matrix, lambda vectors: Vectors(memory, vectors))

    def plan_weights(self, blocks: Sequence[tuple[BlockSpec, Mapping[str, Tensor], Slice | None]]) -> int:
        total = 0
        seen: set[tuple[tuple[int, int], ...]] = set()
        for work, weights in headers(blocks):
            vectors = vector_sizes(work, weights)
            total += rounded(vectors) if vectors else 0
            for tensors in (tensors for each in grouped(weights).values() for tensors in each):
                key = matrix_key(tensors)
                if key not in seen:
                    seen.add(key)
                    total += matrix_bytes(self._context.gpu.limits, tensors)
        return total

    def plan_workspace(self, programs: Sequence[ProgramPlan], samples: int) -> int:
        resident, splits = not self._context.gpu.unified, self._machine.kernels.matrices
        needed: dict[str, int] = {}
        for program in programs:
            scratch = sizes(program.specs, program.rows, samples, resident=resident, splits=splits)
            needed |= {name: max(size, needed.get(name, 0)) for name, size in scratch.items()}
            self._check_bindings(program, samples, scratch)
        return sum(needed.values())

    def _check_bindings(self, program: ProgramPlan, samples: int, scratch: Mapping[str, int]) -> None:
        """Raises DeviceError where one binding cannot hold a step's logits, or a buffer of its scratch."""
        limit = self._context.gpu.limits.storage_range
        for vocab in (spec.vocab for spec in program.specs if isinstance(spec, HeadSpec)):
            if 4 * vocab * samples > limit:
                raise DeviceError(
                    f"{self.info.name}: a step's logits lie in one binding, which holds {limit:,} bytes on this GPU: "
                    f"{limit // (4 * vocab)} rows of {vocab:,} tokens, and {samples} are asked for; choose fewer "
                    "sequences"
                )
        for name, size in scratch.items():
            if size > limit:
                raise DeviceError(
                    f"{self.info.name}: a step of {program.rows} rows needs {size:,} bytes of scratch ({name}) in one "
                    f"binding, which holds {limit:,} on this GPU; choose fewer rows a step"
                )

    def plan_host(self, programs: Sequence[ProgramPlan], layout: BatchLayout) -> int:
        """A step's data, mirrors of the step's arrays that cannot be imported and, across a bus, staging buffers."""
        arrays: dict[tuple[str, int], int] = {}
        for program in programs:
            hidden = 4 * program.rows * program.specs[0].hidden
            arrays["hidden", program.buffers] = hidden
            if program.slices:
                arrays["partials", program.buffers] = program.slices * hidden
            for spec in program.specs:
                if isinstance(spec, EmbedSpec | HeadSpec):
                    arrays["slots", 0] = 4 * layout.max_sequences
                if isinstance(spec, HeadSpec):
                    arrays["logits", 0] = 4 * layout.max_samples * spec.vocab
                    shapes = candidate_shapes(layout.max_samples, layout.max_sequences, spec.vocab)
                    for turn in range(layout.turns):
                        arrays |= {(name, turn): 4 * count * width for name, (count, width) in shapes.items()}
        return self._machine.memory.planned_host(arrays.values()) + step_data_bytes(layout)

    def allocate_kv(self, group: KVGroupSpec, pages: int) -> VulkanKVPool:
        return VulkanKVPool(self._context, self._machine.memory, group, pages)

    def link(
        self, blocks: Sequence[VulkanBlock], *, rows: int, buffers: StepBuffers, kv: Sequence[VulkanKVPool] = ()
    ) -> VulkanProgram:
        """Raises DeviceError where a block's KV pool or buffers are missing or too small."""
        name = self.info.name
        if not 1 <= rows <= min(len(buffers.hidden), self._context.gpu.limits.groups[1]):
            raise DeviceError(f"{name}: a program of {rows} rows, but `hidden` has {len(buffers.hidden)}")
        for block in blocks:
            check_buffers(name, block.spec, block.slice, buffers, rows)
        pools = {
            block.work.layer: pool_of(name, block.work, kv) for block in blocks if isinstance(block.work, AttentionSpec)
        }
        self._machine.memory.settle()
        if self._tuner is not None:
            self._on_lane(partial(self._tuner.tune, blocks, rows, len(buffers.logits), list(self._matrices.values())))
        return VulkanProgram(self._machine, tuple(blocks), rows, buffers, pools)

    def measure_ceilings(self) -> Ceilings:
        """See MeasuredDevice."""
        found: list[Ceilings] = []
        machine = self._machine
        self._on_lane(lambda: found.append(measure_ceilings(machine.context, machine.memory, machine.pipelines)))
        return found[0]

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._machine.lane.close()
            self._context.close()

    def _on_lane(self, work: Callable[[], None]) -> None:
        """Between two steps; waits. Raises DeviceError as a step does."""
        done = Event(Timeline(), 1)
        self._machine.lane.submit(work, (), done)
        done.wait()

    def _matrix(self, tensors: Sequence[Tensor]) -> Matrix:
        """Matrices that blocks share are kept once, as long as a block has them."""
        key = matrix_key(tensors)
        matrix = self._matrices.get(key)
        if matrix is None or not matrix.holds(tensors):
            matrix = Matrix(self._machine.memory, self._context.gpu.limits, tensors)
            self._matrices[key] = matrix
        return matrix


def _kernels(gpu: Gpu, deterministic: bool) -> Kernels:
    limits = gpu.limits
    narrow = byte_matrix_shape(gpu, NARROW_ROWS)
    abilities = Abilities(
        integer_dot=gpu.features.integer_dot,
        deterministic=deterministic,
        matrix_shapes=matrix_shapes(gpu),
        byte_shapes=byte_matrix_shapes(gpu),
        narrow_shape=narrow.size if narrow else None,
        subgroup=limits.subgroup,
        shared_memory=limits.shared_memory,
        groups=limits.groups[0],
    )
    return Kernels(abilities)


def _tuner(machine: Machine, path: Path) -> Tuner:
    return Tuner(machine.context, machine.memory, machine.pipelines, machine.kernels, path)
