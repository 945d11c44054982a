"""Who holds which page of the caches. Host only: no torch, no device.

A page is unused, held by one or more, or *cached*: nobody holds it and the prefix index knows the
text on it, which the next request with that beginning is spared. Cached pages are given out where
unused ones run short, the least recently used first. Page 0 is scratch and never given out.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

from paceline.kv.prefix import PrefixIndex


class PageAllocator:
    """Counts the holders of every page. Every operation costs what the pages it is given cost."""

    def __init__(self, pages: int, index: PrefixIndex) -> None:
        """pages: how many there are, the scratch page included."""
        self._index = index
        self._holders = [0] * pages
        self._unused = list(range(pages - 1, 0, -1))
        # An OrderedDict, not a dict: its first entry is found at once however many went before.
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def total(self) -> int:
        """Pages that can be given out at all."""
        return len(self._holders) - 1

    @property
    def unused(self) -> int:
        return len(self._unused)

    @property
    def cached(self) -> int:
        return len(self._cached)

    @property
    def used(self) -> int:
        """Pages that somebody holds."""
        return self.total - self.available

    @property
    def available(self) -> int:
        """Pages that `take` can give: unused, and cached."""
        return len(self._unused) + len(self._cached)

    def holders(self, page: int) -> int:
        """How many hold `page`."""
        return self._holders[page]

    def unheld(self, pages: Iterable[int]) -> int:
        """How many of `pages` are cached: `share` would make so many fewer available."""
        return sum(page in self._cached for page in pages)

    def take(self, n: int) -> list[int]:
        """n pages with one holder each, their content anyone's. n must be available."""
        assert 0 <= n <= self.available, f"{n} pages wanted, {self.available} available"
        taken = []
        for _ in range(n):
            if self._unused:
                page = self._unused.pop()
            else:
                page, _ = self._cached.popitem(last=False)
                self._index.evict(page)
            self._holders[page] = 1
            taken.append(page)
        return taken

    def share(self, pages: Iterable[int]) -> None:
        """One holder more for each of `pages`, which are held or cached."""
        for page in pages:
            if self._holders[page] == 0:
                del self._cached[page]
            self._holders[page] += 1

    def drop(self, pages: Sequence[int]) -> None:
        """One holder fewer for each of `pages`, which are in the order of their text. The last goes
        first, so that among cached pages the end of a text is given out before its beginning."""
        for page in reversed(pages):
            assert self._holders[page] > 0, f"page {page} has no holder"
            self._holders[page] -= 1
            if self._holders[page] == 0:
                if page in self._index:
                    self._cached[page] = None
                else:
                    self._unused.append(page)

    def discard(self, pages: Iterable[int]) -> None:
        """The index has forgotten `pages`: those that were cached are unused."""
        for page in pages:
            if page in self._cached:
                del self._cached[page]
                self._unused.append(page)

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """Assert that every page is where it belongs; tables: the pages of every holder. Slow."""
        holders = Counter(page for table in tables for page in table)
        assert self._holders == [holders[page] for page in range(len(self._holders))]
        held = {page for page, count in holders.items() if count}
        parts = [*self._unused, *self._cached, *held]
        assert sorted(parts) == list(range(1, len(self._holders))), "a page is lost, or given twice"
        assert not any(page in self._index for page in self._unused)
        assert all(page in self._index for page in self._cached)
        self._index.check()
        age = {page: place for place, page in enumerate(self._cached)}
        for page in parts:
            parent = self._index.parent(page) if page in self._index else None
            if parent is None:
                continue
            if page in held:
                assert self._holders[parent] >= self._holders[page], "held without its beginning"
            elif parent in age:
                assert age[page] < age[parent], "a parent would go before its child"
