"""The ladder: four rungs of optimization as real runs of the same prompts.

baseline   one sequence at a time; in every step the weights are moved anew to where they compute, and the activations
           of every block there and back. A reconstruction of the prototype's way with this engine's kernels, not the
           prototype itself
batch      all sequences in one batch, moved as before, but once for all of them
resident   all sequences in one batch, everything resident in memory that was planned
pipeline   the same, with the placement that the planner chose

A device with memory of its own has the blocks loaded again, over its bus, which repacks them, too. One that works in
the host's memory needs no transfer: there each matrix is copied into a buffer that is allocated for it, as the
prototype did. Either is really done, and timed apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from msgspec.structs import replace

from tandem.bench.placing import Outcome, loaded, plan_workload
from tandem.bench.report import columns
from tandem.devices.base import Device
from tandem.engine.engine import Engine
from tandem.engine.placing import Site
from tandem.engine.request import Request
from tandem.engine.sampling_params import SamplingParams
from tandem.errors import BenchError
from tandem.pipeline.cost_model import CostModel, StepCost
from tandem.pipeline.devices import open_device
from tandem.pipeline.profile import Profile
from tandem.pipeline.workload import Workload

TARGETS = (50, 200, 500)
ROUNDS = 3
LABELS = {
    "baseline": "one sequence at a time, everything moved in every step (a reconstruction of the prototype's way)",
    "batch": "all sequences at once, everything still moved in every step",
    "resident": "all sequences at once, resident in planned memory",
    "pipeline": "resident, with the planner's placement",
}


@dataclass(frozen=True, slots=True)
class Rung:
    """tokens_per_s: new tokens over the whole run, prompts included; moved: bytes, in split["transfer"] seconds.

    split: the run's seconds: transfer; attention, ffn and head, which share the lanes' busy time as the profile says;
    host: all other. idle: seconds of each lane.
    """

    name: str
    placement: str
    tokens_per_s: float
    seconds: float
    steps: int
    moved: int
    split: dict[str, float]
    idle: dict[str, float]


class Mover:
    """Moves what a step of one device works on."""

    def __init__(self, site: Site, device: str) -> None:
        self._site = site
        self._device: Device | None = None
        device_ = open_device(device, threads=site.config.threads)
        if device_.info.memory[0].host_mapped:
            device_.close()
        else:
            self._device = device_
        self.seconds, self.bytes = 0.0, 0

    @property
    def how(self) -> str:
        return "copies within the host's memory" if self._device is None else "loading blocks again, over the bus"

    def step(self, rows: int) -> None:
        """For one step of so many rows."""
        start = time.perf_counter()
        spec = self._site.spec
        for index, block in enumerate(spec.blocks):
            tensors = self._site.weights(index)
            if index == 0:
                # Rows of the embedding are looked up.
                continue
            if self._device is not None:
                self._device.load(block, tensors)
                self.bytes += sum(tensor.nbytes for tensor in tensors.values())
            else:
                for tensor in tensors.values():
                    self.bytes += tensor.data.copy().nbytes
            activations = np.ones((rows, spec.hidden), np.float32)
            self.bytes += activations.copy().nbytes + activations.copy().nbytes
        self.seconds += time.perf_counter() - start

    def close(self) -> None:
        if self._device is not None:
            self._device.close()


def run_ladder(
    site: Site, profile: Profile, workload: Workload, say: Callable[[str], None] | None = None, rounds: int = ROUNDS
) -> dict[str, Any]:
    """All four; the result as JSON values. rounds: of each, of which the fastest counts. Raises what planning and
    loading do.
    """
    tell = say or (lambda what: None)
    tell("planning")
    outcome = plan_workload(site, profile, workload, say=say)
    single = _best_single(outcome)
    runs: dict[str, list[Rung]] = {}
    with loaded(site.checkpoint, replace(site.config, placement=single)) as engine:
        mover = Mover(site, single)
        try:
            _run(engine, workload, workload.batch, None)
            # In turns, so that what else happens on the machine happens to all of them; the fastest of each counts.
            for turn in range(rounds):
                for name, together, moving in (
                    ("baseline", 1, mover),
                    ("batch", workload.batch, mover),
                    ("resident", workload.batch, None),
                ):
                    tell(f"{name}, round {turn + 1}")
                    rung = _rung(name, site, profile, workload, engine, single, together, moving)
                    runs.setdefault(name, []).append(rung)
        finally:
            mover.close()
    rungs = [max(each, key=lambda rung: rung.tokens_per_s) for each in runs.values()]
    if outcome.chosen.text == single:
        rungs.append(_renamed(rungs[-1], "pipeline"))
    else:
        tell("pipeline")
        with loaded(site.checkpoint, replace(site.config, placement=outcome.chosen.text)) as engine:
            _run(engine, workload, workload.batch, None)
            last = [
                _rung("pipeline", site, profile, workload, engine, outcome.chosen.text, workload.batch, None)
                for _ in range(rounds)
            ]
        rungs.append(max(last, key=lambda rung: rung.tokens_per_s))
    first = rungs[0].tokens_per_s
    best = max(rung.tokens_per_s for rung in rungs)
    return {
        "model": site.spec.name,
        "devices": {name: device.description for name, device in profile.devices.items()},
        "workload": asdict(workload),
        "rounds": rounds,
        "moving": mover.how,
        "rungs": [{**asdict(rung), "what": LABELS[rung.name], "speed_up": rung.tokens_per_s / first} for rung in rungs],
        "same_run": outcome.chosen.text == single,
        "reached": {str(target): best >= target for target in TARGETS},
    }


def _best_single(outcome: Outcome) -> str:
    """By measurement where there is one."""
    singles = [each for each in outcome.candidates if each.single and each.plan is not None]
    if not singles:
        raise BenchError("no single device holds this model: the ladder's first rungs cannot run")
    ran = [each for each in singles if each.text in outcome.measured]
    if ran:
        return max(ran, key=lambda each: outcome.measured[each.text].tokens_per_s).text
    return singles[0].text


def _renamed(rung: Rung, name: str) -> Rung:
    return Rung(name, rung.placement, rung.tokens_per_s, rung.seconds, rung.steps, rung.moved, rung.split, rung.idle)


def _rung(
    name: str, site: Site, profile: Profile, workload: Workload, engine: Engine, placement: str, together: int,
    mover: Mover | None,
) -> Rung:  # fmt: skip
    moved = (mover.seconds, mover.bytes) if mover else (0.0, 0)
    times, steps = engine.executor.times.copy(), engine.counters.steps
    seconds = _run(engine, workload, together, mover)
    spent = engine.executor.times.since(times)
    transfer = mover.seconds - moved[0] if mover else 0.0
    busy = {lane: each.busy_seconds for lane, each in spent.lanes.items()}
    split = {"transfer": transfer}
    shares = _shares(site, profile, workload, engine, together)
    for kind, share in shares.items():
        split[kind] = share * sum(busy.values())
    split["host"] = max(0.0, seconds - transfer - spent.seconds)
    return Rung(
        name,
        placement,
        workload.batch * workload.new / seconds,
        seconds,
        engine.counters.steps - steps,
        mover.bytes - moved[1] if mover else 0,
        split,
        {lane: max(0.0, seconds - transfer - each) for lane, each in busy.items()},
    )


def _shares(site: Site, profile: Profile, workload: Workload, engine: Engine, together: int) -> dict[str, float]:
    """What each kind of block takes of the lanes' time, as the cost model says of this workload."""
    alone = Workload(together, workload.prompt, workload.new, max(workload.rows, together))
    model = CostModel(site.spec, site.keys, profile)
    prediction = model.predict(engine.executor.placement, alone)
    steps: list[tuple[StepCost, float]] = [(prediction.prefill, prediction.prefill_s)]
    if prediction.decode is not None:
        steps.append((prediction.decode, prediction.decode_s))
    spent: dict[str, float] = {}
    for cost, weight in steps:
        kinds = model.kind_seconds(engine.executor.placement, cost.shape)
        whole = sum(kinds.values())
        for kind, seconds in kinds.items():
            spent[kind] = spent.get(kind, 0.0) + weight * seconds / whole
    whole = sum(spent.values())
    return {kind: seconds / whole for kind, seconds in spent.items()}


