"""The cost table: lines between measured points, and what live rounds do to them."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.engine.catch_up import CatchUp
from paceline.engine.cost import CostTable
from paceline.engine.cost_grid import Kind, Point

KS = (0, 1, 2, 4, 8)


def table(**options: object) -> CostTable:
    """Costs that are straight lines, so that everything between is known."""
    points = []
    for rows in (1, 4, 16):
        for k in (0, 2, 8):
            points.append(Point("verify", rows, k, 0, 1e-3 * (4 + 0.1 * rows * (k + 1))))
        points.append(Point("verify", rows, 0, 100, 1e-3 * (4 + 0.1 * rows + 0.5 * rows)))
        for k in (1, 8):
            points.append(Point("draft", rows, k, 0, 1e-3 * k * (1 + 0.05 * rows)))
    return CostTable(points, KS, **options)  # type: ignore[arg-type]


def test_measured_points_come_back_and_straight_lines_lie_between() -> None:
    costs = table()
    assert costs.verify(4, 3) == pytest.approx(5.2e-3)
    assert costs.verify(4, 5) == pytest.approx(6e-3)  # k = 4, between 2 and 8
    assert costs.verify(8, 1) == pytest.approx(4.8e-3)  # rows between 4 and 16
    assert costs.verify(4, 3, 50) == pytest.approx(6.2e-3)  # half of 2 ms for 100 positions
    assert costs.draft(4, 4) == pytest.approx(4.8e-3)
    assert costs.draft(4, 0) == 0
    assert costs.verify(32, 1) == pytest.approx(11.2e-3)  # beyond: in proportion
    # A guess, as nobody measured it.
    assert costs.catching_up([640]) == pytest.approx(1.05e-3 + 640 * 1.05e-3 / 64)


def test_a_round_is_its_parts() -> None:
    costs = table()
    whole = [costs.verify(4, k + 1, 30) + costs.draft(4, k, 30) for k in KS]
    assert costs.rounds(4, 30) == pytest.approx(whole)


def test_recorded_rounds_cost_what_their_size_costs() -> None:
    costs = table(sizes=(1, 4, 16))
    assert costs.verify(5, 3) == costs.verify(16, 3)
    assert costs.rounds(2) == costs.rounds(4)


def test_a_round_that_is_not_there_costs_more_than_any() -> None:
    costs = table(most=lambda rows: 8 if rows < 16 else 2)
    assert [math.isinf(seconds) for seconds in costs.rounds(16)] == [False] * 3 + [True] * 2
    assert math.isinf(costs.verify(16, 9))
    assert not any(math.isinf(seconds) for seconds in costs.rounds(4))


POINTS = st.lists(
    st.builds(
        Point,
        st.sampled_from(("verify", "draft")),
        st.sampled_from((1, 2, 4, 8, 16)),
        st.sampled_from((0, 1, 3, 7)),
        st.sampled_from((0, 64, 512)),
        st.floats(1e-5, 1e-1),
    ),
    min_size=1,
).filter(lambda points: any(point.kind == "verify" for point in points))


@given(POINTS)
def test_whatever_was_measured_more_never_costs_less(points: list[Point]) -> None:
    costs = CostTable(points, range(9))
    rows, contexts = (1, 2, 3, 6, 8, 20), (0, 100, 1000)
    for context in contexts:
        for kind in (costs.verify, costs.draft):
            grid = [[kind(n, k, context) for k in range(1, 9)] for n in rows]
            for line in [*grid, *zip(*grid, strict=True)]:
                assert all(a <= b * (1 + 1e-9) for a, b in itertools.pairwise(line))
        assert all(0 < x < math.inf for x in costs.rounds(3, context))
    for a, b in itertools.pairwise(contexts):
        assert all(x <= y for x, y in zip(costs.rounds(5, a), costs.rounds(5, b), strict=True))


def test_no_verify_window_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        CostTable([Point("draft", 1, 1, 0, 1e-3)], KS)


@pytest.mark.parametrize("kind", ["verify", "draft"])
def test_live_rounds_correct_their_cell_and_a_little_the_others(kind: Kind) -> None:
    costs = table()
    ask = (lambda rows, k: costs.verify(rows, k + 1)) if kind == "verify" else costs.draft
    before, other = ask(4, 2), ask(16, 8)
    for _ in range(60):
        costs.saw(kind, 4, 2, 0, 1.3 * before)
    assert ask(4, 2) == pytest.approx(1.3 * before, rel=0.02)
    assert other * 1.02 < ask(16, 8) < other * 1.15
    assert costs.rounds(4)[2] == pytest.approx(costs.verify(4, 3) + costs.draft(4, 2))
    for _ in range(60):  # and the other cell's own rounds take that back
        costs.saw(kind, 16, 8, 0, other)
    assert ask(16, 8) == pytest.approx(other, rel=0.02)


def test_a_slow_round_now_and_then_says_nothing() -> None:
    costs, rng = table(), random.Random(1)
    before = costs.verify(4, 3)
    seen = []
    for turn in range(400):
        slow = 10 if turn % 50 == 7 else 1
        costs.saw("verify", 4, 2, 0, before * slow * rng.gauss(1, 0.05))
        seen.append(costs.verify(4, 3) / before)
    assert max(abs(x - 1) for x in seen) < 0.03


def test_nothing_is_learned_from_what_was_not_measured() -> None:
    costs = table()
    costs.saw("verify", 4, 2, 0, 0.0)
    costs.saw("draft", 4, 0, 0, 1e-3)
    assert costs.learned() == costs.points


def test_what_a_cell_learned_is_kept_and_what_all_share_is_not() -> None:
    costs = table()
    for _ in range(200):
        costs.saw("verify", 4, 2, 0, 2 * 5.2e-3)
    kept = {(p.kind, p.rows, p.k, p.context): p.seconds for p in costs.learned()}
    assert 1.5 < kept["verify", 4, 2, 0] / 5.2e-3 < 2
    assert kept["verify", 16, 2, 0] == pytest.approx(8.8e-3)


def test_what_the_host_takes_is_part_of_a_round() -> None:
    costs = table()
    plain, drafting = costs.rounds(4)[0], costs.rounds(4)[2]
    for _ in range(100):
        costs.saw_host(4, 2, 4e-4)
        costs.saw_host(4, 0, -1e-4)
    assert costs.host(4, 2) == pytest.approx(4e-4, rel=0.01)
    assert costs.rounds(4)[0] == plain
    assert costs.rounds(4)[2] == pytest.approx(drafting + 4e-4, rel=0.01)


def test_bringing_up_to_date_takes_as_many_passes_as_there_are() -> None:
    assert table(catch_up=CatchUp()).catching_up([100, 3]) == 0
    costs = table(catch_up=CatchUp(1e-3, 1e-5))
    assert costs.catching_up([100, 0, 3, 0]) == pytest.approx(2e-3 + 103e-5)
    assert costs.catching_up([3, 0, 20, 5]) == pytest.approx(2e-3 + 28e-5)  # side by side
    assert costs.catching_up([]) == 0


def test_sizes_measured_at_one_context_follow_their_neighbours() -> None:
    """Long contexts come last, and time may run out among them."""
    points = [Point("verify", 1, 0, 64, 4e-3)]
    for rows in (1, 2, 4, 8):
        points.append(Point("draft", rows, 8, 64, 6e-3))
        if rows in (1, 8):
            points.append(Point("draft", rows, 8, 1064, 6e-3 + rows * 1e-3))
    costs = CostTable(points, (0, 8))
    for rows in (1, 2, 4, 8):
        longer = costs.draft(rows, 8, 1064) - costs.draft(rows, 8, 64)
        assert longer == pytest.approx(rows * 1e-3, rel=0.01)
        assert costs.draft(rows, 0, 1064) == 0


def test_rounds_without_drafts_say_nothing_about_drafting() -> None:
    """Such a round's draft takes a few microseconds, whatever the context."""
    points = [Point("verify", 1, k, c, 4e-3) for k in (0, 8) for c in (64, 1024)]
    points += [Point("draft", 1, 8, c, 6e-3 + 1e-6 * c) for c in (64, 1024)]
    costs = CostTable(points, (0, 1, 8))
    before = costs.rounds(1, 500.0)
    assert costs.draft(1, 0, 500.0) == 0
    for _ in range(100):
        costs.saw("draft", 1, 0, 500.0, 5e-6)
    assert costs.rounds(1, 500.0) == before


def test_rows_that_only_fill_up_a_recorded_size_have_no_context() -> None:
    parts: tuple[tuple[Kind, int, float], ...]
    parts = ("verify", 0, 1e-3), ("verify", 2, 2e-3), ("draft", 2, 1e-3)
    points = [
        Point(kind, 4, k, context, seconds + 1e-6 * context)
        for kind, k, seconds in parts
        for context in (0, 1000)
    ]
    costs = CostTable(points, (0, 2), sizes=(4,))
    assert costs.verify(4, 1, 1000) == pytest.approx(2e-3)
    assert costs.verify(1, 1, 1000) == pytest.approx(1.25e-3)
    assert costs.rounds(2, 1000)[1] == pytest.approx(4e-3)
    for _ in range(20):
        costs.saw("verify", 1, 0, 1000, 1.25e-3)  # as expected
    assert costs.verify(4, 1, 1000) == pytest.approx(2e-3)
