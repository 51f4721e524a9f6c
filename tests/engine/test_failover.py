"""A device that is lost: what its step computed fails, and with `auto` the rest goes on elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from cpu_rig import CpuRig
from rig import Driver
from test_cpu_invariance import TINY

from tandem.devices.base import Device, Event, LosableDevice
from tandem.devices.batch import Batch
from tandem.devices.cpu import CpuDevice
from tandem.devices.ref import RefDevice
from tandem.engine.build import EngineConfig, plan_engine
from tandem.engine.sampling_params import SamplingParams
from tandem.errors import MemoryPlanError
from tandem.memory.plan import Planner
from tandem.pipeline.notation import parse_placement
from tandem.weights.open import open_checkpoint

GREEDY = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)


class Fragile(RefDevice):
    """A device that is lost when told so: runs fail from then on."""

    lost = False

    def link(self, *arguments: Any, **more: Any) -> Any:
        return _Program(self, super().link(*arguments, **more))


class _Program:
    def __init__(self, device: Fragile, program: Any) -> None:
        self.rows = program.rows
        self._device = device
        self._program = program

    def submit(self, batch: Batch, wait: Sequence[Event] = (), signal: Event | None = None) -> None:
        if not self._device.lost:
            self._program.submit(batch, wait, signal)
            return
        assert signal is not None
        signal.timeline.fail(signal.value, "fragile: it was lost")


def engine_on(asked: str, fragile: Fragile, **config: Any) -> Driver:
    """On the CPU and the fragile device, as what `asked` for is planned to be."""
    checkpoint = open_checkpoint(TINY)
    limits: dict[str, Any] = {"threads": 1, "max_sequences": 2, "rows": 16, "context": 64}
    planned = plan_engine(checkpoint, EngineConfig(**limits, placement="cpu"))
    planned.close()
    devices: dict[str, Device] = {"cpu": CpuDevice(1), "fragile": fragile}
    placement = parse_placement("attn=cpu,ffn=fragile,m=2", planned.spec)
    planned = replace(
        planned, config=EngineConfig(**limits, placement=asked, **config), placement=placement, devices=devices
    )
    planner = Planner(planned.spec, placement.stages(), devices, planned._weights, micro_batches=2)
    return Driver(replace(planned, plan=planner.plan(planned.plan.limits, 128)).load([]))


def test_only_what_was_in_the_failed_step_fails_and_the_rest_is_computed_elsewhere() -> None:
    fragile = Fragile()
    assert isinstance(fragile, LosableDevice)
    driver = engine_on("auto", fragile)
    prompts = [[5 + k, 17, 200 + k, 31] for k in range(5)]
    names = [driver.submit(prompt, GREEDY) for prompt in prompts]
    for _ in range(4):
        driver.step()
    fragile.lost = True
    driver.run()
    for name in names[:2]:  # two at once
        sample = driver.results[name][0]
        assert sample.finish_reason == "error"
        assert sample.error == "fragile: it was lost; the model is loaded again on what is left"
    assert driver.engine.executor.placement.names == ("cpu",)
    late = driver.submit(prompts[0], GREEDY)
    driver.run()
    alone = CpuRig(TINY, EngineConfig(threads=1, max_sequences=2, rows=16, context=64))
    for name, prompt in zip([*names[2:], late], [*prompts[2:], prompts[0]], strict=True):
        expected = alone.submit(prompt, GREEDY)
        alone.run()
        assert driver.results[name][0].tokens == alone.results[expected][0].tokens
    driver.engine.executor.close()
    alone.engine.executor.close()


def test_a_request_of_several_samples_waits_through_it() -> None:
    fragile = Fragile()
    driver = engine_on("auto", fragile)
    first = driver.submit([5, 6, 7], GREEDY)
    driver.step()
    both = driver.submit([8, 9, 10], SamplingParams(n=2, max_tokens=5, temperature=1.0, seed=3, ignore_eos=True))
    fragile.lost = True
    driver.run()
    assert driver.results[first][0].error is not None
    assert [len(sample.tokens) for sample in driver.results[both].values()] == [5, 5]
    driver.engine.executor.close()


def test_a_placement_that_was_named_is_not_replaced() -> None:
    fragile = Fragile()
    driver = engine_on("attn=cpu,ffn=ref", fragile)
    names = [driver.submit([5, 6, 7], GREEDY) for _ in range(3)]
    driver.step()
    fragile.lost = True
    driver.run()
    assert [driver.results[name][0].error for name in names] == ["fragile: it was lost"] * 3
    driver.engine.executor.close()


def test_where_the_model_does_not_fit_elsewhere_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    fragile = Fragile()
    driver = engine_on("auto", fragile, memory="64MiB")
    driver.submit([5, 6, 7], GREEDY)
    fragile.lost = True
    driver.step()
    driver.submit([5, 6, 7], GREEDY)
    monkeypatch.setattr("tandem.engine.build._budget", lambda memory: 1 << 20)
    with pytest.raises(MemoryPlanError, match=r"needs .* of host memory"):
        driver.engine.step()
