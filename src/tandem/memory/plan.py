"""The memory plan: what each device will hold, in bytes, worked out from headers before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import gcd
from typing import Any

from tandem._native import sampler_bytes
from tandem.devices.base import Device, KVGroupSpec, ProgramPlan
from tandem.devices.batch import BatchLayout
from tandem.devices.candidates import candidate_shapes
from tandem.devices.segment import Stage
from tandem.devices.spec import AttentionSpec, HeadSpec, KVDtype
from tandem.errors import MemoryPlanError
from tandem.memory.arena import ALIGNMENT, aligned
from tandem.memory.system import counted, format_bytes
from tandem.models.spec import ModelSpec
from tandem.weights.tensor import Tensor

PAGE_SIZE = 16
# Where the head's device puts tokens where the next step finds them; one elsewhere.
STEPS_IN_FLIGHT = 2
# Prompt logprobs need the logits of every prompt row: a step brings this many bytes of them, at least 16 rows.
_SCORE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """What an engine is built for.

    context: positions of one sequence, prompt and answer together. sequences: how many run at once.
    rows: the largest step; also the largest prefill chunk.
    """

    context: int
    sequences: int
    rows: int
    kv_dtype: KVDtype = "f16"

    def samples(self, vocab: int) -> int:
        """Rows of logits of a step: one per sequence, and some that score prompts."""
        return self.sequences + min(self.rows, max(16, _SCORE_BYTES // (4 * vocab)))


@dataclass(frozen=True, slots=True)
class KVGroupPlan:
    """One KV group's pool. sequence_pages: the most pages that one live sequence references in it."""

    device: str
    group: KVGroupSpec
    sequence_pages: int
    pages: int

    @property
    def bytes(self) -> int:
        return self.pages * self.group.page_bytes


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """Bytes on one device. memory: the space they come from; devices that work in host memory share `host`.

    host: of the host's memory in any case, as what passes on to the device and back.
    """

    device: str
    memory: str
    weights: int
    kv: int
    workspace: int
    host: int

    @property
    def own(self) -> int:
        """Bytes of the space `memory`."""
        return self.weights + self.kv + self.workspace

    @property
    def total(self) -> int:
        return self.own + self.host


