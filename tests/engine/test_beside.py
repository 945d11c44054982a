"""What goes by beside rounds: learned of one kind of round and said of the other; and prompts."""

from __future__ import annotations

import math

import pytest

from paceline.engine.beside import Beside


def test_nothing_is_known_at_first() -> None:
    assert Beside().late == (0, 0)
    assert Beside().reading == 0


def test_what_one_kind_shows_is_expected_of_the_other() -> None:
    beside = Beside()
    for _ in range(400):
        beside.saw(False, 5e-3, 6e-3)
    plain, drafting = beside.late
    assert plain == pytest.approx(0.2, rel=0.1)
    assert drafting == pytest.approx(0.2, rel=0.05)
    for _ in range(400):
        beside.saw(True, 7e-3, 11e-3)
    plain, drafting = beside.late
    assert plain == pytest.approx(0.2, rel=0.2)  # it was seen, so it stands
    assert drafting == pytest.approx(4 / 7, rel=0.1)


def test_what_was_seen_of_few_rows_is_a_share_of_the_rounds_of_many() -> None:
    """Rounds of one text and of many are late by as much for their time, not for their tokens."""
    beside = Beside()
    for _ in range(400):
        beside.saw(True, 5e-3, 5.5e-3)
    assert beside.late[1] == pytest.approx(0.1, rel=0.1)
    for _ in range(400):
        beside.saw(True, 9e-3, 9.9e-3)
    assert beside.late[1] == pytest.approx(0.1, rel=0.1)


def test_an_accident_says_little() -> None:
    beside = Beside()
    for _ in range(200):
        beside.saw(True, 5e-3, 5e-3)
    beside.saw(True, 5e-3, 60.0)
    assert beside.late[1] < 0.02
    beside.saw(True, math.inf, 5e-3)  # the table has no such round
    beside.saw(True, 0.0, 5e-3)
    assert 0 < beside.late[1] < 0.02
    for _ in range(1000):
        beside.saw(True, 5e-3, -60.0)  # whatever it was, no round takes less than no time
    assert beside.late[1] > -1


def test_it_is_told_when_one_kind_was_hardly_met_for_long() -> None:
    beside = Beside()
    assert not beside.lopsided
    for _ in range(70):
        beside.saw(True, 5e-3, 5e-3)
    assert beside.lopsided
    for _ in range(20):
        beside.saw(False, 5e-3, 5e-3)
    assert not beside.lopsided
    for _ in range(3000):
        beside.saw(True, 5e-3, 5e-3)
    assert beside.lopsided


def test_less_may_go_by_than_the_rounds_should_take() -> None:
    """A prompt is read while the device would have waited for the host, so it is not as dear."""
    beside = Beside()
    for _ in range(300):
        beside.saw(False, 6e-3, 6.6e-3)
        beside.saw(False, 6e-3, 4.2e-3)  # so much less than the reading that was taken off
    assert beside.late[0] == pytest.approx(-0.1, rel=0.1)


# --- prompts ---


def steady(beside: Beside, rows: int, length: int, tokens: int) -> None:
    """So many tokens of texts that begin and end one after the other, each read in 2.56 ms."""
    last = 0
    for written in range(rows, tokens + 1, rows):
        beside.wrote(rows)
        ended, last = written // length - last, written // length
        for _ in range(ended):
            beside.fed(2.56e-3)
        beside.moved(ended, ended)


@pytest.mark.parametrize("rows", [1, 64])
def test_a_prompt_is_shared_out_among_the_tokens_of_its_text(rows: int) -> None:
    beside = Beside()
    for _ in range(rows):
        beside.fed(2.56e-3)
    beside.moved(rows, 0)
    steady(beside, rows, 256, 40 * 256)
    assert beside.reading == pytest.approx(1e-5, rel=0.1)
    steady(beside, rows, 64, 200 * 64)
    assert beside.reading == pytest.approx(4e-5, rel=0.2)


def test_texts_that_only_just_began_are_not_taken_for_short_ones() -> None:
    beside = Beside()
    for _ in range(64):
        beside.fed(2.56e-3)
    beside.moved(64, 0)
    beside.wrote(64)
    assert beside.reading < 1.1e-5  # a text of 256 tokens, as long as nothing is known
    for _ in range(99):
        beside.wrote(64)
    assert beside.reading < 1e-6  # 6,400 tokens, and none of them has ended


def test_texts_that_were_given_up_while_read_are_paid_for_by_the_others() -> None:
    beside = Beside()
    for _ in range(20):
        beside.fed(1e-3)
    beside.moved(10, 0)
    beside.wrote(2560)
    beside.moved(0, 10)
    assert beside.reading == pytest.approx(2e-3 / 256, rel=0.01)
