"""`tandem plan`: predicts placements, runs the best of them, and says which one to take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from msgspec.structs import replace

from tandem.bench.gantt import Panel, measured_bars, predicted_bars
from tandem.bench.report import columns
from tandem.engine.build import EngineConfig, plan_engine
from tandem.engine.engine import Engine
from tandem.engine.placing import Site, keep_plan, predict_site
from tandem.engine.request import Request
from tandem.engine.sampling_params import SamplingParams
from tandem.errors import BenchError
from tandem.memory.plan import PAGE_SIZE
from tandem.memory.system import available_bytes, format_bytes
from tandem.models.spec import ModelSpec
from tandem.pipeline.cost_model import Prediction
from tandem.pipeline.planner import Candidate, choose_measured, to_verify
from tandem.pipeline.profile import Profile
from tandem.pipeline.timing import PipelineTimes, StepTime
from tandem.pipeline.workload import Workload
from tandem.weights.checkpoint import Checkpoint

_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Run:
    """A workload as it ran. prefill_s: until the last prompt's first token; decode_s: all that came after."""

    prefill_s: float
    decode_s: float

    @property
    def seconds(self) -> float:
        return self.prefill_s + self.decode_s


@dataclass(frozen=True, slots=True)
class Measured:
    """Several runs; the fastest counts, as a profile's do. tokens_per_s: new tokens over the whole time. times: of the
    lanes in all of these runs. prefill, decode: one step of each kind, from another run.
    """

    runs: tuple[Run, ...]
    tokens_per_s: float
    prefill_s: float
    decode_s: float
    times: PipelineTimes
    prefill: StepTime | None
    decode: StepTime | None

    @classmethod
    def of(cls, runs: Sequence[Run], workload: Workload, times: PipelineTimes, steps: Sequence[StepTime]) -> Measured:
        best = min(runs, key=lambda run: run.seconds)
        return cls(
            tuple(runs),
            workload.batch * workload.new / best.seconds,
            best.prefill_s,
            best.decode_s,
            times,
            max(steps, key=lambda step: step.rows, default=None),
            next((step for step in reversed(steps) if step.rows == step.samples == workload.batch), None),
        )


