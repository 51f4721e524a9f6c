"""The static shapes that graphs are made for: a step takes the smallest that holds it.

Rows: three sizes at most. Attention: some sequences with some rows each, and positions that they may see; several
sequences only with one row each, as they decode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PAGE = 16
MOST_ROW_BUCKETS = 3
# Positions of all sequences of one graph together, where there are several.
_MOST_POSITIONS = 8192
_LEAST_CONTEXT = 256
_CONTEXT_GROWTH = 4


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """Of an attention graph: its sequences, rows of each, and positions that each may see, in whole pages."""

    sequences: int
    rows: int
    context: int

    @property
    def scores(self) -> int:
        """Elements of its mask."""
        return self.sequences * self.rows * self.context


def row_buckets(rows: int) -> tuple[int, ...]:
    """Sizes for batches of at most `rows` rows: some for decoding, a middle, and all."""
    return tuple(sorted({min(8, -(-rows // 32)), min(64, -(-rows // 4)), rows}))


def bucket_of(buckets: Sequence[int], size: int) -> int:
    """The smallest that holds `size`."""
    return next(bucket for bucket in buckets if bucket >= size)


def reach(window: int | None, rows: int, context: int) -> int:
    """The most positions, in whole pages, that the rows of one sequence see together."""
    whole = -(-context // PAGE)
    return PAGE * (whole if window is None else min(whole, -(-(window + rows) // PAGE) + 1))


def context_buckets(reach: int) -> tuple[int, ...]:
    sizes = [_LEAST_CONTEXT]
    while sizes[-1] < reach:
        sizes.append(sizes[-1] * _CONTEXT_GROWTH)
    return (*(size for size in sizes if size < reach), reach)


def attention_shapes(rows: int, reach: int) -> list[Shape]:
    """All graphs of attention for batches of at most `rows` rows."""
    shapes = set()
    sizes = row_buckets(rows)
    for context in context_buckets(reach):
        most = max(1, min(rows, _MOST_POSITIONS // context))
        shapes |= {Shape(count, 1, context) for count in (1, *sizes, most) if count <= most}
        # A chunk never has more rows than positions to see.
        shapes |= {Shape(1, size, context) for size in sizes if size == sizes[0] or _before(sizes, size) < context}
    return sorted(shapes)


def _before(sizes: Sequence[int], size: int) -> int:
    return max(each for each in sizes if each < size)


def decoding_shape(shapes: Sequence[Shape], sequences: int, context: int) -> Shape | None:
    """The smallest for that many sequences with one row each; None where there are too many."""
    fitting = [each for each in shapes if each.rows == 1 and each.sequences >= sequences and each.context >= context]
    return min(fitting, key=lambda each: (each.context, each.sequences), default=None)


def chunk_shape(shapes: Sequence[Shape], rows: int, context: int) -> Shape:
    """The smallest for one sequence."""
    fitting = [each for each in shapes if each.sequences == 1 and each.rows >= rows and each.context >= context]
    return min(fitting, key=lambda each: (each.context, each.rows))
