"""What acceptance is believed to be: learned from tested positions, per request and in all."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
from tests.engine.traffic import Report

from paceline.engine.acceptance import SURPRISE, Acceptance, Track

MANY = 10**9  # tokens left to write


def rows(*outcomes: tuple[int, int]) -> Report:
    """A report of (drafted, accepted) rows, none of which has ended."""
    report = Report()
    for drafted, accepted in outcomes:
        report.n.append(accepted + 1)
        report.drafted.append(drafted)
        report.source.append(0)
        report.accepted.append(accepted)
        report.evaluated.append(min(accepted + 1, drafted))
        report.ended.append(0)
    return report


def chances(acceptance: Acceptance, track: Track) -> tuple[float, ...]:
    """The chance of each draft position, given that all before it stood."""
    tokens = acceptance.tokens(track.place)
    reach = [1.0, *(more - less for less, more in itertools.pairwise(tokens))]
    return tuple(after / before for before, after in itertools.pairwise(reach))


def feed(
    acceptance: Acceptance,
    tracks: Sequence[Track],
    truth: Sequence[Sequence[float]],
    k: int,
    rounds: int,
    seed: int = 0,
) -> None:
    """Rounds of k drafts whose tokens stand with the chances `truth`, per row and position."""
    rng = random.Random(seed)
    for _ in range(rounds):
        outcomes = []
        for row in truth:
            accepted = 0
            while accepted < k and rng.random() < row[accepted]:
                accepted += 1
            outcomes.append((k, accepted))
        acceptance.record(tracks, [k] * len(tracks), rows(*outcomes))


def test_every_position_is_learned_given_those_before_it() -> None:
    acceptance = Acceptance(4)
    tracks = [acceptance.track(4, MANY) for _ in range(8)]
    truth = (0.9, 0.5, 0.8, 0.6)
    feed(acceptance, tracks, [truth] * 8, 4, 300)
    fresh = acceptance.track(4, MANY)
    assert chances(acceptance, fresh) == pytest.approx(truth, abs=0.06)
    expected = [1, 1.9, 1.9 + 0.45, 2.35 + 0.36, 2.71 + 0.216]
    assert acceptance.tokens(fresh.place) == pytest.approx(expected, rel=0.04)


def test_positions_beyond_the_draft_in_use_are_expected() -> None:
    acceptance = Acceptance(6)
    tracks = [acceptance.track(6, MANY) for _ in range(8)]
    feed(acceptance, tracks, [(0.85,) * 6] * 8, 2, 200)
    law = chances(acceptance, acceptance.track(6, MANY))
    assert law[1] == pytest.approx(0.85, abs=0.04)
    # Each a little above the one before it: tried rather than never known.
    assert all(a < b < a + 0.03 for a, b in itertools.pairwise(law[1:]))
    for turn in range(10):
        tracks = [acceptance.track(6, MANY) for _ in range(8)]
        feed(acceptance, tracks, [(0.1,) * 6] * 8, 2, 30, seed=turn)
    law = chances(acceptance, acceptance.track(6, MANY))
    assert law[0] == pytest.approx(0.1, abs=0.06)
    assert law[3] > 0.6  # nobody knows, and it costs little to see


def test_a_position_that_was_not_reached_teaches_nothing() -> None:
    acceptance = Acceptance(3)
    tracks = [acceptance.track(3, MANY)]
    before = chances(acceptance, tracks[0])[2]
    for _ in range(30):
        acceptance.record(tracks, [3], rows((3, 0)))
    assert chances(acceptance, acceptance.track(3, MANY))[0] < 0.25
    assert chances(acceptance, acceptance.track(3, MANY))[2] == pytest.approx(before, abs=0.03)


def test_a_new_request_is_like_the_traffic_and_a_known_one_like_itself() -> None:
    acceptance = Acceptance(4)
    tracks = [acceptance.track(4, MANY) for _ in range(8)]
    truth = [(0.85,) * 4 if i % 2 else (0.3,) * 4 for i in range(8)]
    feed(acceptance, tracks, truth, 4, 150)
    for i, track in enumerate(tracks):
        assert chances(acceptance, track)[0] == pytest.approx(truth[i][0], abs=0.15)
    fresh = acceptance.track(4, MANY)
    at_first = chances(acceptance, fresh)[0]
    assert 0.45 < at_first < 0.75
    feed(acceptance, [fresh], [(1.0,) * 4], 4, 1)
    after_one = chances(acceptance, fresh)[0]
    assert at_first < after_one < 0.8  # one round says little (shrinkage)
    feed(acceptance, [fresh], [(1.0,) * 4], 4, 15)
    assert chances(acceptance, fresh)[0] > 0.85


def test_a_request_that_changes_is_followed() -> None:
    acceptance = Acceptance(4)
    track = acceptance.track(4, MANY)
    feed(acceptance, [track], [(0.8,) * 4], 4, 150)
    assert chances(acceptance, track)[0] > 0.7
    feed(acceptance, [track], [(0.2,) * 4], 4, 40)
    assert chances(acceptance, track)[0] < 0.4


def test_a_draft_shorter_than_asked_counts_as_failed_where_it_ends() -> None:
    short, full = Acceptance(4), Acceptance(4)
    for acceptance, drafted in ((short, 1), (full, 4)):
        track = acceptance.track(4, MANY)
        for _ in range(40):
            acceptance.record([track], [4], rows((drafted, 1)))
    assert chances(short, short.track(4, MANY)) == chances(full, full.track(4, MANY))


def test_what_the_end_of_a_text_cuts_off_is_no_failure() -> None:
    acceptance = Acceptance(4)
    before = chances(acceptance, acceptance.track(4, MANY))
    track = acceptance.track(4, 3)  # room for two drafts and the token after them
    acceptance.record([track], [4], rows((2, 2)))
    assert track.remaining == 0
    ended = rows((1, 1))
    ended.ended[0] = 1
    acceptance.record([acceptance.track(4, MANY)], [4], ended)
    idle = rows((0, 0))
    idle.n[0] = 0
    assert acceptance.record([acceptance.track(4, MANY)], [4], idle) == 0
    after = chances(acceptance, acceptance.track(4, MANY))
    assert all(a >= b for a, b in zip(after, before, strict=True))


def test_rows_that_nothing_was_asked_of_teach_nothing() -> None:
    acceptance = Acceptance(4)
    track = acceptance.track(4, 100)
    before = chances(acceptance, track)
    for _ in range(20):
        assert acceptance.record([track], [0], rows((4, 0))) == 0
    assert chances(acceptance, track) == before
    assert track.remaining == 80


def test_evidence_fades_while_nothing_is_tested() -> None:
    """After a long rest the same few tests move the law further."""
    moved = []
    for rest in (0, 2000):
        acceptance = Acceptance(2)
        tracks = [acceptance.track(2, MANY) for _ in range(8)]
        feed(acceptance, tracks, [(0.2, 0.2)] * 8, 2, 100)
        for _ in range(rest):
            acceptance.record(tracks, [0] * 8, rows(*[(0, 0)] * 8))
        feed(acceptance, tracks, [(0.9, 0.9)] * 8, 2, 3)
        moved.append(chances(acceptance, acceptance.track(2, MANY))[0])
    assert moved[0] < 0.35
    assert moved[1] > 0.4


def test_surprise_is_told_once_and_lets_go_of_what_was_known() -> None:
    acceptance = Acceptance(2)
    tracks = [acceptance.track(2, MANY) for _ in range(8)]
    feed(acceptance, tracks, [(0.2, 0.2)] * 8, 2, 100)
    acceptance.surprise()
    feed(acceptance, tracks, [(0.2, 0.2)] * 8, 2, 4)
    assert acceptance.surprise() < SURPRISE
    feed(acceptance, tracks, [(0.9, 0.9)] * 8, 2, 2)
    assert acceptance.surprise() > SURPRISE
    assert acceptance.surprise() == 0
    feed(acceptance, tracks, [(0.9, 0.9)] * 8, 2, 2)
    assert chances(acceptance, acceptance.track(2, MANY))[0] > 0.55


def test_no_evidence_leads_out_of_bounds() -> None:
    acceptance = Acceptance(8)
    track = acceptance.track(8, MANY)
    for accepted in (8, 0):
        for _ in range(3000):
            acceptance.record([track], [8], rows((8, accepted)))
        assert all(0 < chance < 1 for chance in chances(acceptance, track))
        assert 1 <= acceptance.tokens(track.place)[8] <= 9
