"""Pages of one KV group: who references them, which are free, and which a later prompt may find again."""

from __future__ import annotations

from array import array

_NONE = -1


class PageAllocator:
    """Ids of `pages` pages. Each page is in exactly one of three states, so free + cached + used = pages:

    free    no references, content worthless
    cached  no references, but published under a key: a later prompt may take it up again, or it is evicted
    used    referenced by one or more sequences; published or not

    All of its memory is taken at the start (a dict of keys would take more again and again): a stack of free pages, a
    ring of cached ones from the first to the last that was released, and a hash table chained through the pages.
    """

    __slots__ = (
        "_buckets", "_chain", "_free", "_keys", "_newer", "_older", "_refs", "cached", "evictions", "free", "pages",
    )  # fmt: skip

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self.free = pages
        self.cached = 0
        self.evictions = 0
        self._refs = array("i", [0]) * pages
        self._free = array("i", range(pages - 1, -1, -1))
        self._keys: list[bytes | None] = [None] * pages
        self._buckets = array("i", [_NONE]) * (1 << pages.bit_length())
        self._chain = array("i", [_NONE]) * pages
        # Entry `pages` is the ring's fixed point: its `newer` is the page to evict first.
        self._newer = array("i", [pages]) * (pages + 1)
        self._older = array("i", [pages]) * (pages + 1)

    @property
    def available(self) -> int:
        """Pages that `take` can give: free ones, then cached ones."""
        return self.free + self.cached

    @property
    def used(self) -> int:
        return self.pages - self.free - self.cached

    def references(self, page: int) -> int:
        return self._refs[page]

    def take(self) -> int:
        """A page with one reference; evicts the page that was cached first when none is free.

        The caller checks `available` before.
        """
        if self.free:
            self.free -= 1
            page = self._free[self.free]
        else:
            page = self._newer[self.pages]
            assert page != self.pages, "no page is available"
            self._revive(page)
            self._forget(page)
            self.evictions += 1
        self._refs[page] = 1
        return page

    def retain(self, page: int) -> None:
        """One more reference; revives a cached page."""
        if self._refs[page] == 0:
            self._revive(page)
        self._refs[page] += 1

    def release(self, page: int) -> None:
        """One reference less; the last one makes the page cached if it is published, free otherwise."""
        self._refs[page] -= 1
        if self._refs[page] == 0:
            if self._keys[page] is not None:
                newest = self._older[self.pages]
                self._newer[newest] = self._older[self.pages] = page
                self._older[page], self._newer[page] = newest, self.pages
                self.cached += 1
            else:
                self._push_free(page)

    def publish(self, page: int, key: bytes) -> None:
        """Makes a full page findable. The first page under a key stays; an equal second one is simply not published."""
        if self._keys[page] is None and self.find(key) is None:
            bucket = hash(key) & len(self._buckets) - 1
            self._chain[page] = self._buckets[bucket]
            self._buckets[bucket] = page
            self._keys[page] = key

    def find(self, key: bytes) -> int | None:
        page = self._buckets[hash(key) & len(self._buckets) - 1]
        while page != _NONE:
            if self._keys[page] == key:
                return page
            page = self._chain[page]
        return None

    def drop_cached(self) -> None:
        """Frees every cached page."""
        while self.cached:
            page = self._newer[self.pages]
            self._revive(page)
            self._forget(page)
            self._push_free(page)

    def _push_free(self, page: int) -> None:
        self._free[self.free] = page
        self.free += 1

    def _revive(self, page: int) -> None:
        """Out of the ring of cached pages."""
        older, newer = self._older[page], self._newer[page]
        self._newer[older], self._older[newer] = newer, older
        self.cached -= 1

    def _forget(self, page: int) -> None:
        """Out of the table of keys."""
        key = self._keys[page]
        assert key is not None
        bucket = hash(key) & len(self._buckets) - 1
        if self._buckets[bucket] == page:
            self._buckets[bucket] = self._chain[page]
        else:
            before = self._buckets[bucket]
            while self._chain[before] != page:
                before = self._chain[before]
            self._chain[before] = self._chain[page]
        self._keys[page] = None

    def check(self, references: dict[int, int]) -> None:
        """Conservation, for tests and debugging: `references` are those the live sequences hold, by page."""
        free = set(self._free[: self.free])
        ring: list[int] = []
        while (page := self._newer[ring[-1] if ring else self.pages]) != self.pages:
            assert self._older[page] == (ring[-1] if ring else self.pages), "the ring of cached pages is broken"
            ring.append(page)
        cached = set(ring)
        used = {page for page, count in enumerate(self._refs) if count}
        assert len(free) == self.free and len(cached) == len(ring) == self.cached, "a page is counted twice"
        assert not (free & cached or free & used or cached & used), "a page is in two states"
        assert len(free) + len(cached) + len(used) == self.pages, "free + cached + used != pages"
        assert {page: self._refs[page] for page in used} == references, "reference counts differ from the tables"
        published = [page for page, key in enumerate(self._keys) if key is not None]
        assert not free.intersection(published), "a free page is still published"
        assert cached.issubset(published), "a cached page is not published"
        assert all(self.find(key) == page for page, key in enumerate(self._keys) if key is not None), (
            "the index points elsewhere"
        )
