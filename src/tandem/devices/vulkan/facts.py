"""What a GPU is, as plain JSON values, and how to get what it lacks."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tandem.devices.vulkan.budget import kernel_memory, memory_spaces
from tandem.devices.vulkan.context import missing
from tandem.devices.vulkan.instance import shared_instance
from tandem.devices.vulkan.kept import read_tuning, tuning_path
from tandem.devices.vulkan.probe import Gpu, probe_all
from tandem.devices.vulkan.tuning import kept_choices, wants_tuning

# What each optional ability is for, whether our shaders and memory use it, and where it comes from.
_ADVICE = {
    "integer_dot": "VK_KHR_shader_integer_dot_product, for fast quantized products; a newer driver may have it",
    "memory_budget": "VK_EXT_memory_budget, to tell how much of its memory is free; a newer driver may have it",
    "external_host_memory": "VK_EXT_external_memory_host, to share memory with the CPU; a newer driver may have it",
}


def describe_gpus(root: Path = Path("/")) -> list[dict[str, Any]]:
    """Every Vulkan device of this machine; bytes throughout. Raises DeviceError where Vulkan does not start.

    root: where /sys is found.
    """
    return [_describe(gpu, root) for gpu in probe_all(shared_instance())]


def closed_nodes(root: Path = Path("/")) -> list[str]:
    """What keeps this user from GPUs that the kernel has: one sentence for each device file that cannot be opened."""
    return [
        f"this user may not open /{node.relative_to(root)}; join the group that owns it "
        f"(sudo usermod -aG {_group(node)} $USER) and log in again"
        for node in sorted(root.glob("dev/dri/renderD*"))
        if not os.access(node, os.R_OK | os.W_OK)
    ]


def _group(node: Path) -> str:
    try:
        return node.group()
    except KeyError:
        return "render"


def _describe(gpu: Gpu, root: Path) -> dict[str, Any]:
    lacks = missing(gpu)
    kernel = kernel_memory(gpu.pci, root)
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
        "unified": gpu.unified,
        "bytes_usable": memory_spaces(gpu, root)[0].bytes_free,
        "kernel_memory": None if kernel is None else asdict(kernel),
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
            "cooperative_matrix": list(
                dict.fromkeys(
                    f"{shape.m}x{shape.n}x{shape.k} {shape.a} to {shape.result}"
                    for shape in features.cooperative_matrix
                )
            ),
        },
        "tuned": _tuned(gpu),
        "used": ["timeline_semaphore", *(name for name in _ADVICE if getattr(features, name))],
        "advice": [advice for name, advice in _ADVICE.items() if not getattr(features, name)],
        "limits": {
            "storage_range": gpu.limits.storage_range,
            "allocation": gpu.limits.allocation,
            "shared_memory": gpu.limits.shared_memory,
            "subgroup": gpu.limits.subgroup,
        },
    }


def _tuned(gpu: Gpu) -> dict[str, Any]:
    """Whether kernels are chosen by measuring, and of how many sizes of matrices that is kept: by default, and for
    steps that need not be deterministic.
    """
    kept = {
        name: len({(extent, single) for extent, single, _ in kept_choices(read_tuning(tuning_path(gpu, flag)))})
        for name, flag in (("deterministic", True), ("not_deterministic", False))
    }
    return {"wanted": wants_tuning(gpu), **kept}
