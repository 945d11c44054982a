"""The draft length of a round: the decision itself, and the governor around it."""

from __future__ import annotations

import logging
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.engine.traffic import CPU, H200, Device, Report, Traffic, constant, play, table

from paceline.engine.acceptance import Track
from paceline.engine.cost import CostTable
from paceline.engine.pilot import Launch
from paceline.engine.policy import Governor, choose

KS = (0, 1, 2, 3, 4, 5, 6, 8)
SIZES = (1, 2, 4, 8, 16, 32, 64)
MANY = 10**9


def run(
    governor: Governor,
    tracks: list[Track],
    chance: float,
    rounds: int,
    device: Device = H200,
    seed: int = 0,
) -> list[Launch]:
    """Rounds of one acceptance, without noise in their times."""
    rng, launches = random.Random(seed), []
    for _ in range(rounds):
        launch = governor.plan(tracks, 0.0)
        report = Report()
        for asked in launch.asked:
            accepted = 0
            while accepted < asked and rng.random() < chance:
                accepted += 1
            report.n.append(accepted + 1)
            report.drafted.append(asked)
            report.source.append(0)
            report.accepted.append(accepted)
            report.evaluated.append(min(accepted + 1, asked))
            report.ended.append(0)
        governor.settled(
            tracks,
            launch,
            report,
            verify_seconds=device.verify(launch.rows, launch.k),
            draft_seconds=device.draft(launch.rows, launch.next_k),
        )
        launches.append(launch)
    return launches


def made(rows: int, ks: tuple[int, ...] = KS, **options: object) -> tuple[Governor, list[Track]]:
    governor = Governor(table(H200, ks, SIZES), **options)  # type: ignore[arg-type]
    return governor, [governor.track(ks[-1], MANY) for _ in range(rows)]


# --- the decision ---


@given(
    st.lists(st.tuples(st.floats(1, 500), st.floats(1e-4, 1)), min_size=1, max_size=9),
    st.none() | st.floats(1e-4, 1),
)
def test_the_choice_is_the_best_that_fits(
    rounds: list[tuple[float, float]], latency: float | None
) -> None:
    ks = range(len(rounds))
    tokens, seconds = [t for t, _ in rounds], [s for _, s in rounds]
    choice = choose(ks, tokens, seconds, latency)
    assert (choice.tokens, choice.seconds) == rounds[choice.k]
    fitting = [k for k in ks if latency is None or seconds[k] <= latency]
    if fitting:
        assert choice.k in fitting
        assert choice.rate == max(tokens[k] / seconds[k] for k in fitting)
    else:
        assert choice.seconds == min(seconds)


def test_the_smaller_draft_wins_a_tie() -> None:
    assert choose((0, 2, 4), (1, 2, 3), (1, 2, 3), None).k == 0


# --- the governor ---


@pytest.mark.parametrize(
    ("rows", "chance", "best"), [(1, 0.8, {3, 4, 5}), (64, 0.8, {1, 2}), (64, 0.3, {0})]
)
def test_it_finds_the_best_draft(rows: int, chance: float, best: set[int]) -> None:
    governor, tracks = made(rows)
    launches = run(governor, tracks, chance, 300)
    chosen = [launch.next_k for launch in launches[100:]]
    assert sum(k in best for k in chosen) > 0.8 * len(chosen)


def test_a_window_holds_what_was_drafted_for_it() -> None:
    governor, tracks = made(4)
    tracks.append(governor.track(2, MANY))
    tracks.append(governor.track(0, MANY))
    before = [0] * 6
    for launch in run(governor, tracks, 0.7, 100):
        assert launch.rows == 6
        assert launch.k in KS
        assert launch.asked == tuple(min(waiting, launch.k) for waiting in before)
        assert launch.drafts == tuple(min(t.limit, launch.next_k) for t in tracks)
        before = list(launch.drafts)


def test_the_same_rounds_are_decided_alike() -> None:
    first, second = (run(*made(8), 0.6, 200) for _ in range(2))
    assert first == second


def test_a_decision_does_not_wait_for_rounds_in_flight() -> None:
    """Two rounds planned before any has settled: decided from what was known before both."""
    governor, tracks = made(2)
    run(governor, tracks, 0.7, 50)
    other, others = made(2)
    run(other, others, 0.7, 50)
    a = governor.plan(tracks, 0.0)
    b = other.plan(others, 0.0)
    assert a == b
    assert governor.plan(tracks, 0.0).next_k in KS


def test_a_first_draft_is_as_long_as_the_others() -> None:
    governor, tracks = made(1)
    run(governor, tracks, 0.8, 100)
    new = governor.track(8, MANY)
    assert governor.first(new) == new.waiting > 1
    short = governor.track(1, MANY)
    assert governor.first(short) == 1


def test_rows_without_a_draft_narrow_the_window_where_it_is_dear() -> None:
    """One row's eight drafts, when 63 others have joined, are not worth a window for all."""
    governor, tracks = made(1)
    run(governor, tracks, 0.9, 100)
    tracks += [governor.track(8, MANY) for _ in range(63)]
    launch = governor.plan(tracks, 0.0)
    assert launch.k < max(track.limit for track in tracks[:1])
    assert launch.asked[1:] == (0,) * 63


