"""What a GPU is, as plain JSON values, and how to get what it lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tandem.devices.vulkan.context import missing
from tandem.devices.vulkan.instance import shared_instance
from tandem.devices.vulkan.probe import Gpu, probe_all

# What each optional ability is for, and where it comes from.
_ADVICE = {
    "integer_dot": "VK_KHR_shader_integer_dot_product, for fast quantized products; a newer driver may have it",
    "memory_budget": "VK_EXT_memory_budget, to tell how much of its memory is free; a newer driver may have it",
    "external_host_memory": "VK_EXT_external_memory_host, to share memory with the CPU; a newer driver may have it",
}


def describe_gpus() -> list[dict[str, Any]]:
    """Every Vulkan device of this machine; bytes throughout. Raises DeviceError where Vulkan does not start."""
    return [_describe(gpu) for gpu in probe_all(shared_instance())]


def gtt_bytes(root: Path = Path("/")) -> list[tuple[int, int]]:
    """(total, used) of system memory that amdgpu lets each AMD GPU use as its own: GTT, the larger part on an APU."""
    found = []
    for total in sorted(root.glob("sys/class/drm/card*/device/mem_info_gtt_total")):
        try:
            found.append((int(total.read_text()), int(total.with_name("mem_info_gtt_used").read_text())))
        except (OSError, ValueError):
            continue
    return found


def _describe(gpu: Gpu) -> dict[str, Any]:
    lacks = missing(gpu)
    features = gpu.features
    return {
        "name": f"vulkan:{gpu.index}",
        "kind": "vulkan",
        "description": gpu.name,
        "type": gpu.type,
        "driver": gpu.driver,
        "api": gpu.api,
        "usable": not lacks,
        "lacks": lacks,
        "memory": [
            {
                "bytes_total": heap.bytes_total,
                "bytes_free": heap.bytes_free,
                "device_local": heap.device_local,
                "host_visible": heap.host_visible,
            }
            for heap in gpu.heaps
        ],
        "features": {
            "integer_dot": features.integer_dot,
            "storage_16bit": features.storage_16bit,
            "float16": features.float16,
            "timeline_semaphore": features.timeline_semaphore,
            "memory_budget": features.memory_budget,
            "external_host_memory": features.external_host_memory,
            "cooperative_matrix": [
                f"{shape.m}x{shape.n}x{shape.k} {shape.a} to {shape.result}" for shape in features.cooperative_matrix
            ],
        },
        "used": [name for name in _ADVICE if getattr(features, name)],
        "advice": [advice for name, advice in _ADVICE.items() if not getattr(features, name)],
        "limits": {
            "storage_range": gpu.limits.storage_range,
            "allocation": gpu.limits.allocation,
            "shared_memory": gpu.limits.shared_memory,
            "subgroup": gpu.limits.subgroup,
        },
    }
