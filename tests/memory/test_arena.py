"""The arena: page-aligned, bounded, sealed."""

from __future__ import annotations

import numpy as np
import pytest

from tandem.memory.arena import ALIGNMENT, Arena, aligned


def test_arrays_are_page_aligned_zero_and_apart() -> None:
    arena = Arena(aligned(10 * 4) + aligned(6 * 8))
    first, second = arena.take((2, 5), np.float32), arena.take((6,), np.int64)
    assert first.ctypes.data % ALIGNMENT == 0 and second.ctypes.data % ALIGNMENT == 0
    assert not first.any() and not second.any()
    second[:] = -1
    assert not first.any()
    assert arena.used == arena.size


def test_it_gives_no_more_than_was_planned() -> None:
    arena = Arena(100)
    with pytest.raises(MemoryError, match="4096 bytes left"):
        arena.take((5000,), np.uint8)


def test_nothing_is_taken_once_it_is_sealed() -> None:
    arena = Arena(100)
    arena.seal()
    with pytest.raises(MemoryError, match="sealed"):
        arena.take((1,), np.uint8)
