"""Traces of requests: when each arrived, how long its prompt and its answer were.

The format is that of the Azure LLM inference dataset: CSV with the columns TIMESTAMP, ContextTokens, GeneratedTokens.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from tandem.errors import BenchError

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """arrival_s: seconds after the trace's first request. prompt_tokens, new_tokens (of the answer): 1 or more."""

    arrival_s: float
    prompt_tokens: int
    new_tokens: int


def read_trace(path: Path) -> list[TraceRequest]:
    """The requests in the order of their arrival. Raises BenchError, which names the line, for what it cannot read."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise BenchError(f"the trace {path} cannot be read: {reason}") from None
    reader = csv.DictReader(text.splitlines())
    missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise BenchError(
            f"the trace {path} lacks the column {', '.join(missing)}; expected a first line {','.join(COLUMNS)}"
        )
    requests: list[TraceRequest] = []
    origin = None
    for row in reader:
        try:
            arrival = datetime.fromisoformat(row["TIMESTAMP"])
            origin = origin or arrival
            seconds = (arrival - origin).total_seconds()
            requests.append(TraceRequest(seconds, _count(row["ContextTokens"]), _count(row["GeneratedTokens"])))
        except (TypeError, ValueError):
            raise BenchError(
                f"line {reader.line_num} of the trace {path} is not a request: expected a time like "
                "2023-11-16 18:15:46.68 and two counts of 1 or more"
            ) from None
    if not requests:
        raise BenchError(f"the trace {path} holds no request")
    requests.sort(key=lambda request: request.arrival_s)
    start = requests[0].arrival_s
    return [replace(request, arrival_s=request.arrival_s - start) for request in requests]


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise ValueError(text)
    return count


def scale_trace(trace: Sequence[TraceRequest], context: int) -> tuple[list[TraceRequest], float]:
    """The trace with all lengths multiplied by one factor, at most 1, so that its longest request fills the context.

    Returns it with the factor. Lengths are rounded down, but stay at least 1.
    """
    longest = max(request.prompt_tokens + request.new_tokens for request in trace)
    factor = min(1.0, context / longest)
    scaled = []
    for request in trace:
        prompt = min(max(1, int(request.prompt_tokens * factor)), context - 1)
        new = min(max(1, int(request.new_tokens * factor)), context - prompt)
        scaled.append(TraceRequest(request.arrival_s, prompt, new))
    return scaled, factor
