"""What a placement will take, predicted from a profile: pure functions, by simulating what the executor submits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tandem.devices.segment import Part as SegmentPart
from tandem.devices.segment import Segment
from tandem.devices.spec import AttentionSpec, FFNSpec, HeadSpec
from tandem.devices.weights_check import block_name
from tandem.errors import DeviceError
from tandem.models.spec import ModelSpec
from tandem.pipeline.lanes import Span, Task, busy_seconds, simulate
from tandem.pipeline.placement import Placement, host_of
from tandem.pipeline.profile import BlockProfile, DeviceProfile, Profile
from tandem.pipeline.workload import Part, StepShape, Workload, decode_step, prefill_steps

# Of the decode steps so many are simulated, and the rest interpolated: lengths grow evenly.
_DECODE_POINTS = 3


@dataclass(frozen=True, slots=True)
class StepCost:
    """A simulated step. seconds: from handing it to the devices until the host has it. host: between two steps.
    hidden: of both, what passes while the device has the next step already.
    """

    shape: StepShape
    spans: tuple[Span, ...]
    seconds: float
    host: float
    hidden: float = 0.0

    @property
    def total(self) -> float:
        return self.seconds + self.host - self.hidden


@dataclass(frozen=True, slots=True)
class Prediction:
    """A workload on a placement. prefill_s: until the last prompt's first token; decode_s: all steps after that.

    busy: seconds of each lane over the whole workload. decode, prefill: one step of each kind, for a picture.
    """

    workload: Workload
    prefill_s: float
    decode_s: float
    busy: dict[str, float] = field(compare=False)
    prefill: StepCost
    decode: StepCost | None

    @property
    def seconds(self) -> float:
        return self.prefill_s + self.decode_s

    @property
    def tokens_per_s(self) -> float:
        """New tokens over the whole time, prompts included."""
        return self.workload.batch * self.workload.new / self.seconds

    @property
    def prefill_tokens_per_s(self) -> float:
        return self.workload.batch * self.workload.prompt / self.prefill_s


class CostModel:
    """keys: of every block, as `profile.block_key` makes them."""

    def __init__(self, spec: ModelSpec, keys: Sequence[str], profile: Profile) -> None:
        self._spec = spec
        self._keys = tuple(keys)
        self._profile = profile
        self._combine = next((key for key in _block_keys(profile) if key.startswith("combine")), "")

    def predict(self, placement: Placement, workload: Workload) -> Prediction:
        """Time of the whole workload."""
        prefill = [self.step(placement, shape) for shape in prefill_steps(workload)]
        busy: dict[str, float] = {}
        for cost in prefill:
            _add(busy, busy_seconds(cost.spans), 1.0)
        # Sequences that were first have decoded a little while the last one read its prompt.
        ahead = sum(shape.samples for shape in (cost.shape for cost in prefill)) - workload.batch
        steps = max(0.0, workload.new - 1 - ahead / workload.batch)
        decode: StepCost | None = None
        decode_s = 0.0
        if steps > 0:
            points = [workload.new - steps + steps * (i + 0.5) / _DECODE_POINTS for i in range(_DECODE_POINTS)]
            costs = [self.step(placement, decode_step(workload, point)) for point in points]
            for cost in costs:
                decode_s += cost.total * steps / _DECODE_POINTS
                _add(busy, busy_seconds(cost.spans), steps / _DECODE_POINTS)
            decode = costs[len(costs) // 2]
        widest = max(prefill, key=lambda cost: cost.shape.rows)
        return Prediction(workload, sum(cost.total for cost in prefill), decode_s, busy, widest, decode)

    def step(self, placement: Placement, shape: StepShape) -> StepCost:
        """One step: the programs of every micro-batch in the order in which the executor queues them."""
        tasks = self.tasks(placement, shape)
        spans = simulate(tasks, self._slowdown, self._handover)
        last = self._profile.devices[tasks[-1].lane]
        host = last.host(shape.samples) if last.host is not None and shape.samples else 0.0
        device = max(span.end for span in spans)
        noticing = last.wake + len(tasks) * self._profile.noting
        alone = len({task.lane for task in tasks}) == 1
        decodes = shape.samples == shape.sequences == shape.rows
        # One device that picks tokens itself has the next step while the host attends to this one.
        hidden = min(device, noticing + host) if alone and decodes and last.runs_ahead else 0.0
        return StepCost(shape, tuple(spans), device + noticing, host, hidden)

    def tasks(self, placement: Placement, shape: StepShape) -> list[Task]:
        """Stage by stage, and in each stage micro-batch by micro-batch. A segment waits for all segments of its
        micro-batch in the stage before; the head of several micro-batches for the last stage of all of them.
        """
        pieces = shape.split(placement.micro_batches)
        stages = placement.stages()
        head_alone = placement.micro_batches > 1
        tasks: list[Task] = []
        before: list[tuple[int, ...]] = [() for _ in pieces]
        for number, stage in enumerate(stages):
            if head_alone and number == len(stages) - 1:
                waits = tuple(index for each in before for index in each)
                tasks.append(self._task(stage[0], shape, 0, waits))
                break
            for micro, piece in enumerate(pieces):
                begun = len(tasks)
                tasks += [self._task(segment, piece, micro, before[micro]) for segment in stage]
                before[micro] = tuple(range(begun, len(tasks)))
        return tasks

    def segment_seconds(self, segment: Segment, shape: StepShape) -> float:
        """A program alone on its lane."""
        device = self._profile.devices[segment.device]
        return device.program(shape.rows) + sum(self._part_seconds(device, part, shape) for part in segment.parts)

    def kind_seconds(self, placement: Placement, shape: StepShape) -> dict[str, float]:
        """Seconds of all lanes for attention, ffn and head of a step; the embedding and adding slices count as head."""
        spent = {"attention": 0.0, "ffn": 0.0, "head": 0.0}
        for piece in shape.split(placement.micro_batches):
            for segment in (segment for stage in placement.stages() for segment in stage):
                device = self._profile.devices[segment.device]
                for part in segment.parts:
                    kind = self._kind(part)
                    spent[kind if kind in spent else "head"] += self._part_seconds(device, part, piece)
        return spent

    def layer_seconds(self, device: str, rows: int) -> float:
        """All attention and FFN blocks on one device, for as many sequences of one row."""
        shape = StepShape((Part(rows, 1, 1),), 0)
        profile = self._profile.devices[device]
        return sum(
            self._part_seconds(profile, SegmentPart(index), shape)
            for index, block in enumerate(self._spec.blocks)
            if isinstance(block, AttentionSpec | FFNSpec)
        )

    def balanced_ratio(self, one: str, other: str, rows: int) -> float:
        """The share of FFN columns for `one` at which both finish together, while they slow each other down."""
        key = next(key for key in self._keys if key.startswith("ffn"))
        blocks = [self._profile.devices[name].blocks[key] for name in (one, other)]
        alone = [self._profile.devices[name].program(rows) for name in (one, other)]
        slow = [self._slowdown(one, other, rows), self._slowdown(other, one, rows)]
        low, high = 0.0, 1.0
        for _ in range(20):
            ratio = (low + high) / 2
            first = slow[0] * (alone[0] + blocks[0].part(rows, ratio))
            second = slow[1] * (alone[1] + blocks[1].part(rows, 1 - ratio))
            low, high = (low, ratio) if first > second else (ratio, high)
        return (low + high) / 2

    def _task(self, segment: Segment, shape: StepShape, micro: int, after: tuple[int, ...]) -> Task:
        device = self._profile.devices[segment.device]
        kinds = [self._kind(part) for part in segment.parts]
        what = kinds[0] if len(set(kinds)) == 1 else "blocks"
        return Task(segment.device, self.segment_seconds(segment, shape), after, device.submit, what, micro, shape.rows)

    def _kind(self, part: SegmentPart) -> str:
        return "combine" if part.combines else self._keys[part.block].partition(" ")[0]

    def _part_seconds(self, device: DeviceProfile, part: SegmentPart, shape: StepShape) -> float:
        if part.combines:
            return device.blocks[self._combine].seconds(shape.rows)
        spec, measured = self._spec.blocks[part.block], device.blocks.get(self._keys[part.block])
        if measured is None:
            raise DeviceError(
                f"{device.name}: nobody has measured its {block_name(spec)}: a profile takes it to be on "
                f"{host_of(device.name)}; leave out embed= and head="
            )
        match spec:
            case HeadSpec():
                return measured.seconds(shape.samples) if shape.samples else 0.0
            case FFNSpec():
                if part.slice is None:
                    return measured.seconds(shape.rows)
                return measured.part(shape.rows, (part.slice.stop - part.slice.start) / spec.ffn)
            case AttentionSpec():
                share = 1.0 if part.slice is None else (part.slice.stop - part.slice.start) / spec.kv_heads
                return _attention_seconds(spec, measured, shape, share)
            case _:
                return measured.seconds(shape.rows)

    def _slowdown(self, lane: str, other: str, rows: int) -> float:
        return self._profile.pair(lane, other).slow[lane](rows)

    def _handover(self, one: str, other: str) -> float:
        return self._profile.pair(one, other).handover


def _attention_seconds(spec: AttentionSpec, measured: BlockProfile, shape: StepShape, share: float) -> float:
    """Rows that decode and rows of prompts each take what as many of their kind would, in proportion."""
    rows = shape.rows
    decoding = sum(each.sequences for each in shape.parts if each.rows == 1)
    seconds = decoding / rows * measured.part(rows, share)
    if decoding < rows:
        chunk = measured.part(rows, share) if measured.chunk is None else share * measured.chunk(rows)
        seconds += (rows - decoding) / rows * chunk
    for each in shape.parts:
        positions = each.sequences * _seen(each.rows, each.length, spec.window)
        if each.rows == 1 and measured.decode is not None:
            seconds += share * measured.decode(decoding) * positions / decoding
        elif each.rows > 1 and measured.prefill is not None:
            seconds += share * measured.prefill(each.rows) * positions
    return seconds


def _seen(rows: int, length: int, window: int | None) -> float:
    """Positions that the last `rows` rows of a sequence of this length see, all rows together."""
    first = length - rows + 1
    if window is None or length <= window:
        return rows * (first + length) / 2
    growing = max(0, window - first + 1)
    return growing * (first + first + growing - 1) / 2 + (rows - growing) * window


def _add(busy: dict[str, float], more: dict[str, float], times: float) -> None:
    for lane, seconds in more.items():
        busy[lane] = busy.get(lane, 0.0) + times * seconds


def _block_keys(profile: Profile) -> list[str]:
    return [key for device in profile.devices.values() for key in device.blocks]
