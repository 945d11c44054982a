"""In which passes a drafter is brought up to date with several texts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.engine.catch_up import NEAR, SIDE, TOGETHER, CatchUp, Span, cut

SPANS = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 3 * NEAR)), max_size=3 * TOGETHER)


@given(SPANS)
def test_every_position_is_shown_once_and_in_order(drawn: list[tuple[int, int]]) -> None:
    spans = [Span(slot, start, start + count) for slot, (start, count) in enumerate(drawn)]
    seen = {span.slot: span.start for span in spans}
    for group in cut(spans):
        assert len({span.slot for span in group}) == len(group)  # a pass has no order inside
        if len(group) > 1:
            assert len(group) <= TOGETHER
            assert all(stop - start <= SIDE for _, start, stop in group)
        for slot, start, stop in group:
            assert seen[slot] == start < stop
            seen[slot] = stop
    assert seen == {span.slot: span.stop for span in spans}


def test_texts_that_lie_little_behind_share_their_passes() -> None:
    near = [Span(slot, 0, 20) for slot in range(20)]
    sizes = [len(group) for group in cut([Span(99, 0, NEAR + 1), *near])]
    assert sizes == [1, TOGETHER, 4, TOGETHER, 4]


@pytest.mark.parametrize(
    ("behind", "seconds"),
    [([], 0), ([0, 0], 0), ([20], 120), ([20, 20], 240), ([20, 0, 5], 225), ([200, 20], 420)],
)
def test_what_the_passes_take(behind: list[int], seconds: float) -> None:
    assert CatchUp(100, 1).seconds(behind) == seconds
