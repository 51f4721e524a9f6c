"""Attention on an ONNX device beside feed-forward on a GPU (Mesa's lavapipe will do)."""

from __future__ import annotations

import pytest

from devices.onnx.test_onnx_pipeline import LIMITS, NAME, TINY, stories
from pipeline.agreement import check_agreement
from pipeline.forced import forced, placed
from tandem.devices.base import Device
from tandem.devices.cpu import CpuDevice
from tandem.devices.onnx.device import OnnxDevice
from tandem.devices.ref import RefDevice
from tandem.devices.vulkan import VulkanDevice

pytestmark = pytest.mark.vulkan


@pytest.mark.parametrize("text", ["attn=onnx,ffn=vulkan:0,embed=cpu", "attn=onnx,ffn=vulkan:0,embed=cpu,head=cpu,m=2"])
def test_attention_beside_a_gpu(text: str) -> None:
    devices: dict[str, Device] = {
        "onnx": OnnxDevice(NAME, 1),
        "vulkan:0": VulkanDevice(0),
        "cpu": CpuDevice(1),
        "ref": RefDevice(),
    }
    found = {
        each: forced(placed(TINY, each, devices, LIMITS), stories(3, 60), chunk=24, decode=6)
        for each in ("ref", "cpu", text)
    }
    check_agreement(found["ref"], found["cpu"], found[text], text)
    for device in devices.values():
        device.close()
