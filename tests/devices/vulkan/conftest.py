"""Everything here runs on the first Vulkan device, under the validation layers; a complaint of theirs is a failure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tandem.devices.ref import RefDevice
from tandem.devices.vulkan.device import Mask, VulkanDevice
from tandem.devices.vulkan.instance import Instance

Open = Callable[..., VulkanDevice]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vulkan)


@pytest.fixture(scope="session")
def instance() -> Iterator[Instance]:
    instance = Instance(validation=True)
    yield instance
    instance.close()
    assert instance.messages == []


@pytest.fixture(scope="session")
def vulkan(instance: Instance) -> Iterator[VulkanDevice]:
    device = VulkanDevice(0, instance=instance)
    yield device
    device.close()
    assert instance.messages == []


@pytest.fixture
def opened(instance: Instance) -> Iterator[Open]:
    """Opens devices that lack what the given mask hides."""
    devices: list[VulkanDevice] = []

    def open_masked(**hidden: object) -> VulkanDevice:
        devices.append(VulkanDevice(0, mask=Mask(**hidden), instance=instance))  # type: ignore[arg-type]
        return devices[-1]

    yield open_masked
    for device in devices:
        device.close()
    assert instance.messages == []


@pytest.fixture(scope="session")
def ref() -> Iterator[RefDevice]:
    device = RefDevice()
    yield device
    device.close()