def grammar_mask_bytes(vocab: int, sequences: int) -> int:
    """Of the masks of a step in which every sequence follows a grammar: a bit for each token, in whole words."""
    return 4 * sequences * -(-vocab // 32)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """kv_positions: positions that the full-attention pools hold over all sequences; `kv_sequences` of them can be as
    long as the context at the same time. staging: host buffers that a step's programs share. sampler: its
    results, work space for each host thread, and a step's masks of tokens that grammars allow. micro_rows: the largest
    micro-batch; the rows of the layout are those of all micro-batches.
    """

    model: str
    limits: Limits
    devices: tuple[DevicePlan, ...]
    groups: tuple[KVGroupPlan, ...]
    layout: BatchLayout
    staging: int
    sampler: int
    kv_positions: int
    micro_rows: int

    @property
    def kv_sequences(self) -> int:
        return self.kv_positions // self.limits.context

    @property
    def total(self) -> int:
        return self.staging + self.sampler + sum(device.total for device in self.devices)

    def by_memory(self) -> dict[str, int]:
        """Bytes per memory space; staging and sampler are the host's. A device that works in host memory has an entry,
        too: there may be a limit to what it reaches.
        """
        spaces = {"host": self.staging + self.sampler}
        for device in self.devices:
            # Lanes of one GPU share its memory.
            name = device.device.partition("/")[0]
            spaces[name] = spaces.get(name, 0) + device.own
            spaces["host"] += device.host + (device.own if device.memory == "host" else 0)
        return spaces

    def to_json(self) -> dict[str, Any]:
        """Everything as plain numbers and strings, bytes throughout."""
        return {
            "model": self.model,
            **asdict(self.limits),
            "kv_positions": self.kv_positions,
            "kv_sequences": self.kv_sequences,
            "devices": [{**asdict(device), "total": device.total} for device in self.devices],
            "kv_groups": [
                {
                    "device": plan.device,
                    "layers": list(plan.group.layers),
                    "window": plan.group.window,
                    "page_size": plan.group.page_size,
                    "page_bytes": plan.group.page_bytes,
                    "pages": plan.pages,
                    "pages_per_sequence": plan.sequence_pages,
                    "bytes": plan.bytes,
                }
                for plan in self.groups
            ],
            "staging": self.staging,
            "sampler": self.sampler,
            "total": self.total,
        }

    def table(self) -> str:
        """The plan for a reader."""
        limits = self.limits
        rows: list[tuple[str, ...]] = [("device", "weights", "KV", "workspace", "on the host", "total")]
        rows += [
            (d.device, *(format_bytes(n) for n in (d.weights, d.kv, d.workspace, d.host, d.total)))
            for d in self.devices
        ]
        rows.append(("staging", "", "", "", "", format_bytes(self.staging)))
        rows.append(("sampler", "", "", "", "", format_bytes(self.sampler)))
        rows.append(("all", "", "", "", "", format_bytes(self.total)))
        if not any(d.host for d in self.devices):
            rows = [(*row[:4], row[5]) for row in rows]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            f"{self.model}: context {limits.context:,}, up to {counted(limits.sequences, 'sequence')} at once, "
            f"{limits.rows} rows a step, KV {limits.kv_dtype}",
            f"KV holds {self.kv_positions:,} positions: {counted(self.kv_sequences, 'sequence')} of full length",
            "",
        ]
        for row in rows:
            cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
            lines.append("  ".join(cells).rstrip())
        lines.append("")
        for plan in self.groups:
            reach = "full attention" if plan.group.window is None else f"window {plan.group.window}"
            lines.append(
                f"KV group on {plan.device}: {counted(len(plan.group.layers), 'layer')}, {reach}: "
                f"{counted(plan.pages, 'page')} of {format_bytes(plan.group.page_bytes)}, "
                f"at most {plan.sequence_pages:,} per sequence"
            )
        return "\n".join(lines)


def host_threads(devices: Iterable[Device]) -> int:
    """Of the host, as many as the devices compute with: they are free between two steps."""
    return max(device.info.threads or 1 for device in devices)


def sequence_pages(context: int, window: int | None, rows: int) -> int:
    """The most pages that one sequence references: all of its context, or a window and the chunk that moves it."""
    whole = -(-context // PAGE_SIZE)
    return whole if window is None else min(whole, -(-(window + rows) // PAGE_SIZE) + 1)


def kv_groups(spec: ModelSpec, stages: Sequence[Stage], kv_dtype: KVDtype) -> list[tuple[str, KVGroupSpec]]:
    """Layers of equal device, KV heads, head size and window form a group; a device has its slices' heads."""
    layers: dict[tuple[str, int, int, int | None], list[int]] = {}
    for segment in (segment for stage in stages for segment in stage):
        for block in (part.work(spec.blocks[part.block]) for part in segment.parts):
            if isinstance(block, AttentionSpec):
                layers.setdefault((segment.device, block.kv_heads, block.head_dim, block.window), []).append(
                    block.layer
                )
    return [
        (device, KVGroupSpec(index, tuple(members), kv_heads, head_dim, window, PAGE_SIZE, kv_dtype))
        for index, ((device, kv_heads, head_dim, window), members) in enumerate(layers.items())
    ]


def micro_batch_rows(rows: int, micro_batches: int, hidden: int) -> int:
    """Rows of the largest of so many micro-batches. Each begins at a whole memory page of the residual stream, so that
    devices can import it by itself.
    """
    if micro_batches == 1:
        return rows
    each = -(-rows // micro_batches)
    step = ALIGNMENT // gcd(ALIGNMENT, 4 * hidden)
    return -(-each // step) * step


def step_buffer_bytes(
    spec: ModelSpec, layout: BatchLayout, *, candidates: bool, micro_batches: int = 1, slices: int = 0
) -> int:
    """Residual stream, logits, token slots and each micro-batch's partials; for a head that picks candidates, what it
    is asked and answers, for each step in flight. Page-aligned.
    """
    elements = [layout.max_rows * spec.hidden, layout.max_samples * spec.vocab, layout.max_sequences]
    if slices:
        elements += [slices * (layout.max_rows // micro_batches) * spec.hidden] * micro_batches
    if candidates:
        shapes = candidate_shapes(layout.max_samples, layout.max_sequences, spec.vocab)
        elements += [rows * columns for rows, columns in shapes.values()] * layout.turns
    return sum(aligned(4 * count) for count in elements)


class Planner:
    """Plans for one model on given devices. stages: of the placement, whose last one is the head's, alone where there
    are micro-batches. `weights(i)` are block i's tensors, of which only headers are read.
    """

    def __init__(
        self,
        spec: ModelSpec,
        stages: Sequence[Stage],
        devices: Mapping[str, Device],
        weights: Callable[[int], Mapping[str, Tensor]],
        *,
        micro_batches: int = 1,
    ) -> None:
        self._spec = spec
        self._stages = stages
        self._devices = devices
        self._micro_batches = micro_batches
        segments = [segment for stage in stages for segment in stage]
        self._slices = max(segment.slices for segment in segments)
        self._weights = {
            name: device.plan_weights(
                [
                    part.loadable(spec.blocks[part.block], weights(part.block))
                    for segment in segments
                    if segment.device == name
                    for part in segment.parts
                ]
            )
            for name, device in devices.items()
        }

    def plan(self, limits: Limits, kv_positions: int) -> MemoryPlan:
        """The plan for KV pools of `kv_positions` positions, at least one context."""
        groups = []
        for owner, group in kv_groups(self._spec, self._stages, limits.kv_dtype):
            each = sequence_pages(limits.context, group.window, limits.rows)
            # Short sequences need as many pages where attention slides as where it is full.
            pages = min(-(-kv_positions // PAGE_SIZE), limits.sequences * each)
            group = replace(group, context=limits.context)
            groups.append(KVGroupPlan(owner, group, each, max(pages, each)))
        micro_rows = micro_batch_rows(limits.rows, self._micro_batches, self._spec.hidden)
        picks = self._devices[self._stages[-1][0].device].info.candidates > 0
        layout = BatchLayout(
            max_rows=micro_rows * self._micro_batches,
            max_sequences=limits.sequences,
            max_samples=limits.samples(self._spec.vocab),
            max_pages=limits.sequences * sum(plan.sequence_pages for plan in groups),
            kv_groups=len(groups),
            turns=STEPS_IN_FLIGHT if picks else 1,
        )
        plans = []
        for name, weights in self._weights.items():
            device = self._devices[name]
            programs = self._programs(name, micro_rows, limits.context)
            space = device.info.memory[0]
            plans.append(
                DevicePlan(
                    device=name,
                    memory="host" if space.host_mapped else name,
                    weights=weights,
                    kv=sum(plan.bytes for plan in groups if plan.device == name),
                    workspace=device.plan_workspace(programs, layout.max_samples),
                    host=device.plan_host(programs, layout),
                )
            )
        buffers = step_buffer_bytes(
            self._spec, layout, candidates=picks, micro_batches=self._micro_batches, slices=self._slices
        )
        # The engine's batch, which is the step's; with micro-batches, theirs and the head's. All of them for each turn.
        batches = layout.turns * (1 if self._micro_batches == 1 else self._micro_batches + 2)
        sampler = sampler_bytes(self._spec.vocab, layout.max_samples, host_threads(self._devices.values()))
        return MemoryPlan(
            model=self._spec.name,
            limits=limits,
            devices=tuple(plans),
            groups=tuple(groups),
            layout=layout,
            staging=buffers + batches * layout.size * 4,
            sampler=sampler + grammar_mask_bytes(self._spec.vocab, limits.sequences),
            kv_positions=kv_positions,
            micro_rows=micro_rows,
        )

    def _programs(self, device: str, micro_rows: int, context: int) -> list[ProgramPlan]:
        """As the executor links them: each segment for every micro-batch, a head that stands alone once."""
        programs = []
        for segment in (segment for stage in self._stages for segment in stage if segment.device == device):
            specs = tuple(part.work(self._spec.blocks[part.block]) for part in segment.parts)
            slices = self._slices if segment.slices else 0
            if self._micro_batches > 1 and isinstance(specs[-1], HeadSpec):
                programs.append(ProgramPlan(specs, micro_rows * self._micro_batches, self._micro_batches))
            else:
                programs += [ProgramPlan(specs, micro_rows, at, slices, context) for at in range(self._micro_batches)]
        return programs

    def fit(
        self, limits: Limits, budget: Mapping[str, int], *, full_sequences: int = 1, at_most: int | None = None
    ) -> MemoryPlan:
        """The plan with the largest KV pools within `budget`: bytes per memory space; one not named is not bounded.

        They hold at least `full_sequences` sequences of full length, and no more than run at once, nor `at_most`
        positions. Raises MemoryPlanError, naming the largest settings that would fit.
        """
        least = limits.context * full_sequences
        if not self._fits(self.plan(limits, least), budget):
            raise MemoryPlanError(self._refusal(limits, budget, full_sequences))
        most = limits.context * limits.sequences
        if at_most is not None:
            most = max(least, min(most, at_most))
        return self.plan(limits, _largest(lambda n: self._fits(self.plan(limits, n), budget), least, most))

    def largest_context(self, limits: Limits, budget: Mapping[str, int], full_sequences: int, bound: int) -> int:
        """The largest context up to `bound` that fits; 0 when none does."""
        return _largest(
            lambda n: self._fits(self.plan(replace(limits, context=n), n * full_sequences), budget), 0, bound
        )

    def largest_sequences(self, limits: Limits, budget: Mapping[str, int], bound: int) -> int:
        """The largest number of sequences of full length up to `bound` that fit at once; 0 when none does."""
        return _largest(
            lambda n: self._fits(self.plan(replace(limits, sequences=n), n * limits.context), budget), 0, bound
        )

    @staticmethod
    def _fits(plan: MemoryPlan, budget: Mapping[str, int]) -> bool:
        return all(needed <= budget.get(space, needed) for space, needed in plan.by_memory().items())

    def _refusal(self, limits: Limits, budget: Mapping[str, int], full_sequences: int) -> str:
        plan = self.plan(limits, limits.context * full_sequences)
        needs = ", ".join(
            f"{format_bytes(needed)} of {space} memory where {format_bytes(budget[space])} may be used"
            for space, needed in plan.by_memory().items()
            if needed > budget.get(space, needed)
        )
        what = f"{counted(full_sequences, 'sequence')} of {limits.context:,} positions"
        text = f"{self._spec.name} with {what} needs {needs}"
        context = self.largest_context(limits, budget, full_sequences, limits.context)
        sequences = self.largest_sequences(limits, budget, full_sequences)
        options = []
        if context:
            options.append(f"a context of {context:,}")
        if sequences:
            options.append(f"{counted(sequences, 'sequence')} of this context")
        if not options:
            return f"{text}; no context and no number of sequences would fit: free memory or take a smaller model"
        return f"{text}; what would fit is {' or '.join(options)}"


def _largest(fits: Callable[[int], bool], low: int, high: int) -> int:
    """The largest n in [low, high] for which `fits` holds, given that it holds at `low` and is monotonic."""
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low
