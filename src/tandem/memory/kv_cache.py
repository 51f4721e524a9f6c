"""The paged KV cache as the engine sees it: page tables of sequences over the pools that devices own."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence

from tandem.devices.base import KVGroupSpec, KVPool
from tandem.memory.pages import PageAllocator
from tandem.memory.prefix import PrefixIndex, first_live_page

RELEASED = -1


class PageTables:
    """One sequence's pages. tables[g][p] is the physical page of logical page p in group g, RELEASED below first[g].

    published: leading pages that have been offered to the prefix index.
    """

    __slots__ = ("first", "published", "tables")

    def __init__(self, groups: int) -> None:
        self.tables: list[array[int]] = [array("i") for _ in range(groups)]
        self.first = [0] * groups
        self.published = 0

    def live_pages(self, group: int) -> int:
        return len(self.tables[group]) - self.first[group]


class KVCache:
    """Allocates, shares, slides and frees the pages of sequences. All groups have one page size.

    Every method either does all of its work or, where it returns False, nothing.
    """

    def __init__(self, pools: Sequence[KVPool], *, prefix_cache: bool = True) -> None:
        self.pools = tuple(pools)
        self.groups = tuple(pool.group for pool in pools)
        self.page_size = self.groups[0].page_size
        assert all(group.page_size == self.page_size for group in self.groups)
        self.allocators = tuple(PageAllocator(pool.pages) for pool in pools)
        self._windows = [(g, group.window) for g, group in enumerate(self.groups) if group.window is not None]
        self.prefix_cache = prefix_cache
        self.index = PrefixIndex(self.groups, self.allocators)
        self.bytes_copied = 0

    def new_tables(self) -> PageTables:
        return PageTables(len(self.groups))

    def pages_to_start(self, keys: Sequence[bytes], hits: int, length: int, chunk: int) -> list[int]:
        """Pages per group that a sequence of `length` positions would take from those available, if it started on
        `hits` cached pages and went on in chunks of at most `chunk`. Hits that live sequences use cost nothing.
        """
        needed = []
        for group, allocator in zip(self.groups, self.allocators, strict=True):
            first = first_live_page(hits * self.page_size, group.window, self.page_size)
            shared = sum(
                1
                for key in keys[first:hits]
                if (page := allocator.find(key)) is not None and allocator.references(page)
            )
            needed.append(self._most_pages(group, first, length, chunk) - shared)
        return needed

    def pages_lacking(self, tables: PageTables, length: int, chunk: int) -> list[int]:
        """Pages per group that a live sequence will still take to reach `length` positions."""
        return [
            self._most_pages(group, first, length, chunk) - (len(table) - first)
            for group, table, first in zip(self.groups, tables.tables, tables.first, strict=True)
        ]

    def _most_pages(self, group: KVGroupSpec, first: int, length: int, chunk: int) -> int:
        whole = -(-length // self.page_size) - first
        return whole if group.window is None else min(whole, -(-(group.window + chunk) // self.page_size) + 1)

    def can_grow(self, tables: PageTables, length: int, stop: int) -> bool:
        """Whether `grow(tables, length, stop)` would succeed now."""
        last = -(-stop // self.page_size)
        partial = length % self.page_size != 0
        for table, allocator in zip(tables.tables, self.allocators, strict=True):
            need = last - len(table) + (partial and allocator.references(table[-1]) > 1)
            if need > allocator.available:
                return False
        return True

    def must_copy(self, tables: PageTables, length: int) -> bool:
        """Whether `grow` from this length would copy a page, as others share the last one."""
        return length % self.page_size != 0 and any(
            allocator.references(table[-1]) > 1 for table, allocator in zip(tables.tables, self.allocators, strict=True)
        )

    def grow(self, tables: PageTables, length: int, stop: int) -> bool:
        """Makes positions [length, stop) writable: new pages, and an own copy of a last page that others share.

        Copies run on the pools, so no step that touches them may be in flight. False when the pages do not suffice.
        """
        if not self.can_grow(tables, length, stop):
            return False
        last = -(-stop // self.page_size)
        partial = length % self.page_size != 0
        for table, allocator, pool in zip(tables.tables, self.allocators, self.pools, strict=True):
            if partial and allocator.references(table[-1]) > 1:
                page = allocator.take()
                pool.copy_page(table[-1], page)
                allocator.release(table[-1])
                table[-1] = page
                self.bytes_copied += pool.group.page_bytes
            for _ in range(last - len(table)):
                table.append(allocator.take())
        return True

    def attach(self, tables: PageTables, keys: Sequence[bytes], pages: int) -> int:
        """Starts an empty sequence on the first `pages` cached pages; returns the position from which it goes on."""
        position = pages * self.page_size
        for g, (group, allocator) in enumerate(zip(self.groups, self.allocators, strict=True)):
            first = first_live_page(position, group.window, self.page_size)
            table = tables.tables[g]
            table.extend([RELEASED] * first)
            tables.first[g] = first
            for key in keys[first:pages]:
                page = allocator.find(key)
                assert page is not None
                allocator.retain(page)
                table.append(page)
        tables.published = pages
        return position

    def publish(self, tables: PageTables, keys: Sequence[bytes], length: int) -> None:
        """Offers the pages that positions [0, length) have filled to the prefix index."""
        full = min(length // self.page_size, len(keys))
        if not self.prefix_cache or full <= tables.published:
            return
        for g, allocator in enumerate(self.allocators):
            table = tables.tables[g]
            for page in range(max(tables.published, tables.first[g]), full):
                allocator.publish(table[page], keys[page])
        tables.published = full

    def slide(self, tables: PageTables, length: int) -> None:
        """Gives back the pages that no query at or after position `length` sees."""
        for g, window in self._windows:
            first = max(0, length - window + 1) // self.page_size
            table, allocator = tables.tables[g], self.allocators[g]
            while tables.first[g] < first and tables.first[g] < len(table):
                page = tables.first[g]
                allocator.release(table[page])
                table[page] = RELEASED
                tables.first[g] = page + 1

    def fork(self, tables: PageTables) -> PageTables:
        """A second owner of the same pages; whoever writes into the shared last page first takes a copy."""
        twin = PageTables(len(self.groups))
        twin.first = list(tables.first)
        twin.published = tables.published
        for g, allocator in enumerate(self.allocators):
            twin.tables[g] = tables.tables[g][:]
            for page in tables.tables[g][tables.first[g] :]:
                allocator.retain(page)
        return twin

    def free(self, tables: PageTables) -> None:
        """Gives all pages back, the last one first: of a cached prompt, the tail is evicted before its beginning."""
        for g, allocator in enumerate(self.allocators):
            table = tables.tables[g]
            for page in reversed(table[tables.first[g] :]):
                allocator.release(page)
            del table[:]
            tables.first[g] = 0
        tables.published = 0

    def check(self, live: Iterable[PageTables]) -> None:
        """Conservation over all groups, for tests: the tables of all live sequences account for every reference."""
        live = list(live)
        for g, allocator in enumerate(self.allocators):
            references: Counter[int] = Counter()
            for tables in live:
                references.update(tables.tables[g][tables.first[g] :])
            assert RELEASED not in references
            allocator.check(dict(references))
