"""Predictions, against sums that can be done by hand, and against the order in which an executor queues."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from profiles import device, model_of, profile

from paths import SHARED
from tandem.bench.placing import loaded, run_workload, workload_config
from tandem.engine.build import EngineConfig
from tandem.pipeline.cost_model import CostModel
from tandem.pipeline.notation import parse_placement
from tandem.pipeline.profile import Curve, constant
from tandem.pipeline.workload import Part, StepShape, Workload, decode_step
from tandem.weights.open import open_checkpoint

MODEL = SHARED / "data" / "models" / "TinyStories-656K"
SPEC, WEIGHTS, KEYS = model_of(MODEL)
LAYERS = SPEC.layers


def cost(text: str, rows: int = 4, *, slow: float = 1.0, handover: float = 0.0, ffn: float = 3.0) -> float:
    model = CostModel(
        SPEC, KEYS, profile([device("cpu", KEYS, 2.0, ffn), device("ref", KEYS, 2.0, ffn)], slow, handover)
    )
    return model.step(parse_placement(text, SPEC, WEIGHTS), decode_step(Workload(batch=rows), 1)).total


def test_one_device_takes_the_sum_of_its_blocks() -> None:
    assert cost("cpu") == pytest.approx(4 * LAYERS * (2 + 3))


@pytest.mark.parametrize("host", [3.0, 900.0])
def test_a_device_that_has_the_next_step_hides_the_host(host: float) -> None:
    workload, blocks = Workload(batch=4), 4 * LAYERS * (2 + 3)
    measured = replace(device("cpu", KEYS, 2.0, 3.0), host=constant(host), wake=0.5)
    ahead = replace(measured, runs_ahead=True)
    placement = parse_placement("cpu", SPEC, WEIGHTS)
    waits, runs = (CostModel(SPEC, KEYS, profile([each])) for each in (measured, ahead))
    assert waits.step(placement, decode_step(workload, 1)).total == pytest.approx(blocks + 0.5 + host)
    assert runs.step(placement, decode_step(workload, 1)).total == pytest.approx(max(blocks, 0.5 + host))
    # A prompt's chunk is waited for: its first token is not picked before it ends.
    chunk = StepShape((Part(1, 4, 4),), 1)
    assert runs.step(placement, chunk).total == pytest.approx(blocks + 0.5 + host)


def test_attention_and_ffn_without_micro_batches_take_turns_and_hand_over() -> None:
    assert cost("attn=cpu,ffn=ref", handover=0.5) == pytest.approx(4 * LAYERS * 5 + 0.5 * (2 * LAYERS - 1))


def test_micro_batches_overlap_as_the_ping_pong_formula_says() -> None:
    """T = T_a + T_f + max(T_a, T_f) (m L - 1), with T_a and T_f of one micro-batch, where T_f >= T_a."""
    attention, ffn = 2 * 2.0, 2 * 3.0
    assert cost("attn=cpu,ffn=ref,m=2") == pytest.approx(attention + ffn + ffn * (2 * LAYERS - 1))


def test_column_split_halves_the_ffn() -> None:
    assert cost("ffn=cpu+ref,ratio=0.5") == pytest.approx(4 * LAYERS * (2 + 1.5))


def test_two_halves_of_one_machine_win_nothing() -> None:
    """Each device takes twice as long while the other works: as on cores that both use."""
    alone = cost("cpu")
    assert cost("ffn=cpu+ref,ratio=0.5", slow=2.0) >= alone * (1 - 1e-9)
    assert cost("attn=cpu,ffn=ref,m=2", slow=2.0) >= alone * (1 - 1e-9)


def test_layer_split_in_turns_takes_as_long_as_one_device() -> None:
    assert cost("first=cpu,rest=ref,layers=1") == pytest.approx(cost("cpu"))


def test_the_balanced_ratio_lets_both_finish_together() -> None:
    model = CostModel(SPEC, KEYS, profile([device("cpu", KEYS, 2.0, 3.0), device("ref", KEYS, 2.0, 1.0)]))
    assert model.balanced_ratio("cpu", "ref", 4) == pytest.approx(0.25, abs=1e-3)
    assert model.balanced_ratio("ref", "cpu", 4) == pytest.approx(0.75, abs=1e-3)


def test_context_costs_what_it_was_measured_to_cost() -> None:
    plain = device("cpu", KEYS, 0.0, 0.0)
    blocks = {
        key: replace(block, decode=Curve((1.0, 2.0), (0.1, 0.2)), prefill=constant(0.01))
        if key.startswith("attention")
        else block
        for key, block in plain.blocks.items()
    }
    model = CostModel(SPEC, KEYS, profile([replace(plain, blocks=blocks)]))
    placement = parse_placement("cpu", SPEC, WEIGHTS)
    decoding = model.step(placement, StepShape((Part(2, 1, 30),), 2))
    assert decoding.seconds == pytest.approx(LAYERS * 0.2 * 30)
    prompt = model.step(placement, StepShape((Part(1, 10, 10),), 1))
    assert prompt.seconds == pytest.approx(LAYERS * 0.01 * 55)


@pytest.mark.parametrize(
    "text",
    [
        "cpu",
        "attn=cpu,ffn=ref,m=2",
        "ffn=cpu+ref,ratio=0.5",
        "ffn=cpu+ref,ratio=0.5,m=2",
        "first=ref,rest=cpu,layers=1,m=3",
    ],
)
def test_the_simulation_queues_what_the_executor_queues(text: str) -> None:
    workload = Workload(batch=3, prompt=4, new=2, rows=16)
    config = workload_config(workload, SPEC, EngineConfig(placement=text, threads=1))
    with loaded(open_checkpoint(MODEL), config) as engine:
        engine.executor.profile = []
        run_workload(engine, workload)
        step = engine.executor.profile[-1]
    model = CostModel(SPEC, KEYS, profile([device("cpu", KEYS, 2.0, 3.0), device("ref", KEYS, 2.0, 3.0)]))
    tasks = model.tasks(parse_placement(text, SPEC, WEIGHTS), decode_step(workload, 1))
    assert [task.lane for task in tasks] == [program.device for program in step.programs]
    assert [task.after for task in tasks] == [program.after for program in step.programs]
    for lane in ("cpu", "ref"):
        micro = [task.micro_batch for task in tasks[:-1] if task.lane == lane]
        assert micro == [program.micro_batch for program in step.programs[:-1] if program.device == lane]
