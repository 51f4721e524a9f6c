"""Placements that cut blocks, or mix kinds of devices, say what the CPU says, as near as devices agree."""

from __future__ import annotations

import random

import pytest

from paths import SHARED
from pipeline.agreement import check_agreement
from pipeline.forced import forced, placed
from tandem.devices.base import Device, Float32Array
from tandem.devices.cpu import CpuDevice
from tandem.devices.ref import RefDevice
from tandem.memory.plan import Limits

TINY = SHARED / "data" / "models" / "TinyStories-656K"
LIMITS = Limits(context=112, sequences=8, rows=64)


def stories(seed: int, count: int, length: int) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(3, 2000) for _ in range(length)] for _ in range(count)]


def logits_of(text: str, told: list[list[int]]) -> Float32Array:
    devices: dict[str, Device] = {"cpu": CpuDevice(1), "b": CpuDevice(1), "ref": RefDevice()}
    executor = placed(TINY, text, devices, LIMITS)
    try:
        return forced(executor, told, chunk=24, decode=3)
    finally:
        for device in devices.values():
            device.close()


PLACEMENTS = [
    "attn=cpu,ffn=ref,m=2",
    "attn=ref,ffn=cpu,m=3",
    "first=ref,rest=cpu,layers=1,m=2",
    "ffn=cpu+b,ratio=0.6,m=2",
    "ffn=cpu+ref,ratio=0.3",
    "attn=cpu+b,heads=0.5,ffn=b+cpu,ratio=0.5,m=2",
    "attn=ref+cpu,heads=0.2,ffn=cpu,m=4",
]


def test_placements_agree() -> None:
    told = stories(1, 3, 60)
    cpu, exact = logits_of("cpu", told), logits_of("ref", told)
    assert cpu.shape == (180, 2048)
    for text in PLACEMENTS:
        check_agreement(exact, cpu, logits_of(text, told), text)


@pytest.mark.slow
@pytest.mark.parametrize("text", PLACEMENTS)
def test_placements_agree_over_many_stories(text: str) -> None:
    for seed in range(8):
        told = stories(seed, 8, 100)
        check_agreement(logits_of("ref", told), logits_of("cpu", told), logits_of(text, told), text)
