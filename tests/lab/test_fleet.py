"""The fleet's simulation: cases reckoned by hand, queueing theory, and what may never happen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_tools import machine

from paceline import ConfigError, CostPoint, Costs
from paceline.lab.fleet import Replica, draw_rounds, simulate
from paceline.lab.fleet_answer import Target, compare
from paceline.lab.fleet_traffic import Arrival, Lengths, parse, poisson, read
from paceline.lab.plan_acceptance import shifted
from paceline.lab.plan_model import Machine, Overhead, Traffic, constant, predict, rounds_for


def steady(seconds: float, text: float = 0.0, k: int = 0, draft: float = 0.0) -> Machine:
    """A round takes the same whatever runs in it; a text of 100 prompt tokens begins in `text`."""
    points = [CostPoint("verify", rows, n, 64, seconds) for rows in (1, 64) for n in {0, k}]
    if k:
        points += [CostPoint("draft", rows, k, 64, draft) for rows in (1, 64)]
    over = Overhead(text=text, prompt=100.0)
    return Machine(Costs(tuple(points), tuple(sorted({0, k}))), over, over)


def replica(made: Machine, slots: int = 4, **more: object) -> Replica:
    return Replica(made, (0,), (), slots, **more)  # type: ignore[arg-type]


def test_one_text_alone() -> None:
    """A prompt of half a second, then ten rounds of a tenth."""
    found = simulate(replica(steady(0.1, text=0.5)), 1, [Arrival(3.0, 100, 10)])
    (one,) = found.served
    assert one.ttft == pytest.approx(0.6)
    assert one.tpot == pytest.approx(0.1)
    assert one.end == pytest.approx(3.0 + 0.5 + 1.0)


def test_an_engine_that_chooses_k_works_at_its_own_pace() -> None:
    found = simulate(replica(steady(0.1, text=0.5), pace=1.2), 1, [Arrival(3.0, 100, 10)])
    assert found.served[0].ttft == pytest.approx(0.5 + 0.1 * 1.2)
    assert found.served[0].tpot == pytest.approx(0.1 * 1.2)
    assert (found.rounds, found.seconds) == (10, pytest.approx(3.0 + 0.5 + 1.2))
    assert found.read * found.seconds == pytest.approx(0.5)
    assert found.busy * found.seconds == pytest.approx(0.5 + 1.2)


def test_a_prompt_stops_the_others_and_rounds_are_shared() -> None:
    """The second comes in the first one's third round: it waits for its end, its prompt stops the
    first for 0.5 s, then both write."""
    arrivals = [Arrival(0.0, 100, 10), Arrival(0.75, 100, 10)]
    first, second = simulate(replica(steady(0.1, text=0.5)), 1, arrivals).served
    assert first.end == pytest.approx(0.5 + 1.0 + 0.5)
    assert first.tpot == pytest.approx((2.0 - 0.6) / 9)
    assert second.ttft == pytest.approx(0.8 + 0.5 + 0.1 - 0.75)
    assert second.end == pytest.approx(0.8 + 0.5 + 1.0)


def test_who_finds_no_slot_waits() -> None:
    arrivals = [Arrival(0.0, 1, 10), Arrival(0.0, 1, 10)]
    first, second = simulate(replica(steady(0.1), slots=1), 1, arrivals).served
    assert first.end == pytest.approx(1.0)
    assert second.ttft == pytest.approx(1.1)
    # With a second replica nobody waits.
    other = simulate(replica(steady(0.1), slots=1), 2, arrivals).served
    assert [each.end for each in other] == pytest.approx([1.0, 1.0])
    assert [each.replica for each in other] == [0, 1]


def test_who_finds_no_room_in_the_cache_waits() -> None:
    arrivals = [Arrival(0.0, 50, 50), Arrival(0.0, 50, 50)]
    found = simulate(replica(steady(0.1), positions=150), 1, arrivals)
    assert found.served[1].ttft == pytest.approx(5.1)


def test_long_prompts_are_read_in_chunks_between_rounds() -> None:
    """A text that runs is stopped for a chunk at a time, not for the whole prompt."""
    arrivals = [Arrival(0.0, 1, 100), Arrival(0.05, 401, 2)]
    made = steady(0.1, text=0.64)  # 401 tokens: 0.64 · 465 / 164
    whole = 0.64 * 465 / 164
    _, long = simulate(replica(made, chunk=100), 1, arrivals).served
    # Four chunks, with a round of the other after each, the last of which it is in.
    begin = 0.64 * 65 / 164 + 0.1  # the first one's own prompt of one token, and its round
    assert long.ttft == pytest.approx(begin + whole + 4 * 0.1 - 0.05)


def test_speculation_with_drafts_that_all_stand() -> None:
    made = steady(0.1, k=4, draft=0.02)
    fast = Replica(made, (0, 4), constant(1.0, 4), 4)
    (one,) = simulate(fast, 1, [Arrival(0.0, 1, 20)]).served
    assert one.end == pytest.approx(4 * 0.12)
    slow = Replica(made, (0, 4), constant(0.0, 4), 4)  # and where none does, it does not draft
    assert simulate(slow, 1, [Arrival(0.0, 1, 20)]).served[0].end == pytest.approx(2.0)


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_one_slot_is_the_queue_of_theory(load: float) -> None:
    """M/D/1: a mean wait of ρ / (2 μ (1 - ρ)); all texts take one second."""
    arrivals = poisson(load, 40_000.0, Lengths(1), Lengths(10), seed=5)
    found = simulate(replica(steady(0.1), slots=1), 1, arrivals)
    wait = sum(each.ttft - 0.1 for each in found.served) / len(arrivals)
    assert wait == pytest.approx(load / (2 * (1 - load)), rel=0.08)
    assert found.busy == pytest.approx(load, rel=0.03)


def test_a_closed_loop_in_the_fleet_is_the_models() -> None:
    """Many texts at once, all slots always full: the throughput that `predict` has."""
    made, law = machine(), constant(0.8, 4)
    arrivals = [Arrival(0.0, 100, 200)] * 400
    found = simulate(Replica(made, (4,), law, 16), 1, arrivals)
    rate = 400 * 200 / found.seconds
    assert rate == pytest.approx(predict(made, Traffic(100.0, 200.0), 16, 4, law).tok_s, rel=0.06)


def test_texts_that_differ_spread_their_times() -> None:
    made, law = machine(), constant(0.7, 4)
    arrivals = [Arrival(40.0 * i, 100, 200) for i in range(600)]  # each alone
    alike = simulate(Replica(made, (4,), law, 1), 1, arrivals)
    differ = simulate(Replica(made, (4,), law, 1, offsets=(-1.5, 0.0, 1.5)), 1, arrivals)
    assert differ.tpot(0.5) == pytest.approx(alike.tpot(0.5), rel=0.03)
    each = [simulate(Replica(made, (4,), shifted(law, off), 1), 1, arrivals).tpot(0.5)
            for off in (-1.5, 1.5)]  # fmt: skip
    assert differ.tpot(0.85) == pytest.approx(each[0], rel=0.04)
    assert differ.tpot(0.15) == pytest.approx(each[1], rel=0.04)


@pytest.mark.parametrize("alpha", [0.2, 0.9])
def test_rounds_that_are_drawn_have_the_mean_that_is_reckoned(alpha: float) -> None:
    random, law = np.random.default_rng(2), constant(alpha, 5)
    drawn = [draw_rounds(random, law, 5, 100) for _ in range(2000)]
    error = 4 * float(np.std(drawn)) / len(drawn) ** 0.5
    assert sum(drawn) / len(drawn) == pytest.approx(rounds_for(100, law, 5), abs=error + 0.05)


@given(
    st.lists(
        st.tuples(st.floats(0, 50), st.integers(1, 300), st.integers(1, 60)),
        min_size=1,
        max_size=30,
    ),
    st.integers(1, 3),
    st.integers(1, 4),
)
def test_everybody_is_served_once_and_in_time(
    told: list[tuple[float, int, int]], gpus: int, slots: int
) -> None:
    arrivals = sorted((Arrival(*each) for each in told), key=lambda a: a.at)
    fast = Replica(machine(), (0, 1, 4), constant(0.7, 8), slots, chunk=64)
    found = simulate(fast, gpus, arrivals, seed=1)
    assert len(found.served) == len(arrivals)
    for arrival, each in zip(arrivals, found.served, strict=True):
        assert each.ttft > 0
        assert each.end >= arrival.at + each.ttft - 1e-9
        assert each.tpot is None or each.tpot > 0
    assert 0 < found.busy <= 1 + 1e-9
    assert found == simulate(fast, gpus, arrivals, seed=1)


def test_fewer_gpus_with_speculation_and_the_price() -> None:
    made = machine()
    arrivals = poisson(40.0, 60.0, Lengths(100), Lengths(200, 0.5), seed=1)
    fast = Replica(made, (0, 1, 2, 4), constant(0.85, 8), 16)
    plain, speculative = compare(fast, arrivals, 2, Target(ttft=0.5), 3.6, 60.0)
    assert plain.needed is not None
    assert speculative.needed is not None
    assert speculative.needed < plain.needed
    assert not plain.kept
    assert speculative.per_million is not None
    assert plain.per_million is not None
    assert speculative.per_million < plain.per_million
    tokens = sum(a.new for a in arrivals)
    # A GPU costs a thousandth of the money a second, for the minute or a little longer.
    assert plain.per_million == pytest.approx(plain.needed * 60 * 1e-3 / tokens * 1e6, rel=0.2)
    # One GPU fewer would not do: that is what "needed" says.
    less = simulate(fast, speculative.needed - 1, arrivals)
    assert not Target(ttft=0.5).kept(less)


def test_a_target_that_nothing_keeps() -> None:
    arrivals = [Arrival(0.0, 1, 10)]
    plain, _ = compare(replica(steady(0.1)), arrivals, 1, Target(tpot=0.01), None, 1.0)
    assert plain.needed is None
    assert plain.per_million is None


# --- traffic ------------------------------------------------------------------------------------


def test_poisson_arrivals_have_their_rate_and_lengths() -> None:
    found = poisson(5.0, 2000.0, Lengths(300, 0.8), Lengths(100), seed=3)
    assert len(found) == pytest.approx(10_000, rel=0.05)
    assert sum(a.prompt for a in found) / len(found) == pytest.approx(300, rel=0.05)
    assert {a.new for a in found} == {100}
    gaps = np.diff([a.at for a in found])
    assert (gaps >= 0).all()
    assert float(np.std(gaps) / np.mean(gaps)) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("text", ["0", "x", "10:y", "-5", "10:11", "", "nan", "inf"])
def test_lengths_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="MEAN or MEAN:SPREAD"):
        Lengths.parse(text, "--new-tokens")


def test_a_file_of_requests_in_any_order(tmp_path: Path) -> None:
    file = tmp_path / "day.jsonl"
    file.write_text(
        '{"at": 2.5, "prompt_tokens": 3, "new_tokens": 4}\n\n'
        '{"at": 0, "prompt_tokens": 1, "output_tokens": 2, "user": "x"}\n'
    )
    assert read(file) == [Arrival(0.0, 1, 2), Arrival(2.5, 3, 4)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not JSON"),
        ("[]", "not an object"),
        ('{"at": -1, "prompt_tokens": 1, "new_tokens": 1}', "at"),
        ('{"at": true, "prompt_tokens": 1, "new_tokens": 1}', "at"),
        ('{"at": 1, "prompt_tokens": 0, "new_tokens": 1}', "prompt_tokens"),
        ('{"at": 1, "prompt_tokens": 1}', "new_tokens"),
        ('{"at": 1, "prompt_tokens": 1, "new_tokens": 1.5}', "new_tokens"),
    ],
)
def test_one_bad_line_is_named(line: str, words: str) -> None:
    good = '{"at": 1, "prompt_tokens": 1, "new_tokens": 1}'
    with pytest.raises(ConfigError, match=f"day, line 2: .*{words}"):
        parse([good, line, good], "day")