def test_a_round_takes_no_longer_than_asked() -> None:
    governor, tracks = made(1, latency=6e-3)
    free, others = made(1)
    kept = [launch.next_k for launch in run(governor, tracks, 0.9, 150)]
    loose = [launch.next_k for launch in run(free, others, 0.9, 150)]
    assert max(kept[5:]) == 2  # 4.0 ms and twice 0.85
    assert max(loose[5:]) > 4
    strict, tracks = made(1, latency=1e-3)  # nothing fits: the shortest
    assert {launch.next_k for launch in run(strict, tracks, 0.9, 400)[2:]} == {0}
    assert "a round is to take 1.0 ms at most" in strict.describe()


def test_there_may_be_no_draft_for_many_rows() -> None:
    costs = table(H200, KS, SIZES)
    costs = CostTable(costs.points, KS, most=lambda rows: 8 if rows <= 8 else 0)
    governor = Governor(costs)
    tracks = [governor.track(8, MANY) for _ in range(8)]
    assert run(governor, tracks, 0.9, 50)[-1].next_k > 2
    tracks += [governor.track(8, MANY) for _ in range(8)]
    launches = run(governor, tracks, 0.9, 500)
    assert {(launch.k, launch.next_k) for launch in launches} == {(0, 0)}
    assert "no rounds with drafts at 16 rows" in governor.describe()


def test_without_drafts_there_is_nothing_to_decide() -> None:
    governor, tracks = made(3, ks=(0,))
    assert {(x.k, x.next_k) for x in run(governor, tracks, 0.5, 50)} == {(0, 0)}
    assert governor.describe() == "no drafts"
    assert governor.first(tracks[0]) == 0


# --- the pause ---


def test_nothing_is_drafted_for_requests_that_may_have_none() -> None:
    """Neither at first nor to try it: no draft of theirs would be tested."""
    governor, _ = made(1)
    tracks = [governor.track(0, MANY) for _ in range(4)]
    assert not any(launch.next_k for launch in run(governor, tracks, 0.9, 3000))
    tracks.append(governor.track(KS[-1], MANY))
    assert any(launch.next_k for launch in run(governor, tracks, 0.9, 3000))


def test_a_drafter_that_does_not_pay_is_paused_and_tried(caplog: pytest.LogCaptureFixture) -> None:
    governor, tracks = made(64)
    assert not governor.paused
    with caplog.at_level(logging.INFO):
        launches = run(governor, tracks, 0.2, 2000)
    assert governor.paused
    (line,) = [record.message for record in caplog.records]
    assert "drafter paused: at 64 rows a round of 1 draft takes 9.8 ms for 1." in line
    assert "plain 6.2 ms; next try in about" in line
    drafting = [i for i, launch in enumerate(launches) if launch.next_k]
    late = [i for i in drafting if i > 50]
    assert 3 < len(late) < 20
    # Few rows are tried, and only from them is anything learned.
    assert all(0 < sum(drafts > 0 for drafts in launches[i].drafts) <= 16 for i in late)
    plain = 2000 * H200.verify(64, 0)
    spent = sum(H200.verify(64, x.k) + H200.draft(64, x.next_k) for x in launches)
    tokens = sum(1 + 0.2 * (asked > 0) for x in launches for asked in x.asked) / (64 * 2000)
    assert spent / plain / tokens < 1.01


def test_a_try_takes_the_rows_that_are_soon_up_to_date() -> None:
    governor, tracks = made(64)
    for place, track in enumerate(tracks):
        track.behind = 1000 - 10 * place
    tried = [launch for launch in run(governor, tracks, 0.2, 1500)[50:] if launch.next_k]
    assert tried
    assert all(not any(launch.drafts[:48]) and launch.drafts[-1] for launch in tried)


def test_it_resumes_when_drafting_pays_again(caplog: pytest.LogCaptureFixture) -> None:
    governor, tracks = made(64)
    run(governor, tracks, 0.2, 400)
    assert governor.paused
    with caplog.at_level(logging.INFO):
        launches = run(governor, tracks, 0.9, 1500)
    first = next(i for i in range(1500) if all(launches[i].drafts))
    assert first < 900
    assert not governor.paused
    assert "drafting: at 64 rows" in caplog.records[-1].message
    assert " times plain" in governor.describe()
    assert launches[-1].next_k > 1


def test_fewer_rows_resume_at_once() -> None:
    """What was learned at 64 rows holds at one, where drafting is cheap: nothing to be tried."""
    governor, tracks = made(64)
    run(governor, tracks, 0.45, 400)
    assert governor.paused
    assert max(launch.next_k for launch in run(governor, tracks[:1], 0.45, 12)) > 0


