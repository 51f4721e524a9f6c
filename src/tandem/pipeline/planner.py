"""Candidates for a workload, their predictions, and the choice among those that were run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

from tandem.errors import DeviceError, MemoryPlanError
from tandem.memory.plan import MemoryPlan
from tandem.models.spec import ModelSpec
from tandem.pipeline.cost_model import CostModel, Prediction
from tandem.pipeline.notation import Weights, parse_placement
from tandem.pipeline.placement import Placement
from tandem.pipeline.profile import Profile
from tandem.pipeline.workload import Workload

# A split that nobody has run must promise this much more than the best single device: predictions err.
UNVERIFIED_GAIN = 1.15
# A split that was run must be faster by this much: less is noise, and one device is simpler.
MEASURED_GAIN = 1.02
_MICRO_BATCHES = (2, 3, 4)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A placement, as text and as data, with what is predicted. plan: None, with the reason in `refused`, where it does
    not fit the memory.
    """

    text: str
    placement: Placement
    prediction: Prediction
    plan: MemoryPlan | None = None
    refused: str = ""

    @property
    def single(self) -> bool:
        return len(self.placement.names) == 1


def enumerate_placements(
    model: CostModel, spec: ModelSpec, devices: Sequence[str], workload: Workload, weights: Weights
) -> list[tuple[str, Placement]]:
    """One device; attention | FFN; columns shared so that both finish together; layers split where the halves take as
    long. Each once.
    """
    found: dict[Placement, str] = {}
    for text in _texts(model, spec, devices, workload):
        try:
            found.setdefault(parse_placement(text, spec, weights), text)
        except DeviceError:
            # A ratio that leaves one device nothing, a model of one layer.
            continue
    return [(text, placement) for placement, text in found.items()]


def _texts(model: CostModel, spec: ModelSpec, devices: Sequence[str], workload: Workload) -> Iterator[str]:
    yield from devices
    micro_batches = [m for m in _MICRO_BATCHES if m <= workload.batch]
    sizes = sorted({workload.batch, min(workload.rows, workload.batch * workload.prompt)})
    for one, other in permutations(devices, 2):
        for m in micro_batches:
            yield f"attn={one},ffn={other},m={m}"
        for rows in sizes:
            yield f"ffn={one}+{other},ratio={model.balanced_ratio(one, other, rows):.3f}"
        for rows in sizes if micro_batches else ():
            yield f"first={one},rest={other},layers={_balanced_layers(model, spec, one, other, rows)},m=2"


def _balanced_layers(model: CostModel, spec: ModelSpec, one: str, other: str, rows: int) -> int:
    """Layers on the first device so that both take as long."""
    first, second = model.layer_seconds(one, rows), model.layer_seconds(other, rows)
    return min(max(1, round(spec.layers * second / (first + second))), spec.layers - 1)


def layers_that_fit(
    spec: ModelSpec, first: str, rest: str, weights: Weights, fits: Callable[[Placement], MemoryPlan]
) -> tuple[str, Placement] | None:
    """The layer split with the most layers on `first` that fits the memory; None where none does."""
    low, high, best = 1, spec.layers - 1, None
    while low <= high:
        layers = (low + high) // 2
        text = f"first={first},rest={rest},layers={layers}"
        placement = parse_placement(text, spec, weights)
        try:
            fits(placement)
        except MemoryPlanError:
            high = layers - 1
        else:
            low, best = layers + 1, (text, placement)
    return best


def predict_candidates(
    spec: ModelSpec,
    keys: Sequence[str],
    profile: Profile,
    workload: Workload,
    weights: Weights,
    fits: Callable[[Placement], MemoryPlan],
    placements: Sequence[tuple[str, Placement]] = (),
) -> list[Candidate]:
    """All candidates, the fastest first, those that do not fit behind all others.

    fits: the memory plan of a placement; raises MemoryPlanError. placements: these instead of all.
    """
    model = CostModel(spec, keys, profile)
    devices = list(profile.devices)
    chosen = list(placements) or enumerate_placements(model, spec, devices, workload, weights)
    candidates = [_candidate(model, text, placement, workload, fits) for text, placement in chosen]
    if not placements and not all(each.plan for each in candidates if each.single):
        for one, other in permutations(devices, 2):
            split = layers_that_fit(spec, one, other, weights, fits) if spec.layers > 1 else None
            if split is not None and split[1] not in [each.placement for each in candidates]:
                candidates.append(_candidate(model, *split, workload, fits))
    return sorted(candidates, key=lambda each: (each.plan is None, -each.prediction.tokens_per_s))


def _candidate(
    model: CostModel, text: str, placement: Placement, workload: Workload, fits: Callable[[Placement], MemoryPlan]
) -> Candidate:
    prediction = model.predict(placement, workload)
    try:
        return Candidate(text, placement, prediction, fits(placement))
    except MemoryPlanError as refusal:
        return Candidate(text, placement, prediction, None, str(refusal))


def to_verify(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The best two and the best single device, of those that fit. Raises MemoryPlanError where none does."""
    fitting = [each for each in candidates if each.plan is not None]
    if not fitting:
        raise MemoryPlanError(candidates[0].refused)
    single = next((each for each in fitting if each.single), None)
    chosen = fitting[:2]
    return [*chosen, single] if single is not None and single not in chosen else chosen


def choose_unverified(candidates: Sequence[Candidate]) -> Candidate:
    """What to run where nothing was: the best single device, unless a split promises far more, or none fits."""
    best = to_verify(candidates)[0]
    single = next((each for each in candidates if each.single and each.plan is not None), None)
    if single is None or best.prediction.tokens_per_s > UNVERIFIED_GAIN * single.prediction.tokens_per_s:
        return best
    return single


def choose_measured(measured: Sequence[tuple[Candidate, float]]) -> Candidate:
    """The fastest of those that were run, by tokens per second; one device unless a split was clearly faster."""
    best, rate = max(measured, key=lambda each: each[1])
    singles = [each for each in measured if each[0].single]
    if not singles:
        return best
    single, single_rate = max(singles, key=lambda each: each[1])
    return best if rate > MEASURED_GAIN * single_rate else single
