"""A GPU that goes away or runs out while requests run: they fail with the reason, and nobody computes elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from paths import SHARED
from tandem.devices.vulkan import instance as vulkan_instance
from tandem.devices.vulkan import queue
from tandem.devices.vulkan.binding import constants as vk
from tandem.devices.vulkan.binding import loader
from tandem.devices.vulkan.binding.loader import VulkanError
from tandem.devices.vulkan.instance import Instance
from tandem.engine import build
from tandem.engine.sampling_params import SamplingParams
from tandem.errors import DeviceError
from tandem.llm import LLM
from tandem.models.spec import ModelSpec
from tandem.pipeline.notation import parse_placement
from tandem.pipeline.placement import Placement

TINY = SHARED / "data" / "models" / "TinyStories-656K"
GREEDY = SamplingParams(max_tokens=30, temperature=0.0, ignore_eos=True)


def failing(name: str, code: int, after: int) -> Callable[..., None]:
    """Calls of libvulkan of which the one named fails, once it was called `after` times."""
    seen = 0

    def call(called: str, *arguments: object) -> None:
        nonlocal seen
        if called == name:
            seen += 1
            if seen > after:
                raise VulkanError(called, code)
        loader.call(called, *arguments)

    return call


@pytest.mark.parametrize("placement", ["vulkan:0", "attn=vulkan:0,ffn=cpu"])
def test_a_gpu_that_is_lost_fails_what_runs_and_what_comes(placement: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = r"vulkan:0: the GPU was lost \(VK_ERROR_DEVICE_LOST\)"
    with LLM(TINY, placement=placement, threads=1, max_sequences=2, context=64) as llm:
        assert llm.generate("Once", GREEDY)[0].error is None
        monkeypatch.setattr(queue, "call", failing("vkWaitSemaphores", vk.DEVICE_LOST, after=5))
        outputs = llm.generate(["Once upon", "The dog"], GREEDY)
        monkeypatch.undo()
        for output in [*outputs, *llm.generate("Once", GREEDY)]:
            assert output.finished
            with pytest.raises(DeviceError, match=lost):
                raise DeviceError(output.error)


@pytest.mark.parametrize("text", ["vulkan:0", "attn=vulkan:0,ffn=cpu,m=2", "ffn=cpu+vulkan:0,ratio=0.5"])
def test_with_auto_what_comes_after_a_loss_runs_on_the_cpu(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` has chosen the GPU here."""
    with LLM(TINY, placement="cpu", threads=1, max_sequences=2, context=64) as llm:
        expected = llm.generate("Once", GREEDY)[0].outputs[0].text

    def chosen(asked: str, spec: ModelSpec, weights: object = None) -> Placement:
        return parse_placement(text, spec)

    monkeypatch.setattr(build, "parse_placement", chosen)
    with LLM(TINY, placement="auto", threads=1, max_sequences=2, context=64) as llm:
        monkeypatch.setattr(queue, "call", failing("vkWaitSemaphores", vk.DEVICE_LOST, after=5))
        (output,) = llm.generate("Once upon", GREEDY)
        assert output.error is not None
        assert "VK_ERROR_DEVICE_LOST" in output.error and "the model is loaded again on what is left" in output.error
        assert llm.generate("Once", GREEDY)[0].outputs[0].text == expected


def test_a_gpu_without_memory_for_a_step_fails_that_step(monkeypatch: pytest.MonkeyPatch) -> None:
    with LLM(TINY, placement="vulkan:0", max_sequences=2, context=64) as llm:
        monkeypatch.setattr(queue, "call", failing("vkQueueSubmit", vk.OUT_OF_DEVICE_MEMORY, after=3))
        (output,) = llm.generate("Once upon", GREEDY)
        assert (
            output.error is not None
            and "vulkan:0: out of memory: the driver has none left to run a step" in output.error
        )
        monkeypatch.undo()
        assert llm.generate("Once upon", GREEDY)[0].error is None


def test_a_gpu_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with LLM(TINY, placement="vulkan:0", max_sequences=1, context=64) as llm:
        monkeypatch.setattr(queue, "call", failing("vkWaitSemaphores", vk.TIMEOUT, after=0))
        (output,) = llm.generate("Once", GREEDY)
        assert output.error == "vulkan:0: the GPU did not finish within 600 seconds"


def test_drivers_that_offer_no_device(instance: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vulkan_instance, "listed", lambda *arguments, **more: [])
    with pytest.raises(DeviceError, match="no driver offers a device; install your GPU's driver"):
        instance.physical_devices()


@pytest.mark.parametrize("text", ["{", '{"ICD": 3}', "not json"])
def test_driver_files_that_are_none(text: str, tmp_path: Path) -> None:
    """`auto` runs on the CPU; a device that was named is never replaced by another."""
    broken = tmp_path / "broken.json"
    broken.write_text(text)

    def run(placement: str) -> subprocess.CompletedProcess[str]:
        code = "from tandem.cli import main; main()"
        common = ("--max-tokens", "2", "--temperature", "0", "--context", "64", "-m", str(TINY))
        return subprocess.run(
            [sys.executable, "-c", code, "run", "Once", *common, "--placement", placement],
            env={**os.environ, "VK_DRIVER_FILES": str(broken), "VK_ICD_FILENAMES": str(broken)},
            capture_output=True,
            text=True,
            timeout=60,
        )

    assert run("auto").returncode == 0
    refused = run("vulkan:0")
    assert (refused.returncode, refused.stdout) == (2, "")
    # The loader has its own words for the file, before ours.
    line = refused.stderr.strip().splitlines()[-1]
    assert line.startswith("error: vulkan: no driver could be started") and "VK_DRIVER_FILES" in line
