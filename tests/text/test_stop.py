"""Stop strings against an oracle that reads the whole text one character at a time."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from paceline.text import StopStrings

# A small alphabet, so that stops overlap themselves, each other and the text all the time.
STOP = st.text("ab\n", min_size=1, max_size=4)


def oracle(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Return (shown text, stop): completed first wins, then the longest."""
    for end in range(1, len(text) + 1):
        hits = [stop for stop in stops if text[:end].endswith(stop)]
        if hits:
            stop = max(hits, key=len)
            return text[: end - len(stop)], stop
    return text, None


def could_become(text: str, stops: list[str]) -> int:
    """Return the length of the longest end of `text` that begins a stop string."""
    lengths = [n for stop in stops for n in range(len(stop)) if text.endswith(stop[:n])]
    return max(lengths, default=0)


@given(pieces=st.lists(st.text("ab\n", max_size=6), max_size=8), stops=st.lists(STOP, max_size=4))
@example(pieces=["a", "ab", "aab"], stops=["aaba"])
@example(pieces=["ab", "c"], stops=["abc", "b"])
def test_any_split_gives_what_the_whole_text_gives(pieces: list[str], stops: list[str]) -> None:
    watch, shown, fed, hit = StopStrings(stops), "", "", None
    for piece in pieces:
        safe, hit = watch.feed(piece)
        shown, fed = shown + safe, fed + piece
        if hit is not None:
            break
        # Holds back what could still become a stop string, and no more.
        assert len(fed) - len(shown) == could_become(fed, stops)
    if hit is None:
        shown += watch.flush()
    assert (shown, hit) == oracle("".join(pieces), stops)


@given(text=st.text("ab", max_size=12), first=st.integers(0, 12), stops=st.lists(STOP, max_size=3))
@example(text="xaab", first=2, stops=["aab"])
@example(text="aaa", first=2, stops=["aa"])
def test_a_stop_that_is_completed_too_early_does_not_count(
    text: str, first: int, stops: list[str]
) -> None:
    """One that only begins among the first characters does."""
    watch, shown, hit = StopStrings(stops), "", None
    for place, character in enumerate(text):
        safe, hit = watch.feed(character, armed=place >= first)
        shown += safe
        if hit is not None:
            break
    if hit is None:
        shown += watch.flush()
    for end in range(first + 1, len(text) + 1):
        if hits := [stop for stop in stops if text[:end].endswith(stop)]:
            stop = max(hits, key=len)
            assert (shown, hit) == (text[: end - len(stop)], stop)
            return
    assert (shown, hit) == (text, None)


@given(pieces=st.lists(st.text("ab\n", max_size=6), max_size=8), stops=st.lists(STOP, max_size=4))
def test_one_that_is_to_be_shown_ends_the_text(pieces: list[str], stops: list[str]) -> None:
    """And how the text was split makes no difference to that."""
    watch, shown, hit = StopStrings(stops, shown=True), "", None
    for piece in pieces:
        safe, hit = watch.feed(piece)
        shown += safe
    if hit is None:
        shown += watch.flush()
    before, wanted = oracle("".join(pieces), stops)
    assert (shown, hit) == (before + (wanted or ""), wanted)


def test_nothing_is_shown_after_a_stop() -> None:
    watch = StopStrings(["\ndef "])
    assert watch.feed("    return 1\n\nd") == ("    return 1\n", None)
    assert watch.feed("ef g():") == ("", "\ndef ")
    assert watch.feed("more") == ("", "\ndef ")
    assert watch.flush() == ""


@pytest.mark.parametrize(
    ("stops", "text", "shown", "hit"),
    [
        (["abc", "b"], "abc", "a", "b"),  # completed first
        (["b", "ab"], "xab", "x", "ab"),  # the longest of those completed by one character
        (["ab", "ab"], "ab", "", "ab"),
        (["日本"], "これは日本語", "これは", "日本"),
        ([], "text", "text", None),
    ],
)
def test_which_stop_wins(stops: list[str], text: str, shown: str, hit: str | None) -> None:
    assert StopStrings(stops).feed(text) == (shown, hit)
