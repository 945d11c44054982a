"""The n-gram drafter against a loop that a reader can check by eye."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.drafters.ngram import LONGEST, NgramDrafter, NgramOptions
from paceline.errors import ConfigError

TEXT = st.lists(st.integers(0, 3), min_size=1, max_size=64)


def oracle(text: list[int], least: int, most: int, k: int) -> list[int]:
    """The longest suffix's most recent earlier occurrence, and what followed it."""
    for size in range(most, least - 1, -1):
        for start in range(len(text) - size - 1, -1, -1):
            if text[start : start + size] == text[len(text) - size :]:
                written = list(text)
                for step in range(k):
                    written.append(written[start + size + step])
                return written[len(text) :]
    return []


def bound(world: Any, least: int = 2, most: int = 8) -> tuple[NgramDrafter, Any]:
    drafter, limits = NgramDrafter(NgramOptions(least, most)), world.limits()
    drafter.bind(None, limits)  # type: ignore[arg-type]
    return drafter, limits


@given(
    texts=st.lists(TEXT, min_size=1, max_size=5),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    k=st.integers(1, 8),
    slack=st.integers(0, 9),
)
def test_equals_the_loop(
    world: Any, texts: list[list[int]], sizes: tuple[int, int], k: int, slack: int
) -> None:
    """Every row of a batch equals the loop on that row alone; stale tokens are not read."""
    drafter, limits = bound(world, min(sizes), max(sizes))
    rows = world.rows(texts, list(range(1, len(texts) + 1)), limits, slack)
    want = [oracle(text, min(sizes), max(sizes), k) for text in texts]
    assert world.propose(drafter, rows, k) == want


def test_longer_match_wins_over_a_later_one(world: Any) -> None:
    drafter, limits = bound(world)
    text = [5, 1, 2, 3, 7, 9, 2, 3, 8, 1, 2, 3]
    assert world.propose(drafter, world.rows([text], [1], limits), 2) == [[7, 9]]


def test_later_match_wins_among_equals(world: Any) -> None:
    drafter, limits = bound(world)
    text = [2, 3, 7, 9, 2, 3, 8, 6, 1, 2, 3]
    assert world.propose(drafter, world.rows([text], [1], limits), 2) == [[8, 6]]


@pytest.mark.parametrize("period", [1, 2, 3, 5])
def test_periodic_text_goes_on(world: Any, period: int) -> None:
    drafter, limits = bound(world)
    text = [i % period for i in range(20)]
    want = [(20 + i) % period for i in range(8)]
    assert world.propose(drafter, world.rows([text], [1], limits), 8) == [want]


@pytest.mark.parametrize("text", [[4], [4, 4], [1, 2, 3, 4]])
def test_nothing_to_find(world: Any, text: list[int]) -> None:
    drafter, limits = bound(world)
    assert world.propose(drafter, world.rows([text], [1], limits), 4) == [[]]


def test_full_buffer_and_idle_row(world: Any) -> None:
    """A text that fills the slot; a row of the scratch slot, which holds no text."""
    drafter, limits = bound(world)
    full = [i % 7 for i in range(limits.max_length)]
    rows = world.rows([full, []], [5, 0], limits)
    want = [(limits.max_length + i) % 7 for i in range(8)]
    assert world.propose(drafter, rows, 8) == [want, []]


def test_the_longest_suffix_is_exact(world: Any) -> None:
    """A run of LONGEST tokens beats one of LONGEST - 1: the float32 sum keeps every bit."""
    drafter, limits = bound(world, 2, LONGEST)
    run = [10 + i for i in range(LONGEST)]
    text = [*run, 1, 40, *run[1:], 2, *run]
    assert len(text) <= limits.max_length
    assert world.propose(drafter, world.rows([text], [1], limits), 1) == [[1]]


@pytest.mark.parametrize("sizes", [(0, 4), (5, 4), (2, LONGEST + 1)])
def test_refuses_impossible_sizes(sizes: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="min and max"):
        NgramDrafter(NgramOptions(*sizes))
