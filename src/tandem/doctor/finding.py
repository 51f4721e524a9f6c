"""What a check says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

# note: a fact to know, with nothing to do. unknown: it could not be read, and nothing is concluded.
Status = Literal["ok", "note", "warning", "problem", "unknown"]
Area = Literal["cpu", "memory", "gpu", "npu", "software"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. fix: what to type or change, exactly; None where there is nothing to do.

    name: which thing of the area this is about; stable, for programs that read the report.
    """

    area: Area
    name: str
    status: Status
    text: str
    fix: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
