"""Tokens that a batch names by the slot where they lie."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from devices.test_ref_device import batch, weights
from tandem._native import Timeline
from tandem.devices.base import Device, Event, StepBuffers
from tandem.devices.cpu import CpuDevice
from tandem.devices.ref import RefDevice
from tandem.devices.spec import EmbedSpec
from tandem.errors import DeviceError

EMBED = EmbedSpec(vocab=50, hidden=32, scale=1.5)


@pytest.fixture(params=["ref", "cpu"])
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    opened: Device = RefDevice() if request.param == "ref" else CpuDevice(threads=2)
    yield opened
    opened.close()


def embedded(device: Device, tokens: list[int], slots: list[int]) -> np.ndarray:
    buffers = StepBuffers(
        np.zeros((4, 32), np.float32),
        np.zeros((1, 1), np.float32),
        np.zeros((0, 4, 32), np.float32),
        np.array(slots, np.int32),
    )
    program = device.link([device.load(EMBED, weights(EMBED))], rows=4, buffers=buffers)
    done = Event(Timeline(), 1)
    program.submit(batch(tokens), signal=done)
    done.wait()
    return buffers.hidden


def test_are_those_in_the_slots(device: Device) -> None:
    named = embedded(device, [-3, 4, -1, -3], [7, 9, 11])
    np.testing.assert_array_equal(named, embedded(device, [11, 4, 7, 11], []))


@pytest.mark.parametrize(
    ("tokens", "slots", "message"),
    [([3, -2], [7], "token slot 1 of 1"), ([-1], [50], "token 50"), ([-1], [-4], "token -4")],
)
def test_slots_that_hold_no_token_are_refused(
    device: Device, tokens: list[int], slots: list[int], message: str
) -> None:
    with pytest.raises(DeviceError, match=message):
        embedded(device, tokens, slots)