def test_bringing_it_up_to_date_is_weighed() -> None:
    """The drafter would have to be shown long texts first: that must have been worth it."""
    waits = []
    for behind in (0, 20_000):
        governor, tracks = made(32)
        run(governor, tracks, 0.2, 100)
        assert governor.paused
        few = [governor.track(8, MANY) for _ in range(4)]
        for track in few:
            track.behind, track.place = behind, 16  # known to go better than the others
        launches = run(governor, few, 0.6, 60)
        waits.append(next((i for i, launch in enumerate(launches) if all(launch.drafts)), 60))
    assert waits[0] < 10 < waits[1]


def test_a_drafter_that_always_observes_makes_plain_rounds_dearer() -> None:
    """Its cost is there with K = 0 too, so drafting has less to make up for."""
    chosen = []
    for observe in (0.0, 3e-3):
        device = Device(H200.verify, H200.draft, observe=observe)
        governor = Governor(table(device, KS, SIZES))
        tracks = [governor.track(8, MANY) for _ in range(64)]
        launches = run(governor, tracks, 0.6, 200, Device(H200.verify, lambda rows, k: 0.0))
        chosen.append(sum(launch.next_k > 0 for launch in launches[100:]))
    assert chosen[0] < 20
    assert chosen[1] > 80


def test_two_choices_as_good_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    governor, tracks = made(64)
    with caplog.at_level(logging.INFO):
        for turn in range(20):
            run(governor, tracks, 0.3 if turn % 2 else 0.9, 60, seed=turn)
    assert len(caplog.records) <= 20 * 60 / 200 + 1


def test_it_says_what_it_does() -> None:
    governor, tracks = made(1)
    assert governor.describe() == "no round yet"
    run(governor, tracks, 0.8, 100)
    words = governor.describe()
    assert words.startswith("drafting: at 1 row a round of ")
    assert not math.isnan(float(words.split("; ")[1].split()[0]))


@pytest.mark.parametrize(("chance", "best"), [(0.0, 0), (1.0, 8)])
def test_the_ends_of_what_can_be(chance: float, best: int) -> None:
    governor = Governor(table(CPU, KS, (1, 2, 4)))
    tracks = [governor.track(8, MANY) for _ in range(2)]
    launches = run(governor, tracks, chance, 300, CPU)
    assert launches[-1].next_k == best
    for track in tracks:
        track.remaining = 1  # the last token of a text has no draft
    for launch in run(governor, tracks, chance, 3, CPU):
        assert launch.next_k == 0 or launch.k <= 8


def test_prompts_that_a_drafter_must_read_count_against_it() -> None:
    """Drafting is a few percent faster round by round; that it reads every prompt costs more."""

    def chosen(prompt: int) -> set[int]:
        costs = table(H200, (0, 1), (16,))
        plain = costs.rounds(16)[0]
        chance = costs.rounds(16)[1] / plain - 1 + 0.03
        governor = Governor(costs)
        played = play(Traffic(16, lambda *_: constant(chance), 500, prompt=prompt), H200, governor)
        return set(played.chosen[250:])

    assert chosen(0) == {1}
    assert chosen(4000) == {0}


def test_a_try_that_is_put_off_loses_no_round() -> None:
    """The drafter has too much to see first: it is tried as often as if it had been ready."""

    def tried(put_off: int) -> int:
        governor = Governor(table(H200, (0, 2), (1,)))
        track, drafted, left = governor.track(2, 10**9), 0, put_off
        for _ in range(3000):
            launch = governor.plan([track], 0.0)
            tested = min(launch.k, 1)  # and does not stand
            governor.settled([track], launch, Report([1], [launch.k], [0], [0], [tested], [0]))
            if launch.next_k and governor._trials.left and left:
                launch, left = governor.put_off([track], launch), left - 1
                assert launch.next_k == track.waiting == 0
                assert launch.drafts == (0,)
            drafted += launch.next_k > 0
            if governor._trials.vain:
                break
        assert not left
        return drafted

    assert tried(5) == tried(0) > 0


def test_a_prompt_costs_ever_less_while_its_text_goes_on() -> None:
    governor = Governor(table(H200, (0, 2), (1,)))
    track = governor.track(2, 10**9)
    governor.fed(100_000)
    governor.first(track)
    report = Report([3], [2], [0], [2], [2], [0])
    shares = []
    for _ in range(20000):
        launch = governor.plan([track], 0.0)
        governor.settled([track], launch, report)
        shares.append(governor._beside.reading)
    assert shares[0] > 15 * max(shares[10_000:]) > 0


def test_texts_that_leave_are_counted_whatever_they_leave_for() -> None:
    """Ended, given up, or preempted and read again: the drafter has read for each."""
    governor = Governor(table(H200, (0, 2), (4,)))

    def joins() -> Track:
        track = governor.track(2, 10**9)
        governor.fed(100)
        governor.first(track)
        return track

    tracks = [joins() for _ in range(4)]
    run(governor, tracks, 0.5, 50)
    one = governor._beside.reading
    tracks[:3] = [joins() for _ in range(3)]
    joins()  # and is given up before its first round
    governor.plan(tracks, 0.0)
    assert governor._beside.reading == pytest.approx(5 * one)  # four have left, not none
