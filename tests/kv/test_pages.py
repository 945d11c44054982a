"""Pages: unused, held, cached; and which of the cached are given out first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.kv.pages import PageAllocator
from paceline.kv.prefix import PrefixIndex


def opened(pages: int) -> tuple[PageAllocator, PrefixIndex]:
    index = PrefixIndex(page_size=1)
    return PageAllocator(pages, index), index


def test_scratch_is_never_given_and_nothing_partly() -> None:
    pages, _ = opened(4)
    assert sorted(pages.take(3)) == [1, 2, 3]
    assert pages.take(0) == []
    with pytest.raises(AssertionError):
        pages.take(1)
    pages.drop([2])
    with pytest.raises(AssertionError):
        pages.take(2)
    assert pages.take(1) == [2]


def test_a_page_is_free_when_its_last_holder_has_left() -> None:
    pages, _ = opened(3)
    (page,) = pages.take(1)
    pages.share([page])
    pages.drop([page])
    assert (pages.holders(page), pages.used, pages.unused) == (1, 1, 1)
    pages.drop([page])
    assert (pages.holders(page), pages.used, pages.unused) == (0, 0, 2)
    with pytest.raises(AssertionError):
        pages.drop([page])


def test_cached_pages_are_given_out_last_the_least_recently_used_first() -> None:
    pages, index = opened(7)
    first, second = pages.take(2), pages.take(2)
    index.insert([1, 2], first)
    index.insert([3, 4], second)
    pages.drop(first)
    pages.drop(second)
    assert (pages.cached, pages.unused, pages.available) == (4, 2, 6)
    assert pages.unheld(first) == 2
    pages.share(first)  # used again, and so the most recently used
    assert pages.unheld(first) == 0
    pages.drop(first)
    pages.check([])
    pages.take(2)
    assert index.evictions == 0
    # The end of a text before its beginning.
    assert pages.take(4) == [second[1], second[0], first[1], first[0]]
    assert (index.evictions, len(index)) == (4, 0)


def test_a_page_that_is_forgotten_while_cached_is_unused() -> None:
    pages, index = opened(4)
    chain = pages.take(3)
    index.insert([1, 2, 3], chain, sound=1)
    pages.drop(chain)
    pages.discard(index.distrust(chain))
    assert (pages.cached, pages.unused) == (1, 2)
    pages.check([])


@given(st.data())
def test_against_a_model_of_sets(data: st.DataObject) -> None:
    """Holders come with a text of which they share what is known, and go as they like."""
    total = data.draw(st.integers(1, 12))
    pages, index = opened(total + 1)
    tables: list[tuple[list[int], list[int]]] = []
    for _ in range(data.draw(st.integers(1, 30))):
        text = data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=5))
        known = index.match(text, len(text)).pages
        if len(text) - len(known) <= pages.available - pages.unheld(known):
            pages.share(known)
            mine = known + pages.take(len(text) - len(known))
            index.insert(text, mine)
            tables.append((text, mine))
        while tables and data.draw(st.booleans()):
            _, mine = tables.pop(data.draw(st.integers(0, len(tables) - 1)))
            pages.drop(mine)
        pages.check([mine for _, mine in tables])
        assert pages.used == len({page for _, mine in tables for page in mine})
        for text, mine in tables:
            assert index.match(text, len(text)).pages == mine
    for _, mine in tables:
        pages.drop(mine)
    assert pages.available == total
