"""A run's record: what is written is read again, and a bad line costs nothing but itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from paceline.lab.bench_json import Malformed
from paceline.lab.bench_record import (
    RECORDS,
    Contestant,
    Load,
    Measurement,
    Opening,
    Pass,
    Recorder,
    RoundCounts,
    Sampling,
    SourceCounts,
    TimeSpent,
    from_line,
    read_lines,
    read_records,
    to_line,
)
from paceline.lab.bench_result import (
    Comparison,
    Figures,
    Interval,
    Parting,
    Percentiles,
    Position,
    Source,
    Summary,
    TimeShares,
    read_summary,
    write_summary,
)

CONTESTANT = Contestant(
    "paceline:k=4", "paceline", "paceline", model="mini-target", drafter="model", k=4,
    rule="match", adaptive=False, options={"dtype": "float32"},
)  # fmt: skip
MEASUREMENT = Measurement(
    contestant=CONTESTANT,
    item="q1",
    category="writing",
    turn=1,
    load=Load("poisson", rate=2.0),
    repeat=0,
    pass_id="p1",
    sampling=Sampling(temperature=0.8, seed=3, max_tokens=9, stop=("\n\n", "é\u2028")),
    due=0.25,
    at=0.26,
    prompt_tokens=7,
    new_tokens=3,
    ttft=0.1,
    wall=0.5,
    event_times=(0.1, 0.5),
    event_tokens=(1, 2),
    rounds=RoundCounts(2, 8, 5, 1, (2, 1), (1, 0), {"model": SourceCounts(8, 5, 1)}),
    spent=TimeSpent(0.1, 0.1, 0.2, 0.15, 0.05),
    text_hash="0" * 16,
    text="a\u2028b\u0085\n",
    token_ids=(1, 2, 3),
    finish="length",
)
PASS = Pass("paceline:k=4", Load(concurrency=1), 0, "p1", 2, 1.5, rss=10)
OPENING = Opening(CONTESTANT, 2.0, {"torch": "2"}, {"threads": "1"})


@pytest.mark.parametrize("record", [MEASUREMENT, PASS, OPENING])
def test_a_line_is_read_as_it_was_written(record: Measurement | Pass | Opening) -> None:
    line = to_line(record)
    assert "\n" not in line
    assert from_line(line) == record


def test_a_run_is_read_with_separators_inside_texts(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    for record in (OPENING, MEASUREMENT, PASS):
        recorder.write(record)
    recorder.close()
    records = read_records(tmp_path)
    assert records.openings == [OPENING]
    assert records.measurements == [MEASUREMENT]
    assert records.passes == [PASS]
    assert not records.problems


def test_every_bad_line_is_told_by_its_number_and_the_others_stand() -> None:
    good = to_line(MEASUREMENT)
    value = json.loads(good)
    without = {key: item for key, item in value.items() if key != "item"}
    lines = [
        good,
        good[: len(good) // 2],
        "[]",
        json.dumps(value | {"schema": 2}),
        json.dumps(value | {"kind": "poem"}),
        json.dumps(without),
        json.dumps(value | {"turn": "1"}),
        json.dumps(value | {"load": {"kind": "tidal"}}),
        json.dumps(value | {"event_times": [0.1, None]}),
        json.dumps(value | {"field_of_a_later_version": 1}),
        "",
    ]
    records = read_lines(lines)
    assert records.measurements == [MEASUREMENT, MEASUREMENT]
    told = {int(p.where.rsplit(" ", 1)[1]): p.what for p in records.problems}
    assert set(told) == set(range(2, 10))
    assert "schema 2" in told[4]
    assert "poem" in told[5]
    assert "item is missing" in told[6]
    assert "turn must be int" in told[7]
    assert "load.kind" in told[8]
    assert "event_times" in told[9]


def test_a_line_cut_off_by_a_kill_is_told_and_the_next_one_is_whole(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.write(MEASUREMENT)
    recorder.close()
    file = tmp_path / RECORDS
    file.write_bytes(file.read_bytes() + to_line(PASS).encode()[:40])
    recorder = Recorder(tmp_path)
    recorder.write(PASS)
    recorder.close()
    records = read_records(tmp_path)
    assert (records.measurements, records.passes) == ([MEASUREMENT], [PASS])
    assert [p.where for p in records.problems] == [f"{RECORDS}, line 2"]


def test_a_record_has_one_writer(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    with pytest.raises(BlockingIOError):
        Recorder(tmp_path)
    recorder.close()
    Recorder(tmp_path).close()


@pytest.mark.parametrize(
    ("times", "pieces", "new", "later", "tpot"),
    [
        ((0.1, 0.5), (1, 2), 3, 2, 0.2),
        ((1.0, 2.0), (4, 4), 8, 4, 0.25),  # a first round of four is no gift
        ((1.0,), (8,), 8, None, None),  # all in one piece: no time a token is known
        ((0.1, 0.5), (3, 2), 3, None, None),  # what came later was cut away
        ((0.1, 0.5), (), 3, 2, 0.2),  # an endpoint does not say what a piece holds
        ((0.1,), (), 3, None, None),
        ((0.1, 0.5), (), None, None, None),
        ((), (), 1, None, None),
    ],
)
def test_time_per_token_is_of_the_tokens_after_the_first_piece(
    times: tuple[float, ...],
    pieces: tuple[int, ...],
    new: int | None,
    later: int | None,
    tpot: float | None,
) -> None:
    told = replace(MEASUREMENT, event_times=times, event_tokens=pieces, new_tokens=new)
    read = from_line(to_line(told))
    assert isinstance(read, Measurement)
    assert read.later_tokens == later
    assert read.tpot == (None if tpot is None else pytest.approx(tpot))


def test_loads_have_the_name_that_asks_for_them() -> None:
    assert Load(concurrency=4).name == "closed:4"
    assert Load("poisson", rate=0.5).name == "poisson:0.5"
    assert Load("replay", speed=2.0).name == "replay:2"


def test_a_summary_is_read_as_it_was_written(tmp_path: Path) -> None:
    load = Load(concurrency=1)
    figures = Figures(
        "paceline:k=4", load, None, 2, 1, 30, 1.0, Interval(30.0, 20.0, 40.0), Interval(2.0),
        Interval(2.5), "paceline:plain", 15.0, 0.5, Percentiles(0.1, 0.2, 0.3, 2), None,
        2.5, 0.7, 0.6, (Position(1, 10, 8, 0.8, 0.8),), (Source("model", 20, 10, 8),),
        TimeShares(0.1, 0.2, 0.5, 0.1, 0.1, 0.2), 0.5, "RAPL", 10, None,
    )  # fmt: skip
    comparison = Comparison(
        "paceline:k=4", "paceline:plain", True, 2, 1, 1.0, 0, (Parting("q1", 0, 3, 2, "a", "b"),)
    )
    summary = Summary({"seed": "0"}, {}, {"cores": "2"}, (OPENING,), (figures,), (comparison,),
                      planned=3, measured=2, complete=False, verdict=("One.", "Two."))  # fmt: skip
    write_summary(tmp_path, summary)
    assert read_summary(tmp_path) == summary


def test_a_summary_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(Malformed, match="schema"):
        read_summary(tmp_path)
