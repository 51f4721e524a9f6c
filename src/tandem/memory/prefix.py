"""The prefix index: which pages of a prompt exist already, and which ones are being computed right now.

A page's key chains the key before it with the page's tokens, so equal keys mean equal tokens from position 0 on. All
else that shapes the bytes of KV (weights, placement, dtype) is fixed while an engine lives; what may differ between
requests enters as the root of the chain.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from tandem.devices.base import KVGroupSpec
from tandem.memory.pages import PageAllocator


def extend_keys(keys: list[bytes], tokens: array[int], page_size: int, root: bytes = b"") -> None:
    """Appends the keys of all full pages of `tokens` (int32 ids from position 0) that `keys` does not have yet."""
    full = len(tokens) // page_size
    if len(keys) == full:
        return
    with memoryview(tokens) as view:
        parent = keys[-1] if keys else blake2b(root, digest_size=16).digest()
        for page in range(len(keys), full):
            digest = blake2b(parent, digest_size=16)
            digest.update(view[page * page_size : (page + 1) * page_size])
            parent = digest.digest()
            keys.append(parent)


def first_live_page(position: int, window: int | None, page_size: int) -> int:
    """Logical page of the oldest key that a query at `position` sees."""
    if window is None:
        return 0
    return max(0, position - window + 1) // page_size


class PrefixIndex:
    """Joint lookup over the groups' allocators, and the keys that running prefills will publish."""

    def __init__(self, groups: Sequence[KVGroupSpec], allocators: Sequence[PageAllocator]) -> None:
        self._groups = tuple(zip(groups, allocators, strict=True))
        self._page_size = groups[0].page_size
        self._expected: set[bytes] = set()

    def match(self, keys: Sequence[bytes]) -> int:
        """The largest number of leading pages from which a sequence can go on.

        Continuing at position p needs the pages of [0, p) where attention is full, of [p - window, p) where it slides.
        """
        present = len(keys)
        for group, allocator in self._groups:
            if group.window is None:
                present = next((i for i in range(present) if allocator.find(keys[i]) is None), present)
        sliding = [(group, allocator) for group, allocator in self._groups if group.window is not None]
        if not sliding or present == 0:
            return present
        starts = [self._run_starts(allocator, keys[:present]) for _, allocator in sliding]
        for pages in range(present, 0, -1):
            position = pages * self._page_size
            if all(
                start[pages] <= first_live_page(position, group.window, self._page_size)
                for (group, _), start in zip(sliding, starts, strict=True)
            ):
                return pages
        return 0

    @staticmethod
    def _run_starts(allocator: PageAllocator, keys: Sequence[bytes]) -> list[int]:
        """For each n: where the unbroken run of present pages that ends before page n starts."""
        starts = [0]
        for page, key in enumerate(keys):
            starts.append(starts[-1] if allocator.find(key) is not None else page + 1)
        return starts

    def expect(self, keys: Iterable[bytes]) -> set[bytes]:
        """Announces pages that a prefill is about to compute; returns those that nobody had announced before."""
        new = set(keys) - self._expected
        self._expected |= new
        return new

    def settle(self, keys: set[bytes]) -> None:
        """Takes announcements back: the pages are published now, or will not be computed after all."""
        self._expected -= keys

    def last_expected(self, keys: Sequence[bytes], start: int) -> bytes | None:
        """The last key of the unbroken run of announced keys from `start` on; None when nothing is on its way."""
        found = None
        for key in keys[start:]:
            if key not in self._expected:
                break
            found = key
        return found
