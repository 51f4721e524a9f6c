"""`tandem devices`: what this machine can compute with."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer


def devices(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show the devices that a placement may name: the CPU, GPUs through Vulkan, and what ONNX Runtime reaches."""
    facts = _facts()
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
        return
    for device in facts["devices"]:
        _print_device(device)
    if facts["vulkan_error"]:
        print(f"\nNo GPU: {facts['vulkan_error']}")
    for sentence in facts["closed"]:
        print(f"\nOut of reach: {sentence}")
    print()
    _print_providers(facts["onnx"])


def _facts() -> dict[str, Any]:
    from tandem.devices.cpu import CpuDevice
    from tandem.devices.onnx.providers import describe_providers
    from tandem.devices.vulkan.facts import closed_nodes, describe_gpus
    from tandem.errors import DeviceError
    from tandem.memory.system import available_bytes

    cpu = CpuDevice()
    cpu.close()
    space = cpu.info.memory[0]
    found: list[dict[str, Any]] = [
        {
            "name": "cpu",
            "kind": "cpu",
            "description": cpu.info.description,
            "usable": True,
            "memory": [{"bytes_total": space.bytes_total, "bytes_free": available_bytes(), "host_visible": True}],
        }
    ]
    error = None
    try:
        found += describe_gpus()
    except DeviceError as refusal:
        error = str(refusal)
    return {"devices": found, "vulkan_error": error, "closed": closed_nodes(), "onnx": describe_providers()}


def _print_device(device: dict[str, Any]) -> None:
    print(f"{device['name']}  {device['description']}")
    rows = []
    if device["kind"] == "vulkan":
        rows.append(("Driver", f"{device['driver']}, Vulkan {device['api']}, {device['type']} device"))
        rows += [("Unusable", f"it lacks {what}") for what in device["lacks"]]
    rows += [("Memory", _memory(heap)) for heap in device["memory"]]
    if device["kind"] == "vulkan":
        whose = "the host's memory, shared" if device["unified"] else "its own memory"
        rows.append(("Usable", f"{_size(device['bytes_usable'])} of {whose}"))
        if (kernel := device["kernel_memory"]) is not None:
            gtt = f"GTT {_size(kernel['gtt_total'])}, {_size(kernel['gtt_used'])} in use"
            rows.append(("Kernel", f"{gtt}; VRAM {_size(kernel['vram_total'])}, {_size(kernel['vram_used'])} in use"))
        have = [name.replace("_", " ") for name, there in device["features"].items() if there is True]
        rows.append(("Has", ", ".join(have) or "no optional features"))
        rows.append(("Matrices", ", ".join(device["features"]["cooperative_matrix"]) or "no cooperative matrices"))
        rows.append(("Kernels", _kernels(device["tuned"])))
        rows.append(("Used", ", ".join(name.replace("_", " ") for name in device["used"]) or "none of them"))
        rows += [("Missing", advice) for advice in device["advice"]]
    for label, text in rows:
        print(f"  {label.ljust(9)} {text}")


def _print_providers(providers: list[dict[str, Any]]) -> None:
    print("Through ONNX Runtime")
    width = max(len(each["name"]) for each in providers)
    for each in providers:
        state = "installed" + (f": {', '.join(each['processors'])}" if each["processors"] != [each["name"][5:]] else "")
        if not each["processors"]:
            state = "installed, finds nothing here"
        if not each["installed"]:
            state = f"not installed: {each['get']}"
        print(f"  {each['name'].ljust(width)}  {each['drives']}; {state}")


def _kernels(tuned: dict[str, Any]) -> str:
    if not tuned["wanted"]:
        return "chosen by rule"
    kept = f"{tuned['deterministic']} sizes of matrices are kept, {tuned['not_deterministic']} with --no-deterministic"
    return f"measured when a model is loaded first; {kept}"


def _memory(heap: dict[str, Any]) -> str:
    free = "free unknown" if heap["bytes_free"] is None else f"{_size(heap['bytes_free'])} free"
    names = {"device_local": "the device's own", "host_visible": "host-visible"}
    kinds = [name for key, name in names.items() if heap.get(key)]
    return f"{_size(heap['bytes_total'])}, {free}; {', '.join(kinds)}"


def _size(size: int) -> str:
    from tandem.memory.system import format_bytes

    return format_bytes(size)
