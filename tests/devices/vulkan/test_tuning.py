"""Kernels that are measured and kept: what is chosen changes speed, never what must not change."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.vulkan.support import random_weights, relative_error
from devices.vulkan.test_blocks import run
from tandem.devices.spec import FFNSpec, HeadSpec, NormSpec
from tandem.devices.vulkan import VulkanDevice
from tandem.devices.vulkan.device import Mask
from tandem.devices.vulkan.instance import Instance
from tandem.devices.vulkan.kept import HEADER, read_pipelines, read_tuning, write_pipelines
from tandem.devices.vulkan.pipelines import Pipelines
from tandem.devices.vulkan.probe import probe_all
from tandem.devices.vulkan.tiles import bucket_of, most_splits
from tandem.devices.vulkan.timing import ProductTimer
from tandem.devices.vulkan.trials import starts
from tandem.devices.vulkan.tuning import TUNE_VARIABLE, Tuner, wants_tuning
from tandem.devices.vulkan.variants import Extent, neighbours
from tandem.errors import ConfigError, DeviceError
from tandem.weights.tensor import TensorType

FFN = FFNSpec(1, 256, 512, "silu", NormSpec(1e-6))
Open = Callable[..., VulkanDevice]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "tandem" / "vulkan"


@pytest.fixture
def tuned(instance: Instance) -> Iterator[Open]:
    devices: list[VulkanDevice] = []

    def open_tuned(**options: Any) -> VulkanDevice:
        devices.append(VulkanDevice(0, instance=instance, **({"tune": True} | options)))
        return devices[-1]

    yield open_tuned
    for device in devices:
        device.close()
    assert instance.messages == []


def ffn(device: VulkanDevice, rows: int) -> np.ndarray:
    weights = random_weights(np.random.default_rng(5), FFN, TensorType.Q4_0)
    hidden = np.random.default_rng(2).normal(0, 1, (rows, 256)).astype(np.float32)
    return run(device, FFN, weights, hidden, [(0, rows)]) - hidden


def test_a_linked_programs_products_are_measured_and_kept(
    tuned: Open, vulkan: VulkanDevice, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once: the next device of this driver takes what is kept; and the bits are those of kernels chosen by rule."""
    device = tuned()
    live = len(device._machine.memory._live)
    with caplog.at_level(logging.INFO, "tandem.vulkan"):
        expected, got = ffn(vulkan, 2), ffn(device, 2)
    np.testing.assert_array_equal(got, expected)
    assert "measuring" in caplog.text and len(caplog.records) == 2
    table = dict(device._machine.kernels.table)
    extents = {Extent(TensorType.Q4_0, 1024, 256), Extent(TensorType.Q4_0, 256, 512)}
    assert set(table) == {(extent, bucket) for extent in extents for bucket in (1, 2)}
    (path,) = cache.glob("*-tuned.json")
    kept = read_tuning(path)
    assert kept is not None and len(kept.choices) == len(table)
    assert all(choice.seconds > 0 and choice.usual > 0 for choice in kept.choices)
    assert len(device._machine.memory._live) <= live + 20, "what measuring took is given back"

    monkeypatch.setattr(Tuner, "_measure", lambda *_: pytest.fail("it was measured again"))
    again = tuned()
    np.testing.assert_array_equal(ffn(again, 2), expected)
    assert again._machine.kernels.table == table


def test_a_larger_program_measures_what_is_missing(tuned: Open, vulkan: VulkanDevice) -> None:
    device = tuned()
    ffn(device, 1)
    few = dict(device._machine.kernels.table)
    np.testing.assert_array_equal(ffn(device, 2), ffn(vulkan, 2))
    assert {bucket for _, bucket in device._machine.kernels.table} == {1, 2}
    assert {key: device._machine.kernels.table[key] for key in few} == few


