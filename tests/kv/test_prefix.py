"""The prefix index against a list of texts, and what it says about the drafter's cache."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.kv.prefix import Hit, PrefixIndex

TEXT = tuple(range(10, 30))


def test_whole_pages_only_and_no_more_than_asked() -> None:
    index = PrefixIndex(page_size=4)
    index.insert(TEXT, [5, 6, 7])
    assert index.match(TEXT, 20).pages == [5, 6, 7]
    assert index.match(TEXT, 12).pages == [5, 6, 7]
    assert index.match(TEXT, 11).pages == [5, 6]
    assert index.match(TEXT[:7], 7).pages == [5]
    assert index.match(TEXT[:3], 3).pages == []
    assert index.match([0, *TEXT], 20).pages == []


def test_the_same_tokens_behind_other_tokens_are_another_page() -> None:
    index = PrefixIndex(page_size=2)
    index.insert([1, 1, 2, 2], [5, 6])
    index.insert([3, 3, 2, 2], [7, 8])
    assert index.match([1, 1, 2, 2], 4).pages == [5, 6]
    assert index.match([3, 3, 2, 2], 4).pages == [7, 8]
    assert index.match([2, 2], 2).pages == []
    assert (index.parent(8), index.parent(7)) == (7, None)


def test_numbers_that_python_takes_for_equal_hashes() -> None:
    """hash(-1) == hash(-2): what is compared is the tokens."""
    index = PrefixIndex(page_size=1)
    index.insert([-1], [5])
    assert index.match([-2], 1).pages == []


def test_nothing_goes_below_anothers_page() -> None:
    index = PrefixIndex(page_size=2)
    index.insert(TEXT, [5])
    index.insert(TEXT, [6, 7])
    assert index.match(TEXT, 20).pages == [5]
    assert len(index) == index.inserts == 1


def test_a_drafter_has_what_it_observed_from_the_front() -> None:
    index = PrefixIndex(page_size=4)
    index.insert(TEXT, [5, 6, 7], observed=7)
    assert index.match(TEXT, 20) == Hit([5, 6, 7], 4)
    index.insert(TEXT, [5, 6, 7], observed=0)  # what is valid stays so
    assert index.match(TEXT, 20).observed == 4
    index.insert(TEXT, [5, 6, 7], observed=12)
    assert index.match(TEXT, 20).observed == 12


def test_a_page_is_known_by_the_tokens_that_its_drafts_depend_on() -> None:
    """Two texts that part right behind a page have different drafter's caches in it."""
    index = PrefixIndex(page_size=4, shift=1)
    index.insert(TEXT[:8], [5, 6])
    assert index.match(TEXT, 20).pages == [5]  # what comes behind the second is not known
    other = (*TEXT[:4], 0, *TEXT[5:])
    assert index.match(other, 20).pages == []
    index.insert(other, [7])
    assert index.match(other, 20).pages == [7]
    assert index.match(TEXT[:4], 4).pages == []
    index.check()


def test_a_failure_takes_all_behind_the_first_page_not_known_to_be_sound() -> None:
    index = PrefixIndex(page_size=2)
    index.insert(TEXT[:8], [5, 6, 7], sound=2)
    index.insert((*TEXT[:4], 0, 0), [5, 6, 8])
    index.insert((*TEXT[:2], 0, 0), [5, 9])
    assert sorted(index.distrust([5, 6, 7])) == [6, 7, 8]
    assert index.match(TEXT, 20).pages == [5]
    assert index.match((*TEXT[:2], 0, 0), 4).pages == [5, 9]
    assert index.distrust([1, 5]) == []
    index.check()


def test_a_parent_is_not_evicted_before_its_children() -> None:
    index = PrefixIndex(page_size=2)
    index.insert(TEXT, [5, 6])
    with pytest.raises(AssertionError):
        index.evict(5)
    index.evict(6)
    index.evict(5)
    assert (len(index), index.evictions) == (0, 2)


@given(
    size=st.integers(1, 3),
    shift=st.integers(0, 2),
    texts=st.lists(st.lists(st.integers(0, 1), max_size=9), max_size=8),
    asked=st.lists(st.integers(0, 1), max_size=9),
    most=st.integers(0, 10),
)
def test_against_a_list(
    size: int, shift: int, texts: list[list[int]], asked: list[int], most: int
) -> None:
    """A page is found where some text that was put in has the same tokens up to its end, and the
    `shift` behind it."""
    index, page, owner = PrefixIndex(size, shift), 0, dict[tuple[int, ...], int]()
    for text in texts:
        known = index.match(text, len(text)).pages
        fresh = list(range(page + 1, page + 1 + len(text) // size - len(known)))
        index.insert(text, known + fresh)
        page += len(fresh)
        for place, number in enumerate(known + fresh):
            end = (place + 1) * size + shift
            if end <= len(text):
                owner.setdefault(tuple(text[:end]), number)
        index.check()
    expected = []
    for end in range(size, min(most, len(asked) - shift) + 1, size):
        if tuple(asked[: end + shift]) not in owner:
            break
        expected.append(owner[tuple(asked[: end + shift])])
    assert index.match(asked, most).pages == expected
    assert len(index) == len(owner)
