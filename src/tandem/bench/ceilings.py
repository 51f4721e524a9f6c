"""What the machine does at most with so many threads at once, measured natively in the run that is held against it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tandem import _native
from tandem.errors import BenchError

_ROUNDS, _ROUND_SECONDS = 7, 0.02
_READ_SECONDS = 0.25
# Far more than the last-level cache of the machines that this is for.
READ_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Of all threads together: multiply-adds per second by unit (int8 dots, bf16 dots where the CPU has them, float32
    fma), and bytes per second read from memory. isa: the kernels whose instructions were measured.
    """

    isa: str
    threads: int
    int8: float
    bf16: float | None
    f32: float
    read: float

    def peak(self, unit: str) -> float:
        """Multiply-adds per second of `unit`: int8, f32, or bf16, which is f32 where the CPU has no such dots."""
        rates = {"int8": self.int8, "bf16": self.bf16 or self.f32, "f32": self.f32}
        return rates[unit]

    def ideal_seconds(self, macs: float, unit: str, moved: float) -> tuple[float, str]:
        """The least time for so many multiply-adds and bytes read, and what binds: the unit, or "read"."""
        return max((macs / self.peak(unit), unit), (moved / self.read, "read"))

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    def __str__(self) -> str:
        bf16 = "" if self.bf16 is None else f"bf16 {self.bf16 / 1e9:,.0f}, "
        return (
            f"int8 {self.int8 / 1e9:,.0f}, {bf16}f32 {self.f32 / 1e9:,.0f} G multiply-adds/s, "
            f"read {self.read / 1e9:,.1f} GB/s ({self.isa}, {self.threads} threads)"
        )


def measure_ceilings(threads: int, isa: str = "") -> Ceilings:
    """The best of a few short rounds of each; about two thirds of a second. isa: "" chooses the fastest.

    Raises BenchError for kernels that this CPU does not run.
    """
    try:
        isa = _native.choose_isa(isa)
    except ValueError as error:
        raise BenchError(str(error)) from None
    rounds = [_native.multiply_rates(isa, threads, _ROUND_SECONDS) for _ in range(_ROUNDS)]
    best = {unit: max(rates[unit] for rates in rounds) for unit in rounds[0]}
    read = _native.read_rate(isa, threads, READ_BYTES, _READ_SECONDS)
    return Ceilings(isa, threads, best["int8"], best.get("bf16"), best["f32"], read)


def highest(measured: Sequence[Ceilings]) -> Ceilings:
    """Of several measurements the highest of each quantity, so that nothing looks better than it is."""
    first = measured[0]
    bf16 = [ceilings.bf16 for ceilings in measured if ceilings.bf16 is not None]
    return Ceilings(
        first.isa, first.threads, max(c.int8 for c in measured), max(bf16, default=None),
        max(c.f32 for c in measured), max(c.read for c in measured),
    )  # fmt: skip