def workload_config(workload: Workload, spec: ModelSpec, base: EngineConfig) -> EngineConfig:
    """`base` for just this workload. Raises BenchError for one that is longer than the model's context."""
    # Whole pages, and what admission keeps in reserve, so that all prompts are admitted at once.
    context = (-(-workload.context // PAGE_SIZE) + 2) * PAGE_SIZE
    if context > spec.context:
        raise BenchError(
            f"prompts of {workload.prompt:,} and answers of {workload.new:,} tokens need a context of {context:,}, and "
            f"{spec.name} was trained for {spec.context:,}; choose smaller ones"
        )
    return replace(
        base, max_sequences=workload.batch, full_sequences=workload.batch, rows=workload.rows, context=context,
        prefix_cache=False,
    )  # fmt: skip


def measure_placements(
    checkpoint: Checkpoint, config: EngineConfig, workload: Workload, placements: Sequence[str], *,
    rounds: int = _ROUNDS, say: Callable[[str], None] | None = None,
) -> dict[str, Measured]:  # fmt: skip
    """Loads the model for each placement, runs the workload once to warm up and `rounds` times to measure, in turns, so
    that whatever else happens on the machine happens to all of them. Where they do not fit the memory at once, one
    after another. Raises what loading does.
    """
    configs = [replace(config, placement=each) for each in placements]
    groups = [configs] if _fit_at_once(checkpoint, configs) else [[each] for each in configs]
    found: dict[str, Measured] = {}
    for group in groups:
        with ExitStack() as stack:
            trials = []
            for each in group:
                if say is not None:
                    say(f"running {each.placement}")
                trials.append(_Trial(stack.enter_context(loaded(checkpoint, each)), workload))
            for turn in range(rounds):
                for trial in reversed(trials) if turn % 2 else trials:
                    trial.run()
            found |= {each.placement: trial.measured() for each, trial in zip(group, trials, strict=True)}
    return found


def measure_placement(
    checkpoint: Checkpoint, config: EngineConfig, workload: Workload, placement: str, *, rounds: int = _ROUNDS
) -> Measured:
    """One alone."""
    return measure_placements(checkpoint, config, workload, [placement], rounds=rounds)[placement]


class _Trial:
    """An engine that runs a workload again and again; the first time to warm up, and to note its steps."""

    def __init__(self, engine: Engine, workload: Workload) -> None:
        self._engine, self._workload = engine, workload
        executor = engine.executor
        executor.profile = []
        run_workload(engine, workload)
        self._steps, executor.profile = executor.profile, None
        self._before = executor.times.copy()
        self._runs: list[Run] = []

    def run(self) -> None:
        self._runs.append(run_workload(self._engine, self._workload))

    def measured(self) -> Measured:
        times = self._engine.executor.times.since(self._before)
        return Measured.of(self._runs, self._workload, times, self._steps)


def _fit_at_once(checkpoint: Checkpoint, configs: Sequence[EngineConfig]) -> bool:
    """Whether engines of all of them can be loaded at the same time, by their plans; half of what is free is left."""
    needed: dict[str, int] = {}
    free: dict[str, int] = {"host": available_bytes()}
    for config in configs:
        planned = plan_engine(checkpoint, config)
        for space, size in planned.plan.by_memory().items():
            needed[space] = needed.get(space, 0) + size
        for name, device in planned.devices.items():
            free[name] = device.info.memory[0].bytes_free
        planned.close()
    return all(size <= free.get(space, size) // 2 for space, size in needed.items())


@contextmanager
def loaded(checkpoint: Checkpoint, config: EngineConfig) -> Iterator[Engine]:
    """An engine for the time of the block. Raises what planning and loading do."""
    planned = plan_engine(checkpoint, config)
    try:
        engine = planned.load(())
    except BaseException:
        planned.close()
        raise
    try:
        yield engine
    finally:
        engine.executor.close()


def run_workload(engine: Engine, workload: Workload, seed: int = 0) -> Run:
    """Raises BenchError where the engine fails."""
    random = np.random.default_rng(seed)
    params = SamplingParams(temperature=0.0, max_tokens=workload.new, ignore_eos=True)
    waiting = {str(i) for i in range(workload.batch)}
    prompts = random.integers(engine.vocab, size=(workload.batch, workload.prompt)).tolist()
    start = time.perf_counter()
    for name, prompt in zip(sorted(waiting, key=int), prompts, strict=True):
        engine.submit(Request(id=name, prompt=prompt, params=params))
    first = start
    while not engine.idle:
        for delta in engine.step():
            if delta.error is not None:
                raise BenchError(f"the engine failed while it was measured: {delta.error}")
            if delta.request_id in waiting and delta.tokens:
                waiting.discard(delta.request_id)
                first = time.perf_counter()
    return Run(first - start, time.perf_counter() - first)


@dataclass(frozen=True, slots=True)
class Outcome:
    """measured: of the candidates that were run. chosen: one of them, or the prediction's favourite if none was."""

    workload: Workload
    candidates: list[Candidate]
    measured: dict[str, Measured]
    chosen: Candidate
    profile: Profile


def plan_workload(
    site: Site,
    profile: Profile,
    workload: Workload,
    *,
    placements: Sequence[str] = (),
    run: bool = True,
    rounds: int = _ROUNDS,
    say: Callable[[str], None] | None = None,
) -> Outcome:
    """Predicts, runs the best two and the best single device (of `placements`, all), and chooses; keeps the choice.

    Raises MemoryPlanError where nothing fits.
    """
    with site.devices() as devices:
        candidates = predict_site(site, profile, workload, devices, placements)
    verify = [each for each in candidates if each.plan is not None] if placements else to_verify(candidates)
    texts = [each.text for each in verify or to_verify(candidates)] if run else []
    measured = measure_placements(site.checkpoint, site.config, workload, texts, rounds=rounds, say=say)
    ran = [(each, measured[each.text].tokens_per_s) for each in candidates if each.text in measured]
    chosen = choose_measured(ran) if ran else to_verify(candidates)[0]
    if ran and not placements:
        keep_plan(site, workload, chosen.text, measured[chosen.text].tokens_per_s)
    return Outcome(workload, candidates, measured, chosen, profile)


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    """Plain values; seconds and bytes."""
    return {
        "workload": asdict(outcome.workload),
        "devices": {name: device.description for name, device in outcome.profile.devices.items()},
        "chosen": outcome.chosen.text,
        "candidates": [
            {
                "placement": each.text,
                "predicted": prediction_json(each.prediction),
                "measured": _measured_json(outcome.measured[each.text]) if each.text in outcome.measured else None,
                "error": _error(each, outcome.measured.get(each.text)),
                "memory": None if each.plan is None else each.plan.by_memory(),
                "refused": each.refused or None,
            }
            for each in outcome.candidates
        ],
    }


def prediction_json(prediction: Prediction) -> dict[str, Any]:
    return {
        "tokens_per_s": prediction.tokens_per_s,
        "prefill_s": prediction.prefill_s,
        "decode_s": prediction.decode_s,
        "busy_s": prediction.busy,
    }


def _measured_json(measured: Measured) -> dict[str, Any]:
    return {
        "tokens_per_s": measured.tokens_per_s,
        "prefill_s": measured.prefill_s,
        "decode_s": measured.decode_s,
        "runs": [asdict(run) for run in measured.runs],
        "lanes": asdict(measured.times),
    }


def _error(candidate: Candidate, measured: Measured | None) -> float | None:
    """Of the predicted time over the measured one, less 1."""
    if measured is None:
        return None
    return measured.tokens_per_s / candidate.prediction.tokens_per_s - 1


def outcome_table(outcome: Outcome) -> str:
    """For a reader."""
    workload = outcome.workload
    rows = [("placement", "predicted tok/s", "measured tok/s", "error", "prefill s", "decode s", "memory")]
    for each in outcome.candidates:
        measured = outcome.measured.get(each.text)
        error = _error(each, measured)
        rows.append(
            (
                ("* " if each is outcome.chosen else "  ") + each.text,
                f"{each.prediction.tokens_per_s:,.1f}",
                f"{measured.tokens_per_s:,.1f}" if measured else "",
                f"{error:+.0%}" if error is not None else "",
                f"{measured.prefill_s if measured else each.prediction.prefill_s:.3f}",
                f"{measured.decode_s if measured else each.prediction.decode_s:.3f}",
                format_bytes(each.plan.total) if each.plan else "does not fit",
            )
        )
    lines = [
        f"{workload.batch} prompts of {workload.prompt:,} tokens, answers of {workload.new:,}, "
        f"steps of {workload.rows:,} rows at most",
        "",
        columns(rows),
        "",
        verdict(outcome),
    ]
    return "\n".join(lines)


def verdict(outcome: Outcome) -> str:
    """One sentence on what was chosen, and why."""
    chosen, measured = outcome.chosen, outcome.measured
    if not measured:
        return f"{chosen.text} is predicted to be the fastest; nothing was run."
    single = [each for each in outcome.candidates if each.single and each.text in measured]
    splits = [each for each in outcome.candidates if not each.single]
    if chosen.single:
        if not splits:
            return f"{chosen.text}: there is no second device to split with."
        best = max(splits, key=lambda each: each.prediction.tokens_per_s)
        gain = best.prediction.tokens_per_s / chosen.prediction.tokens_per_s
        return (
            f"{chosen.text} alone: nothing is to be won by splitting here; the best split, {best.text}, is predicted "
            f"at {gain:.2f} times its throughput"
            + (f" and ran at {measured[best.text].tokens_per_s / measured[chosen.text].tokens_per_s:.2f} times."
               if best.text in measured else ".")
        )  # fmt: skip
    if not single:
        return f"{chosen.text}: no single device holds the model."
    base = max(measured[each.text].tokens_per_s for each in single)
    return f"{chosen.text}: {measured[chosen.text].tokens_per_s / base:.2f} times the best single device, as measured."


def pictures(outcome: Outcome, spec: ModelSpec) -> list[Panel]:
    """A step of each kind of the chosen placement, as predicted and as it ran."""
    prediction, measured = outcome.chosen.prediction, outcome.measured.get(outcome.chosen.text)
    panels = []
    for name, cost, step in (
        ("prefill", prediction.prefill, measured.prefill if measured else None),
        ("decode", prediction.decode, measured.decode if measured else None),
    ):
        if cost is not None:
            panels.append(Panel(f"{name}, {cost.shape.rows} rows, predicted", predicted_bars(cost.spans)))
        if step is not None:
            panels.append(Panel(f"{name}, {step.rows} rows, measured", measured_bars(spec, step)))
    return panels
