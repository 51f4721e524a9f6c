"""Page tables of sequences: growth, copy on write, sliding windows, prefixes."""

from __future__ import annotations

from array import array

import pytest

from tandem.devices.base import KVGroupSpec
from tandem.memory.kv_cache import KVCache
from tandem.memory.prefix import extend_keys, first_live_page

PAGE = 16


class Pool:
    """Remembers copies; it holds no bytes."""

    def __init__(self, index: int, window: int | None, pages: int) -> None:
        self.group = KVGroupSpec(index, (index,), 1, 4, window, PAGE)
        self.pages = pages
        self.copies: list[tuple[int, int]] = []

    def copy_page(self, source: int, target: int) -> None:
        self.copies.append((source, target))


def make(full: int = 8, sliding: int = 8, window: int = 20) -> tuple[KVCache, list[Pool]]:
    pools = [Pool(0, None, full), Pool(1, window, sliding)]
    return KVCache(pools), pools


def keys_of(tokens: list[int], root: bytes = b"") -> list[bytes]:
    keys: list[bytes] = []
    extend_keys(keys, array("i", tokens), PAGE, root)
    return keys


@pytest.mark.parametrize(
    ("position", "window", "page"),
    [(0, None, 0), (500, None, 0), (15, 16, 0), (30, 16, 0), (31, 16, 1), (100, 1, 6), (16, 1, 1)],
)
def test_first_live_page(position: int, window: int | None, page: int) -> None:
    assert first_live_page(position, window, PAGE) == page


def test_growing_takes_pages_of_every_group_or_none() -> None:
    cache, _ = make(full=2, sliding=8)
    tables = cache.new_tables()
    assert cache.grow(tables, 0, 20)
    assert [len(table) for table in tables.tables] == [2, 2]
    assert not cache.grow(tables, 20, 40)
    assert [len(table) for table in tables.tables] == [2, 2]
    cache.check([tables])


def test_pages_behind_the_window_come_back() -> None:
    cache, _ = make()
    tables = cache.new_tables()
    assert cache.grow(tables, 0, 64)
    cache.slide(tables, 64)
    assert tables.first == [0, 2]
    assert [tables.live_pages(g) for g in (0, 1)] == [4, 2]
    cache.check([tables])


def test_the_shared_last_page_is_copied_by_the_first_who_writes() -> None:
    cache, pools = make()
    first = cache.new_tables()
    assert cache.grow(first, 0, 20)
    second = cache.fork(first)
    assert cache.grow(second, 20, 21)
    assert cache.grow(first, 20, 21)
    assert [len(pool.copies) for pool in pools] == [1, 1]
    assert pools[0].copies == [(first.tables[0][1], second.tables[0][1])]
    assert first.tables[0][0] == second.tables[0][0]
    cache.check([first, second])
    cache.free(first)
    cache.check([second])


def test_a_full_last_page_is_shared_for_good() -> None:
    cache, pools = make()
    first = cache.new_tables()
    assert cache.grow(first, 0, 32)
    second = cache.fork(first)
    assert cache.grow(second, 32, 33) and cache.grow(first, 32, 33)
    assert pools[0].copies == []
    assert list(first.tables[0][:2]) == list(second.tables[0][:2])


def test_keys_tell_apart_what_differs_before() -> None:
    tokens = list(range(64))
    keys = keys_of(tokens)
    assert len(keys) == 4 and len(set(keys)) == 4
    assert keys_of([99, *tokens[1:]])[3] != keys[3], "a page's key depends on all tokens before it"
    assert keys_of(tokens, b"salt") != keys
    assert keys_of(tokens[:40]) == keys[:2], "only full pages have keys"
    grown: list[bytes] = []
    for stop in (10, 33, 64):
        extend_keys(grown, array("i", tokens[:stop]), PAGE)
    assert grown == keys


def test_a_prefix_is_found_and_taken_up() -> None:
    cache, _ = make()
    keys = keys_of(list(range(64)))
    first = cache.new_tables()
    assert cache.grow(first, 0, 64)
    cache.publish(first, keys, 50)
    assert cache.index.match(keys) == 3, "the page in the making is not published"
    second = cache.new_tables()
    assert cache.attach(second, keys, 3) == 48
    assert list(second.tables[0]) == list(first.tables[0][:3])
    assert second.first == [0, 1], "the window of 20 before position 48 begins in page 1"
    cache.check([first, second])


def test_a_hit_needs_the_window_only_where_attention_slides() -> None:
    cache, _ = make(window=20)
    keys = keys_of(list(range(96)))
    tables = cache.new_tables()
    assert cache.grow(tables, 0, 96)
    cache.publish(tables, keys, 96)
    cache.slide(tables, 96)
    cache.allocators[1].drop_cached()
    assert cache.index.match(keys) == 6, "pages 4 and 5 of the sliding group are alive"
    assert cache.index.match(keys[:5]) == 0, "continuing at page 5 would need pages 3 and 4"
    cache.free(tables)
    cache.allocators[0].drop_cached()
    assert cache.index.match(keys) == 0


def test_the_tail_of_a_cached_prompt_is_evicted_before_its_beginning() -> None:
    cache, _ = make(full=4)
    keys = keys_of(list(range(64)))
    tables = cache.new_tables()
    assert cache.grow(tables, 0, 64)
    cache.publish(tables, keys, 64)
    cache.free(tables)
    other = cache.new_tables()
    assert cache.grow(other, 0, 20)
    assert [cache.allocators[0].find(key) is not None for key in keys] == [True, True, False, False]


def test_announced_pages_are_waited_for() -> None:
    cache, _ = make()
    index = cache.index
    keys = keys_of(list(range(64)))
    assert index.expect(keys[:3]) == set(keys[:3])
    assert index.expect(keys) == {keys[3]}, "each page has one maker"
    assert index.last_expected(keys, 0) == keys[3]
    index.settle({keys[2]})
    assert index.last_expected(keys, 0) == keys[1]
    assert index.last_expected(keys, 2) is None


def test_pages_to_start_counts_what_will_be_taken() -> None:
    cache, _ = make(full=20, sliding=20, window=20)
    keys = keys_of(list(range(64)))
    assert cache.pages_to_start(keys, 0, 100, 16) == [7, 4], "the sliding group holds a window and a chunk"
    tables = cache.new_tables()
    assert cache.grow(tables, 0, 64)
    cache.publish(tables, keys, 64)
    assert cache.pages_to_start(keys, 4, 100, 16) == [3, 2], "pages that live sequences hold cost nothing"
    cache.free(tables)
    assert cache.pages_to_start(keys, 4, 100, 16) == [7, 4], "cached pages count as available, and are taken"
