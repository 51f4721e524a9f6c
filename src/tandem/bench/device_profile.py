"""A profile for a reader."""

from __future__ import annotations

from tandem.bench.report import columns
from tandem.pipeline.profile import Curve, DeviceProfile, Profile


def profile_report(profile: Profile) -> str:
    """Devices, their kinds of blocks by rows, and what happens while two of them work."""
    parts = [f"{profile.model_name}, measured in {profile.seconds:.1f} s ({profile.effort})"]
    for device in profile.devices.values():
        parts.append(_device(device))
    for key, pair in profile.pairs.items():
        slow = "; ".join(
            f"{name} takes {_factors(curve)} as long while the other works, too" for name, curve in pair.slow.items()
        )
        parts.append(f"{key.replace('|', ' and ')}: handing on {_micro(pair.handover)} us; {slow}")
    return "\n\n".join(parts)


def _device(device: DeviceProfile) -> str:
    rates = []
    if device.read:
        rates.append(f"{device.read / 1e9:,.1f} GB/s read")
    if device.int8_macs:
        rates.append(f"{device.int8_macs / 1e9:,.0f} G integer multiply-adds/s")
    sizes = sorted({int(at) for block in device.blocks.values() for at in block.seconds.at})
    rows = [("us of a block, by rows", *(str(size) for size in sizes), "us a position")]
    for key, block in device.blocks.items():
        cells = [_micro(block.seconds(size)) if size in block.seconds.at else "" for size in sizes]
        position = "" if block.decode is None else f"{block.decode.values[-1] * 1e6:.3f}"
        rows.append((key, *cells, position))
    head = f"{device.name}: {device.description}" + (f"; at its best {', '.join(rates)}" if rates else "")
    costs = (
        f"queueing a program {_micro(device.submit)} us, the program itself {_micro(device.program.values[0])} us, "
        f"waking the host {_micro(device.wake)} us"
    )
    if device.host is not None:
        between = ", ".join(
            f"{_micro(value)} us with {at:.0f} sequences"
            for at, value in zip(device.host.at, device.host.values, strict=True)
        )
        costs += f"; the host between two steps {between}"
    return f"{head}\n{costs}\n{columns(rows)}"


def _factors(curve: Curve) -> str:
    return " or ".join(f"{value:.2f} times ({at:.0f} rows)" for at, value in zip(curve.at, curve.values, strict=True))


def _micro(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f}" if seconds >= 1e-5 else f"{seconds * 1e6:.1f}"
