"""Placement: which device runs each block."""

from __future__ import annotations

from dataclasses import dataclass

from tandem.devices.spec import AttentionSpec, EmbedSpec, FFNSpec
from tandem.errors import DeviceError
from tandem.models.spec import ModelSpec

_ROLES = ("attn", "ffn", "embed", "head")


@dataclass(frozen=True, slots=True)
class Placement:
    """A device name for every block of a model, in block order."""

    devices: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The devices in use, each once, in the order in which a step reaches them first."""
        return tuple(dict.fromkeys(self.devices))

    def runs(self) -> list[tuple[str, int, int]]:
        """Longest runs [start, stop) of consecutive blocks on one device: one program each."""
        runs: list[tuple[str, int, int]] = []
        for i, name in enumerate(self.devices):
            if runs and runs[-1][0] == name:
                runs[-1] = (name, runs[-1][1], i + 1)
            else:
                runs.append((name, i, i + 1))
        return runs


def parse_placement(text: str, spec: ModelSpec) -> Placement:
    """`cpu`, `ref`, `vulkan:0`: everything there. `attn=cpu,ffn=ref`: by kind of block; `embed` goes with attention and
    `head` with the FFN unless named. `auto`: the CPU.

    Raises DeviceError for what is not a placement; whether a device exists is known when it is opened.
    """
    text = text.strip()
    if text == "auto":
        text = "cpu"
    if "=" not in text:
        if not text or "," in text:
            raise DeviceError(f"placement {text!r}: expected a device such as cpu, or attn=DEVICE,ffn=DEVICE")
        return Placement((text,) * len(spec.blocks))
    by_role: dict[str, str] = {}
    for part in text.split(","):
        role, _, device = (piece.strip() for piece in part.partition("="))
        if role not in _ROLES or not device or role in by_role:
            raise DeviceError(
                f"placement {text!r}: {part.strip()!r} is not one of {', '.join(_ROLES)}, each once, as ROLE=DEVICE"
            )
        by_role[role] = device
    if "attn" not in by_role or "ffn" not in by_role:
        raise DeviceError(f"placement {text!r}: name both attn=DEVICE and ffn=DEVICE")

    def device_of(block: object) -> str:
        if isinstance(block, AttentionSpec):
            return by_role["attn"]
        if isinstance(block, FFNSpec):
            return by_role["ffn"]
        if isinstance(block, EmbedSpec):
            return by_role.get("embed", by_role["attn"])
        return by_role.get("head", by_role["ffn"])

    return Placement(tuple(device_of(block) for block in spec.blocks))
