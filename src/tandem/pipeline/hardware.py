"""Hardware that is not here: datasheet rates and efficiencies, each with its source, from a TOML file."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path

import msgspec

from tandem.errors import BenchError

FOLDER = Path(__file__).parents[1] / "data" / "hardware"


class Band(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A share of a peak rate that is reached: between two measurements, each named."""

    low: float
    high: float
    low_from: str
    high_from: str

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high <= 1:
            raise ValueError("an efficiency band needs 0 < low <= high <= 1")

    @property
    def middle(self) -> float:
        """The geometric mean of both ends."""
        return math.sqrt(self.low * self.high)


class HardwareDevice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """macs_per_s: 8-bit multiply-adds at peak. program_s: of a program beside its work; an assumption."""

    name: str
    description: str
    macs_per_s: float
    source: str
    read: Band
    macs: Band
    program_s: float


class UnusedDevice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A processor that is there and that nothing drives."""

    name: str
    macs_per_s: float
    why: str
    source: str


class HardwareMemory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The DRAM that all devices share."""

    bytes_per_s: float
    source: str
    bytes: int
    bytes_note: str


class Hardware(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    memory: HardwareMemory
    device: list[HardwareDevice]
    unused: list[UnusedDevice] = []

    @property
    def processors(self) -> list[tuple[str, float]]:
        """Names with multiply-adds per second at peak, of what is not used, too."""
        used = [(each.name, each.macs_per_s) for each in self.device]
        return used + [(each.name, each.macs_per_s) for each in self.unused]

    @property
    def macs_per_s(self) -> float:
        """Of everything at peak, what is not used included."""
        return sum(rate for _, rate in self.processors)


def known_hardware() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read_hardware(name: str) -> Hardware:
    """A name of `known_hardware`, or a TOML file. Raises BenchError for what is neither, or not such a file."""
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        known = ", ".join(known_hardware())
        raise BenchError(f"hardware {name!r} is not known; name one of {known}, or a TOML file like those") from None
    try:
        hardware = msgspec.convert(tomllib.loads(text), Hardware)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, ValueError) as error:
        raise BenchError(f"{path} does not describe hardware: {error}") from None
    if not hardware.device or min(each.macs_per_s for each in hardware.device) <= 0 or hardware.memory.bytes_per_s <= 0:
        raise BenchError(f"{path} does not describe hardware: it needs devices, and rates above 0")
    return hardware