def _run(engine: Engine, workload: Workload, together: int, mover: Mover | None) -> float:
    """Seconds for all prompts, `together` of them at once. Raises BenchError where the engine fails."""
    random = np.random.default_rng(0)
    prompts: list[list[int]] = random.integers(engine.vocab, size=(workload.batch, workload.prompt)).tolist()
    start = time.perf_counter()
    for first in range(0, workload.batch, together):
        _answer(engine, prompts[first : first + together], workload.new, mover)
    return time.perf_counter() - start


def _answer(engine: Engine, prompts: Sequence[list[int]], new: int, mover: Mover | None) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=new, ignore_eos=True)
    for index, prompt in enumerate(prompts):
        engine.submit(Request(id=str(index), prompt=prompt, params=params))
    while not engine.idle:
        rows = engine.counters.rows
        for delta in engine.step():
            if delta.error is not None:
                raise BenchError(f"the engine failed while it was measured: {delta.error}")
        if mover is not None:
            mover.step(engine.counters.rows - rows)


def ladder_table(result: dict[str, Any]) -> str:
    """For a reader."""
    workload = result["workload"]
    kinds = list(dict.fromkeys(kind for rung in result["rungs"] for kind in rung["split"]))
    rows = [("rung", "placement", "tok/s", "speed-up", *(f"{kind} s" for kind in kinds), "moved GB")]
    for rung in result["rungs"]:
        rows.append(
            (
                rung["name"], rung["placement"], f"{rung['tokens_per_s']:,.1f}", f"{rung['speed_up']:.2f}",
                *(f"{rung['split'].get(kind, 0.0):.3f}" for kind in kinds), f"{rung['moved'] / 1e9:.2f}",
            )
        )  # fmt: skip
    idle = "; ".join(
        f"{rung['name']}: " + ", ".join(f"{lane} {seconds:.3f} s" for lane, seconds in rung["idle"].items())
        for rung in result["rungs"]
    )
    reached = ", ".join(
        f"{target} {'reached' if done else 'not reached'}" for target, done in result["reached"].items()
    )
    lines = [
        f"{result['model']}: {workload['batch']} prompts of {workload['prompt']:,} tokens, answers of "
        f"{workload['new']:,}",
        "",
        columns(rows),
        "",
        *(f"{rung['name']}: {rung['what']}" for rung in result["rungs"]),
        f"moving: {result['moving']}; attention, FFN and head share the lanes' measured time as the profile says",
        f"idle: {idle}",
        f"tokens/s: {reached}",
    ]
    if result["same_run"]:
        lines.append("The planner chose one device: the last two rungs are one run.")
    return "\n".join(lines)
