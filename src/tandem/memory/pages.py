"""Pages of one KV group: who references them, which are free, and which a later prompt may find again."""

from __future__ import annotations

from collections import OrderedDict


class PageAllocator:
    """Ids of `pages` pages. Each page is in exactly one of three states, so free + cached + used = pages:

    free    no references, content worthless
    cached  no references, but published under a key: a later prompt may take it up again, or it is evicted
    used    referenced by one or more sequences; published or not
    """

    __slots__ = ("_by_key", "_cached", "_free", "_keys", "_refs", "evictions", "pages")

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self.evictions = 0
        self._refs = [0] * pages
        self._free = list(range(pages - 1, -1, -1))
        self._keys: list[bytes | None] = [None] * pages
        self._by_key: dict[bytes, int] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def cached(self) -> int:
        return len(self._cached)

    @property
    def available(self) -> int:
        """Pages that `take` can give: free ones, then cached ones."""
        return len(self._free) + len(self._cached)

    @property
    def used(self) -> int:
        return self.pages - self.available

    def references(self, page: int) -> int:
        return self._refs[page]

    def take(self) -> int:
        """A page with one reference; evicts the page that was cached first when none is free.

        The caller checks `available` before.
        """
        if self._free:
            page = self._free.pop()
        else:
            page, _ = self._cached.popitem(last=False)
            self._forget(page)
            self.evictions += 1
        self._refs[page] = 1
        return page

    def retain(self, page: int) -> None:
        """One more reference; revives a cached page."""
        if self._refs[page] == 0:
            del self._cached[page]
        self._refs[page] += 1

    def release(self, page: int) -> None:
        """One reference less; the last one makes the page cached if it is published, free otherwise."""
        self._refs[page] -= 1
        if self._refs[page] == 0:
            if self._keys[page] is not None:
                self._cached[page] = None
            else:
                self._free.append(page)

    def publish(self, page: int, key: bytes) -> None:
        """Makes a full page findable. The first page under a key stays; an equal second one is simply not published."""
        if key not in self._by_key and self._keys[page] is None:
            self._by_key[key] = page
            self._keys[page] = key

    def find(self, key: bytes) -> int | None:
        return self._by_key.get(key)

    def drop_cached(self) -> None:
        """Frees every cached page."""
        for page in self._cached:
            self._forget(page)
            self._free.append(page)
        self._cached.clear()

    def _forget(self, page: int) -> None:
        key = self._keys[page]
        assert key is not None
        del self._by_key[key]
        self._keys[page] = None

    def check(self, references: dict[int, int]) -> None:
        """Conservation, for tests and debugging: `references` are those the live sequences hold, by page."""
        free, cached = set(self._free), set(self._cached)
        used = {page for page, count in enumerate(self._refs) if count}
        assert len(free) == len(self._free), "a page is free twice"
        assert not (free & cached or free & used or cached & used), "a page is in two states"
        assert len(free) + len(cached) + len(used) == self.pages, "free + cached + used != pages"
        assert {page: self._refs[page] for page in used} == references, "reference counts differ from the tables"
        assert all(self._keys[page] is None for page in free), "a free page is still published"
        assert all(self._keys[page] is not None for page in cached), "a cached page is not published"
        assert all(self._keys[page] == key for key, page in self._by_key.items()), "the index points elsewhere"
