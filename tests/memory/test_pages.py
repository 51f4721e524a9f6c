"""Page allocator: three states, references, eviction order."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.memory.pages import PageAllocator


def counts(allocator: PageAllocator) -> tuple[int, int, int]:
    return allocator.free, allocator.cached, allocator.used


def test_a_page_is_free_used_then_free_again() -> None:
    pages = PageAllocator(3)
    page = pages.take()
    assert counts(pages) == (2, 0, 1)
    pages.retain(page)
    pages.release(page)
    assert counts(pages) == (2, 0, 1)
    pages.release(page)
    assert counts(pages) == (3, 0, 0)


def test_a_published_page_stays_findable_until_it_is_evicted() -> None:
    pages = PageAllocator(2)
    first, second = pages.take(), pages.take()
    pages.publish(first, b"a")
    pages.publish(second, b"b")
    pages.release(second)
    pages.release(first)
    assert counts(pages) == (0, 2, 0)
    assert pages.take() == second, "the one released first goes first"
    assert pages.find(b"b") is None
    assert pages.find(b"a") == first
    assert pages.evictions == 1


def test_a_cached_page_that_is_taken_up_again_is_not_evicted() -> None:
    pages = PageAllocator(2)
    first, second = pages.take(), pages.take()
    for page, key in ((first, b"a"), (second, b"b")):
        pages.publish(page, key)
        pages.release(page)
    pages.retain(first)
    assert pages.take() == second
    assert pages.available == 0


def test_the_first_page_under_a_key_stays() -> None:
    pages = PageAllocator(2)
    first, second = pages.take(), pages.take()
    pages.publish(first, b"a")
    pages.publish(second, b"a")
    pages.release(second)
    assert counts(pages) == (1, 0, 1)
    assert pages.find(b"a") == first


def test_dropping_the_cache_frees_what_nobody_uses() -> None:
    pages = PageAllocator(2)
    used, idle = pages.take(), pages.take()
    pages.publish(used, b"a")
    pages.publish(idle, b"b")
    pages.release(idle)
    pages.drop_cached()
    assert counts(pages) == (1, 0, 1)
    assert pages.find(b"a") == used and pages.find(b"b") is None


@given(st.lists(st.tuples(st.sampled_from("trRpd"), st.integers(0, 9)), max_size=200))
@settings(max_examples=100)
def test_conservation(operations: list[tuple[str, int]]) -> None:
    pages = PageAllocator(6)
    held: list[int] = []
    for operation, n in operations:
        if operation == "t" and pages.available:
            held.append(pages.take())
        elif operation == "d":
            pages.drop_cached()
        elif held:
            page = held[n % len(held)]
            if operation == "r":
                held.remove(page)
                pages.release(page)
            elif operation == "R":
                pages.retain(page)
                held.append(page)
            elif operation == "p":
                pages.publish(page, bytes([n]))
        pages.check(dict(Counter(held)))
