"""Traces: the real one in full, its scaling, and files that are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from paths import SHARED
from tandem.bench.trace import TraceRequest, read_trace, scale_trace
from tandem.errors import BenchError

TRACE = SHARED / "data/prompts/azure_conv_2000.csv"
HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def test_the_real_trace() -> None:
    trace = read_trace(TRACE)
    assert len(trace) == 2000
    assert trace[0] == TraceRequest(0.0, 374, 44)
    assert trace[1] == TraceRequest(pytest.approx(4.314579, abs=1e-6), 396, 109)  # type: ignore[arg-type]
    assert sum(request.prompt_tokens for request in trace) == 2_209_565
    assert sum(request.new_tokens for request in trace) == 529_807
    arrivals = [request.arrival_s for request in trace]
    assert arrivals == sorted(arrivals)


def test_scaled_to_a_context() -> None:
    trace = read_trace(TRACE)
    scaled, factor = scale_trace(trace, 2048)
    assert factor == 2048 / 7979
    lengths = [request.prompt_tokens + request.new_tokens for request in scaled]
    assert 2046 <= max(lengths) <= 2048
    for before, after in zip(trace, scaled, strict=True):
        assert after.arrival_s == before.arrival_s
        assert 0 <= before.prompt_tokens * factor - after.prompt_tokens < 1 or after.prompt_tokens == 1
        assert 0 <= before.new_tokens * factor - after.new_tokens < 1 or after.new_tokens == 1


def test_a_context_that_is_long_enough_changes_nothing() -> None:
    trace = read_trace(TRACE)
    assert scale_trace(trace, 7979) == (trace, 1.0)


@pytest.mark.parametrize("context", [2, 3, 10])
def test_no_length_vanishes_and_none_overflows(context: int) -> None:
    trace = [TraceRequest(0.0, 1, 1), TraceRequest(0.0, 1, 1000), TraceRequest(0.0, 1000, 1), TraceRequest(0.0, 9, 9)]
    for request in scale_trace(trace, context)[0]:
        assert request.prompt_tokens >= 1
        assert request.new_tokens >= 1
        assert request.prompt_tokens + request.new_tokens <= context


def test_lines_in_any_order_other_columns_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(
        "\ufeffUser,GeneratedTokens,ContextTokens,TIMESTAMP\na,5,6,2024-01-01 00:00:02\nb,7,8,2024-01-01 00:00:01.5\n"
    )
    assert read_trace(path) == [TraceRequest(0.0, 8, 7), TraceRequest(0.5, 6, 5)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lacks the column TIMESTAMP, ContextTokens, GeneratedTokens; expected a first line TIMESTAMP,"),
        ("TIMESTAMP,ContextTokens\n", "lacks the column GeneratedTokens"),
        (HEADER, "holds no request"),
        (HEADER + "2024-01-01 00:00:00,5,6\nnoon,5,6\n", "line 3 of the trace"),
        (HEADER + "2024-01-01 00:00:00,five,6\n", "line 2 of the trace"),
        (HEADER + "2024-01-01 00:00:00,5,0\n", "counts of 1 or more"),
        (HEADER + "2024-01-01 00:00:00,-5,1\n", "counts of 1 or more"),
        (HEADER + "2024-01-01 00:00:00,5\n", "line 2 of the trace"),
        (HEADER + "2024-01-01 00:00:00,5,6\n2024-01-01 00:00:00Z,5,6\n", "line 3 of the trace"),
    ],
)
def test_what_is_not_a_trace(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(BenchError) as caught:
        read_trace(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"nothing\.csv cannot be read: No such file"):
        read_trace(tmp_path / "nothing.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BenchError, match=r"bytes\.csv cannot be read: it is not UTF-8"):
        read_trace(tmp_path / "bytes.csv")
