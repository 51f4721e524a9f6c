"""The shapes that graphs are made for: every batch finds one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.devices.onnx.buckets import (
    MOST_ROW_BUCKETS,
    attention_shapes,
    bucket_of,
    chunk_shape,
    context_buckets,
    decoding_shape,
    reach,
    row_buckets,
)


@given(st.integers(1, 4096))
def test_every_number_of_rows_has_a_bucket(rows: int) -> None:
    sizes = row_buckets(rows)
    assert len(sizes) <= MOST_ROW_BUCKETS
    assert sizes[-1] == rows
    for n in {1, min(8, rows), rows // 2 or 1, rows}:
        assert bucket_of(sizes, n) >= n


def test_decoding_takes_small_buckets() -> None:
    assert row_buckets(256) == (8, 64, 256)
    assert row_buckets(16) == (1, 4, 16)
    assert row_buckets(1) == (1,)


@given(st.integers(1, 600), st.none() | st.integers(1, 600), st.integers(1, 3000), st.data())
def test_every_sequence_has_a_graph(rows: int, window: int | None, context: int, data: st.DataObject) -> None:
    most = reach(window, rows, context)
    shapes = attention_shapes(rows, most)
    stop = data.draw(st.integers(1, context))
    count = data.draw(st.integers(1, min(rows, stop)))
    base = 0 if window is None else max(0, stop - count - window + 1) // 16 * 16
    span = stop - base
    assert span <= most
    assert count <= span
    chunk = chunk_shape(shapes, count, span)
    assert chunk.rows >= count
    assert chunk.context >= span
    alone = decoding_shape(shapes, 1, span)
    assert alone is not None
    assert alone.sequences == 1
    # Masks and page tables are planned for the largest; a call never has more rows than a program.
    assert all(each.sequences <= rows and each.rows <= rows for each in shapes)


def test_too_many_sequences_for_one_graph() -> None:
    shapes = attention_shapes(256, 4096)
    assert decoding_shape(shapes, 8, 1000) is not None
    assert decoding_shape(shapes, 8, 1025) is None
    assert decoding_shape(shapes, 257, 10) is None


@pytest.mark.parametrize(("most", "sizes"), [(112, (112,)), (256, (256,)), (2048, (256, 1024, 2048))])
def test_contexts_grow_to_the_reach(most: int, sizes: tuple[int, ...]) -> None:
    assert context_buckets(most) == sizes
