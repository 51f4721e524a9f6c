"""How a benchmark says what it found: medians with spread, versions, the commit, and one JSON file a run."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from tandem.bench.machine import describe_machine


@dataclass(frozen=True, slots=True)
class Summary:
    """Median, smallest and largest of the repeated measurements of one quantity."""

    median: float
    low: float
    high: float
    samples: tuple[float, ...]

    @classmethod
    def of(cls, samples: Sequence[float]) -> Summary:
        return cls(statistics.median(samples), min(samples), max(samples), tuple(samples))

    def __str__(self) -> str:
        return f"{_short(self.median)} ({_short(self.low)} to {_short(self.high)}, n={len(self.samples)})"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Distribution:
    """Many measurements of one quantity: percentiles are interpolated linearly between the two nearest of them."""

    n: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Distribution:
        p50, p90, p99 = np.percentile(values, (50, 90, 99)).tolist()
        return cls(len(values), float(np.mean(values)), p50, p90, p99, float(np.max(values)))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _short(value: float) -> str:
    digits = 0 if value >= 1000 else 1 if value >= 10 else 3
    return f"{value:.{digits}f}"


def git_commit(where: Path) -> str | None:
    """The commit that `where` is checked out at, with `-dirty` if tracked files differ; None outside a checkout."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            cwd=where, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def source_checkout() -> Path | None:
    """The source tree that this package runs from; None for an installed package, which no commit can be told of."""
    root = Path(__file__).resolve().parents[3]
    return root if (root / "pyproject.toml").is_file() and (root / "src" / "tandem").is_dir() else None


def run_header(where: Path | None, command: str) -> dict[str, Any]:
    """What every result begins with: when, which commit of the checkout `where`, the command, the machine, versions.

    load_average: processes that wanted to run in the last minute; a machine at peace is near 0.
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": None if where is None else git_commit(where),
        "command": command,
        "machine": describe_machine().to_json(),
        "load_average": os.getloadavg()[0],
        "versions": {package: _version(package) for package in ("tandem-llm", "numpy")},
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed: run from a source tree"


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Writes `result` as indented JSON; the folder is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def columns(rows: Sequence[Sequence[str]]) -> str:
    """A plain table: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
