"""Whole models on the Vulkan device: against transformers, against the reference, and beside other devices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from devices.runner import Runner
from devices.vulkan.conftest import Open
from devices.vulkan.support import bundled, prompts_for, relative_error, tiny, whole
from models.cases import CASES, Case
from tandem.devices.cpu import CpuDevice
from tandem.devices.ref import RefDevice
from tandem.devices.spec import KVDtype
from tandem.devices.vulkan import VulkanDevice

GOLDEN = Path(__file__).parents[2] / "golden"
SHAPES = [case for case in CASES if case.name in ("gemma3-layer-ropes", "qwen3-biases-layer-types", "mistral-window")]


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "model_logits.npz") as file:
        return dict(file)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_logits_are_those_of_transformers(
    case: Case, vulkan: VulkanDevice, golden: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """Float32 weights and KV; the issue asks for 1e-4."""
    spec, checkpoint = tiny(case, tmp_path)
    runner = Runner(spec, checkpoint, whole(spec, vulkan), rows=24, context=48, page_size=4)
    for index, logits in enumerate(runner.forward(case.prompts, chunk=10, decode=6)):
        assert relative_error(logits, golden[f"{case.name}/{index}"]) < 1e-5, f"prompt {index}"


@pytest.mark.parametrize("hidden", [{"unified": True}, {"external_host_memory": True}], ids=["discrete", "no-import"])
def test_without_shared_memory(
    hidden: dict[str, bool], opened: Open, golden: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """Weights through staging memory, the residual stream on the device; and mirrors where nothing is imported."""
    (case,) = (case for case in CASES if case.name == "gemma3-layer-ropes")
    device = opened(**hidden)
    spec, checkpoint = tiny(case, tmp_path)
    runner = Runner(spec, checkpoint, whole(spec, device), rows=24, context=48, page_size=4)
    for index, logits in enumerate(runner.forward(case.prompts, chunk=10, decode=6)):
        assert relative_error(logits, golden[f"{case.name}/{index}"]) < 1e-5


def test_the_bundled_model_in_float_agrees_with_the_dequantized_reference(opened: Open, ref: RefDevice) -> None:
    """Without integer dots, activations stay float32 and the weights' rounding is all there is."""
    spec, checkpoint = bundled()
    prompts = prompts_for(spec, 40, 9)
    expected = Runner(spec, checkpoint, whole(spec, ref)).forward(prompts)
    got = Runner(spec, checkpoint, whole(spec, opened(integer_dot=True))).forward(prompts, chunk=16, decode=3)
    for one, other in zip(got, expected, strict=True):
        assert relative_error(one, other) < 1e-4


def test_the_bundled_model_errs_no_more_than_on_the_cpu(vulkan: VulkanDevice, ref: RefDevice) -> None:
    """With integer dots, activations are 8-bit as on the CPU: at most 1.5 times its error."""
    spec, checkpoint = bundled()
    prompts = prompts_for(spec, 40, 9)
    cpu = CpuDevice(threads=1)
    expected, bound, got = (
        np.concatenate(Runner(spec, checkpoint, whole(spec, device)).forward(prompts)) for device in (ref, cpu, vulkan)
    )
    cpu.close()
    assert 0 < relative_error(got, expected) < 1.5 * relative_error(bound, expected)
    assert relative_error(got, bound) < relative_error(bound, expected)


def test_float16_kv_stays_close_to_float32_kv(vulkan: VulkanDevice, tmp_path: Path) -> None:
    """With float32 weights, so that nothing but the rounding of keys and values differs."""
    (case,) = (case for case in CASES if case.name == "gemma3-layer-ropes")
    spec, checkpoint = tiny(case, tmp_path)
    dtypes: tuple[KVDtype, KVDtype] = ("f32", "f16")
    full, compact = (
        Runner(spec, checkpoint, whole(spec, vulkan), kv_dtype=dtype).forward(case.prompts, chunk=7, decode=2)[0]
        for dtype in dtypes
    )
    assert 0 < relative_error(compact, full) < 2e-3


def test_a_sequence_does_not_depend_on_its_batch_chunks_or_pages(vulkan: VulkanDevice) -> None:
    """Bitwise: every row-count bucket adds in the same order."""
    spec, checkpoint = bundled()
    prompts = prompts_for(spec, 70, 1, 17)
    alone = [
        Runner(spec, checkpoint, whole(spec, vulkan), seed=5, kv_dtype="f16").forward([prompt], chunk=64)[0]
        for prompt in prompts
    ]
    for chunk, decode in ((5, 4), (33, 1)):
        runner = Runner(spec, checkpoint, whole(spec, vulkan), seed=chunk, kv_dtype="f16")
        for got, expected in zip(runner.forward(prompts, chunk=chunk, decode=decode), alone, strict=True):
            np.testing.assert_array_equal(got, expected)


def test_a_long_sequence_does_not_depend_on_its_chunks(vulkan: VulkanDevice, tmp_path: Path) -> None:
    """Bitwise, over several splits of its keys: in turn in large steps, side by side in small ones."""
    (case,) = (case for case in CASES if case.name == "gemma3-layer-ropes")
    spec, checkpoint = tiny(case, tmp_path)
    prompts = prompts_for(spec, 600, 290)
    results = []
    for chunk, decode in ((150, 0), (33, 4), (90, 20)):
        runner = Runner(spec, checkpoint, whole(spec, vulkan), rows=240, context=640, kv_dtype="f16")
        results.append(runner.forward(prompts, chunk=chunk, decode=decode))
    for other in results[1:]:
        for got, expected in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("case", SHAPES, ids=lambda case: case.name)
@pytest.mark.parametrize("masked", [False, True], ids=["unified", "discrete"])
def test_mixed_placement_with_the_cpu(case: Case, masked: bool, opened: Open, ref: RefDevice, tmp_path: Path) -> None:
    """Attention on one device, FFN on the other, embed and head on either: every block is handed over."""
    spec, checkpoint = tiny(case, tmp_path)
    vulkan, cpu = opened(unified=masked), CpuDevice(threads=1)
    expected = Runner(spec, checkpoint, whole(spec, ref)).forward(case.prompts)
    for owners in ((vulkan, cpu), (cpu, vulkan)):
        placement = [(owners[index % 2], range(index, index + 1)) for index in range(len(spec.blocks))]
        got = Runner(spec, checkpoint, placement).forward(case.prompts, chunk=6, decode=2)
        for one, other in zip(got, expected, strict=True):
            assert relative_error(one, other) < 1e-4
    cpu.close()


def test_slices_add_up(vulkan: VulkanDevice, ref: RefDevice, opened: Open) -> None:
    """FFN columns and KV heads shared with the reference, and with a second Vulkan device that mirrors host memory."""
    spec, checkpoint = bundled()
    prompts = prompts_for(spec, 20, 9)
    expected = Runner(spec, checkpoint, whole(spec, ref)).forward(prompts)
    second = opened(external_host_memory=True)
    for left, right in ((vulkan, ref), (ref, vulkan), (second, vulkan)):
        slices = {2: [(left, 0, 512), (right, 512, 1536)], 3: [(left, 0, 1), (right, 1, 2)]}
        got = Runner(spec, checkpoint, whole(spec, left), slices=slices).forward(prompts, chunk=11)
        for one, other in zip(got, expected, strict=True):
            assert relative_error(one, other) < 0.02