def test_a_damaged_table_is_measured_again(tuned: Open, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    tuned_first = tuned()
    ffn(tuned_first, 1)
    (path,) = cache.glob("*-tuned.json")
    path.write_bytes(path.read_bytes()[:100])
    with caplog.at_level(logging.WARNING, "tandem.vulkan"):
        ffn(tuned(), 1)
    assert len(caplog.records) == 1 and "damaged" in caplog.text
    assert read_tuning(path) is not None


def test_what_another_shader_would_need_is_not_taken_from_a_table(tuned: Open, cache: Path) -> None:
    """A kept choice that this device may not run is measured anew: nobody can make a GPU run it."""
    ffn(tuned(), 1)
    (path,) = cache.glob("*-tuned.json")
    path.write_text(path.read_text().replace('"lanes": 64', '"lanes": 4096').replace('"lanes": 128', '"lanes": 4096'))
    device = tuned()
    ffn(device, 1)
    assert all(variant.lanes <= 256 for variant in device._machine.kernels.table.values())


def test_without_memory_for_it_the_rules_remain(
    tuned: Open, vulkan: VulkanDevice, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise DeviceError("vulkan:0: out of memory")

    monkeypatch.setattr("tandem.devices.vulkan.tuning.ProductTimer", refuse)
    device = tuned()
    with caplog.at_level(logging.WARNING, "tandem.vulkan"):
        np.testing.assert_array_equal(ffn(device, 2), ffn(vulkan, 2))
    assert len(caplog.records) == 1 and "chosen by rule" in caplog.text and "out of memory" in caplog.text
    assert device._machine.kernels.table == {}


DETERMINISTIC = (TensorType.Q4_0, TensorType.Q8_0, TensorType.Q5_1, TensorType.Q4_K, TensorType.F32)


@pytest.mark.parametrize("rows", [1, 7, 18, 70])
@pytest.mark.parametrize("kind", DETERMINISTIC, ids=lambda kind: kind.name)
def test_every_deterministic_variant_has_the_same_bits(kind: TensorType, rows: int, vulkan: VulkanDevice) -> None:
    """Those with matrices, where the driver has some, add in the order of 16 lanes, and of 64 where a row is long."""
    for hidden in (768 if kind is TensorType.Q4_K else 288, 1280):
        spec = HeadSpec(vocab=77, hidden=hidden, norm=NormSpec(1e-6))
        weights = random_weights(np.random.default_rng(5), spec, kind)
        x = np.random.default_rng(2).normal(0, 1, (rows, spec.hidden)).astype(np.float32)
        expected = run(vulkan, spec, weights, x, [(0, rows)])
        kernels, extent, bucket = vulkan._machine.kernels, Extent(kind, 77, hidden), bucket_of(rows)
        begin = starts(kernels, extent, bucket, 1)
        options = [each for axis in neighbours(begin[0], extent, bucket, kernels.abilities, 1) for each in axis]
        assert len(options) >= 3
        for other in begin[1:]:
            axes = neighbours(other, extent, bucket, kernels.abilities, 1)
            options += [other, *(each for axis in axes for each in axis[:2])]
        try:
            for variant in options:
                kernels.table[extent, bucket] = variant
                got = run(vulkan, spec, weights, x, [(0, rows)])
                np.testing.assert_array_equal(got, expected, str(variant))
        finally:
            kernels.table.clear()


def test_what_gives_other_results_with_a_driver_is_not_chosen(
    tuned: Open,
    vulkan: VulkanDevice,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where sums keep one order, matrices must prove that they do; here kernels for few rows stand for them."""
    monkeypatch.setattr("tandem.devices.vulkan.timing.BYTES", "product_int")
    agrees = ProductTimer._agrees

    def doubted(self: ProductTimer, *args: Any) -> bool:
        for expected in self._expected.values():
            expected += 1
        return agrees(self, *args)

    for wrong in (False, True):
        if wrong:
            monkeypatch.setattr(ProductTimer, "_agrees", doubted)
            monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "wrong"))
        device, expected = tuned(), ffn(vulkan, 2)
        with caplog.at_level(logging.WARNING, "tandem.vulkan"):
            np.testing.assert_array_equal(ffn(device, 2), expected)
        assert ("gives other results" in caplog.text) == wrong
        kernels = device._machine.kernels
        assert not wrong or all(kernels.rule(*key) == variant for key, variant in kernels.table.items())


@pytest.mark.parametrize("rows", [6, 20])
def test_every_other_variant_computes_the_same(rows: int, tuned: Open, vulkan: VulkanDevice) -> None:
    """Also with splits, which others add up."""
    device = tuned(deterministic=False, tune=False)
    expected, kernels, bucket = ffn(vulkan, rows), device._machine.kernels, bucket_of(rows)
    for extent in (Extent(TensorType.Q4_0, 1024, 256), Extent(TensorType.Q4_0, 256, 512)):
        splits = most_splits(extent.outputs, bucket)
        begin = starts(kernels, extent, bucket, splits)
        axes = (axis for each in begin for axis in neighbours(each, extent, bucket, kernels.abilities, splits))
        for variant in dict.fromkeys([*begin, *(each for axis in axes for each in axis[:3])]):
            kernels.table[extent, bucket] = variant
            assert relative_error(ffn(device, rows), expected) < 5e-3, variant
        kernels.table.clear()


def test_pipelines_are_kept_and_made_before_they_are_asked_for(
    tuned: Open, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tuned()
    expected = ffn(device, 1)
    device.close()
    (path,) = cache.glob("*-pipelines.bin")
    kept = read_pipelines(path, device._context.gpu)
    assert kept is not None and "norm" in {shader for shader, _ in kept.used}
    created: list[str] = []
    create = Pipelines._create
    again = tuned()
    assert again._machine.pipelines._before == kept.used
    for pipeline in again._machine.pipelines._pipelines.values():
        pipeline.result()

    def noted(self: Pipelines, shader: str, constants: tuple[int, ...]) -> Any:
        created.append(shader)
        return create(self, shader, constants)

    monkeypatch.setattr(Pipelines, "_create", noted)
    np.testing.assert_array_equal(ffn(again, 1), expected)
    assert created == []


def test_pipelines_of_another_driver_or_damaged_ones_are_ignored(
    tuned: Open, cache: Path, instance: Instance, caplog: pytest.LogCaptureFixture
) -> None:
    device = tuned()
    expected = ffn(device, 1)
    device.close()
    (path,) = cache.glob("*-pipelines.bin")
    gpu = probe_all(instance)[0]
    kept = read_pipelines(path, gpu)
    assert kept is not None
    foreign = bytearray(kept.data or HEADER.pack(HEADER.size, 1, *gpu.identity))
    foreign[16] ^= 1
    whole = path.read_bytes()
    for data, complaint in ((whole[:-1], "damaged"), (whole[:40] + b"\0" + whole[41:], ""), (b"", "damaged")):
        path.write_bytes(data)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "tandem.vulkan"):
            assert read_pipelines(path, gpu) is None or not complaint
        assert len(caplog.records) == 1 or not complaint
    write_pipelines(path, kept.used, bytes(foreign))
    caplog.clear()
    with caplog.at_level(logging.WARNING, "tandem.vulkan"):
        np.testing.assert_array_equal(ffn(tuned(), 1), expected)
    assert len(caplog.records) == 1 and "another GPU or driver" in caplog.text


def test_software_drivers_are_tuned_when_asked_only(
    instance: Instance, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    gpu = probe_all(instance)[0]
    for word, expected in (("", gpu.type != "cpu"), ("on", True), ("off", False)):
        monkeypatch.setenv(TUNE_VARIABLE, word)
        assert wants_tuning(gpu) is expected
    monkeypatch.setenv(TUNE_VARIABLE, "maybe")
    with pytest.raises(ConfigError, match="must be on or off"):
        VulkanDevice(0, mask=Mask(), instance=instance)


def test_a_software_driver_leaves_no_files(vulkan: VulkanDevice, cache: Path) -> None:
    ffn(vulkan, 1)
    if vulkan._context.gpu.type == "cpu":
        assert not cache.exists()
