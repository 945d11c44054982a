"""What a token costs beside its rounds: learned of one kind of round, and said of the other."""

from __future__ import annotations

import pytest

from paceline.engine.beside import Beside


def test_nothing_is_known_at_first() -> None:
    assert Beside().both(4) == (0, 0)


def test_what_one_kind_shows_is_expected_of_the_other() -> None:
    beside = Beside()
    for _ in range(400):
        beside.saw(False, 4, 5e-3, 6e-3)
    plain, drafting = beside.both(4)
    assert plain == pytest.approx(2.5e-4, rel=0.2)
    assert drafting == pytest.approx(2.5e-4, rel=0.05)
    for _ in range(400):
        beside.saw(True, 8, 7e-3, 11e-3)
    plain, drafting = beside.both(4)
    assert plain == pytest.approx(2.5e-4, rel=0.3)  # it was seen, so it stands
    assert drafting == pytest.approx(5e-4, rel=0.1)


def test_prompts_cost_only_where_a_drafter_reads_them() -> None:
    beside = Beside()
    beside.wrote(872)
    beside.fed(0.1)
    assert beside.both(1) == (0, pytest.approx(1e-4))
    for _ in range(400):
        beside.saw(True, 10, 5e-3, 6e-3)  # the drafter's prompts are part of what went by
    plain, drafting = beside.both(1)
    assert drafting == pytest.approx(1e-4, rel=0.05)
    assert plain < 0.1 * drafting


def test_an_accident_says_little() -> None:
    beside = Beside()
    for _ in range(200):
        beside.saw(True, 10, 5e-3, 5e-3)
    beside.saw(True, 10, 5e-3, 60.0)
    assert beside.both(1)[1] < 1e-4


def test_it_is_told_when_one_kind_was_hardly_met_for_long() -> None:
    beside = Beside()
    assert not beside.lopsided
    for _ in range(70):
        beside.saw(True, 10, 5e-3, 5e-3)
    assert beside.lopsided
    for _ in range(20):
        beside.saw(False, 4, 5e-3, 5e-3)
    assert not beside.lopsided
    for _ in range(3000):
        beside.saw(True, 10, 5e-3, 5e-3)
    assert beside.lopsided


def test_a_round_whose_texts_had_ended_says_nothing() -> None:
    beside = Beside()
    beside.saw(False, 0, 5e-3, 5e-3)
    beside.saw(True, 0, 5e-3, 5e-3)
    assert beside.both(1) == (0, 0)
    beside.saw(True, 4, 5e-3, 6e-3)
    assert beside.both(1)[1] > 0


def test_it_is_never_a_gain() -> None:
    """A table that says too much is the table's to learn."""
    beside = Beside()
    for _ in range(100):
        beside.saw(False, 1, 5e-3, 4e-3)
        beside.saw(True, 3, 8e-3, 5e-3)
    assert beside.both(64) == (0, 0)
