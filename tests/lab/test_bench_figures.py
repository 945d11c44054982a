"""Figures against numbers that were worked out by hand; texts beside texts; the verdict."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from lab.bench_tools import ALONE, contestant, measurement, write_large_run, write_run

from paceline.lab.bench_compare import compare
from paceline.lab.bench_figures import summarize
from paceline.lab.bench_record import (
    RECORDS,
    Load,
    Measurement,
    Opening,
    Pass,
    RoundCounts,
    Sampling,
    SourceCounts,
    TimeSpent,
)
from paceline.lab.bench_result import Figures, Summary
from paceline.lab.bench_statistics import percentiles, ratio_of_rates, ratio_of_sums

PLAIN, FAST, BLOCK = contestant("plain"), contestant("fast"), contestant("block", rule="block")

CROWD = Load(concurrency=4)


def of(summary: Summary, name: str, category: str | None = None) -> Figures:
    (found,) = (
        f for f in summary.figures if f.contestant == name and f.category == category
    )  # fmt: skip
    return found


def test_rates_and_speedups_are_of_the_same_prompts(tmp_path: Path) -> None:
    measured = [
        measurement(PLAIN, "a", tokens=10, seconds=2.0, first=0.2),
        measurement(PLAIN, "b", tokens=20, seconds=4.0, first=0.2),
        measurement(PLAIN, "c", tokens=90, seconds=1.0, first=0.1),  # the other one failed on it
        measurement(FAST, "a", tokens=10, seconds=1.0, first=0.2),
        measurement(FAST, "b", tokens=20, seconds=2.0, first=0.2),
        replace(measurement(FAST, "c"), error="gone", wall=None, new_tokens=None),
    ]
    summary = summarize(write_run(tmp_path, [PLAIN, FAST], measured, texts=3))
    plain, fast = of(summary, "plain"), of(summary, "fast")
    assert plain.tok_s is not None
    assert plain.tok_s.value == pytest.approx(120 / 7)
    assert fast.tok_s is not None
    assert fast.tok_s.value == pytest.approx(10.0)
    assert fast.speedup is not None
    assert fast.speedup.value == pytest.approx(2.0)
    assert fast.writing_speedup is not None
    assert fast.writing_speedup.value == pytest.approx((1.8 + 3.8) / (0.8 + 1.8))
    assert (fast.over, fast.requests, fast.failed) == ("plain", 3, 1)
    assert (plain.speedup, plain.over) == (None, None)
    assert (summary.planned, summary.measured, summary.complete) == (6, 5, False)
    assert [p.what for p in summary.problems] == ["gone"]


def test_at_several_at_a_time_the_passs_length_counts(tmp_path: Path) -> None:
    load = Load(concurrency=2)
    measured = [
        measurement(PLAIN, n, tokens=11, seconds=2.0, load=load, pass_id="p", at=at)
        for n, at in (("a", 0.0), ("b", 0.0), ("c", 2.0))
    ]
    whole = Pass("plain", load, 0, "p", 3, 4.0)
    folder = write_run(tmp_path, [PLAIN], measured, passes=[whole], loads=[load], texts=3)
    figures = of(summarize(folder), "plain")
    assert figures.tok_s is not None
    assert figures.tok_s.value == pytest.approx(33 / 4)
    assert figures.seconds == pytest.approx(4.0)
    # A pass that was killed has no line of its own: its last answer is its end.
    cut = write_run(tmp_path / "cut", [PLAIN], measured[:2], loads=[load], texts=3)
    figures = of(summarize(cut), "plain")
    assert figures.tok_s is not None
    assert figures.tok_s.value == pytest.approx(22 / 2)


def test_the_first_rounds_tokens_are_no_gift_to_speculation(tmp_path: Path) -> None:
    """Eight tokens at a second a round: one a round, and four."""
    fast = {"tokens": 8, "seconds": 2.0, "first": 1.0, "event_times": (1.0, 2.0)}
    whole = {"tokens": 8, "seconds": 1.0, "first": 1.0, "event_times": (1.0,)}
    measured = [
        measurement(PLAIN, "a", tokens=8, seconds=8.0, first=1.0),
        measurement(PLAIN, "b", tokens=8, seconds=40.0, first=1.0),
        measurement(FAST, "a", event_tokens=(4, 4), **fast),  # type: ignore[arg-type]
        # In one piece: no rate of writing, and none to hold the plain text's against.
        measurement(FAST, "b", event_tokens=(8,), **whole),  # type: ignore[arg-type]
    ]
    f = of(summarize(write_run(tmp_path, [PLAIN, FAST], measured, texts=2)), "fast")
    assert f.writing_speedup is not None
    assert f.writing_speedup.value == pytest.approx(4.0)
    assert f.speedup is not None
    assert f.speedup.value == pytest.approx(48 / 3)
    assert f.tpot is not None
    assert (f.tpot.p50, f.tpot.count) == pytest.approx((0.25, 1))


def crowded(
    names: str, seconds: float, pass_id: str, error: str | None = None
) -> list[Measurement]:
    """Texts of ten tokens of one pass under closed:4; one that failed has written none."""
    tokens = None if error else 10
    return [
        replace(
            measurement(PLAIN, name, seconds=seconds, load=CROWD, pass_id=pass_id),
            new_tokens=tokens, error=error, category="late" if name in "klmnopqrst" else "soon",
        )
        for name in names
    ]  # fmt: skip


def rates(folder: Path, measured: list[Measurement], *passes: Pass) -> tuple[float, float]:
    """Tokens a second and the seconds under them."""
    run = write_run(folder, [PLAIN], measured, passes=passes, loads=[CROWD], texts=20)
    figures = of(summarize(run), "plain")
    assert figures.tok_s is not None
    return figures.tok_s.value, figures.seconds


def test_texts_that_failed_beside_others_have_taken_their_time(tmp_path: Path) -> None:
    """Ten texts of 10 s and ten time-outs of 300 s, four at a time: 775 s in all."""
    good, bad = crowded("abcdefghij", 10.0, "p"), crowded("klmnopqrst", 300.0, "p", "no end")
    long = Pass("plain", CROWD, 0, "p", 20, 775.0)
    assert rates(tmp_path / "a", [*good, *bad], long) == pytest.approx((100 / 775, 775.0))
    summary = summarize(tmp_path / "a")
    assert of(summary, "plain", "soon").seconds == pytest.approx(25.0)
    assert of(summary, "plain", "late").seconds == pytest.approx(750.0)
    # They are asked again, and come: what they took the first time is no part of any text.
    again = crowded("klmnopqrst", 10.0, "q")
    short = Pass("plain", CROWD, 0, "q", 10, 25.0)
    all_ = [*good, *bad, *again]
    assert rates(tmp_path / "b", all_, long, short) == pytest.approx((200 / 50, 50.0))


def test_a_pass_that_is_partly_measured_again_counts_for_what_is_left_of_it(
    tmp_path: Path,
) -> None:
    first = [*crowded("abcdefghij", 10.0, "p"), *crowded("klmnopqrst", 300.0, "p", "no end")]
    # Half of them fail once more; then a pass of one text, that is cut off, and done again.
    second = [*crowded("klmno", 10.0, "q"), *crowded("pqrst", 300.0, "q", "no end")]
    passes = [
        Pass("plain", CROWD, 0, "p", 20, 775.0),
        Pass("plain", CROWD, 0, "q", 10, 400.0),
    ]
    found = rates(tmp_path / "a", [*first, *second], *passes)
    assert found == pytest.approx((150 / 425, 425.0))
    third = [*crowded("p", 8.0, "r", "gone"), *crowded("pqrst", 10.0, "s")]
    passes.append(Pass("plain", CROWD, 0, "s", 5, 20.0))
    found = rates(tmp_path / "b", [*first, *second, *third], *passes)
    half = 400 * 50 / (50 + 1500)
    assert found == pytest.approx((200 / (25 + half + 20), 25 + half + 20))


def test_alone_a_text_that_failed_takes_no_others_time(tmp_path: Path) -> None:
    measured = [
        measurement(PLAIN, "a", tokens=10, seconds=2.0),
        replace(measurement(PLAIN, "b", seconds=300.0), new_tokens=4, error="no end"),
    ]
    figures = of(summarize(write_run(tmp_path, [PLAIN], measured, texts=2)), "plain")
    assert figures.tok_s is not None
    assert (figures.tok_s.value, figures.seconds) == pytest.approx((5.0, 2.0))


def test_acceptance_is_summed_before_it_is_divided(tmp_path: Path) -> None:
    rounds = [
        RoundCounts(4, 8, 6, 3, (4, 2), (2, 1), {"model": SourceCounts(8, 6, 3)}),
        RoundCounts(2, 2, 2, 2, (2,), (2,), {"ngram": SourceCounts(2, 2, 2)}),
    ]
    spent = TimeSpent(prefill=0.1, draft=0.2, verify=0.3, waste=0.25, host=0.2)
    measured = [
        measurement(FAST, "a", tokens=7, rounds=rounds[0], spent=spent, category="x"),
        measurement(FAST, "b", tokens=5, rounds=rounds[1], spent=spent, category="y"),
    ]
    summary = summarize(write_run(tmp_path, [FAST], measured, texts=2))
    f = of(summary, "fast")
    assert f.acceptance == pytest.approx(5 / 8)
    assert f.draft_efficiency == pytest.approx(5 / 10)
    assert f.tokens_per_round == pytest.approx(12 / 6)
    assert [(p.evaluated, p.accepted) for p in f.positions] == [(6, 4), (2, 1)]
    assert [p.joint for p in f.positions] == pytest.approx([4 / 6, 4 / 6 * 1 / 2])
    assert [(s.name, s.accepted) for s in f.sources] == [("model", 3), ("ngram", 2)]
    assert f.time is not None
    assert (f.time.prefill, f.time.waste) == pytest.approx((0.1, 0.25))
    assert f.time.other == pytest.approx(0.2)
    assert of(summary, "fast", "y").acceptance == pytest.approx(1.0)


def test_energy_and_memory_are_there_where_they_are_told(tmp_path: Path) -> None:
    measured = [measurement(PLAIN, n, tokens=10) for n in ("a", "b")]
    passes = [
        Pass("plain", ALONE, 0, "plain a", 1, 1.0, joules=5.0, joules_from="RAPL", rss=100),
        Pass("plain", ALONE, 0, "plain b", 1, 1.0, rss=200),
    ]
    f = of(summarize(write_run(tmp_path, [PLAIN], measured, passes=passes, texts=2)), "plain")
    assert (f.joules_per_token, f.joules_from, f.rss, f.device_bytes) == (0.5, "RAPL", 200, None)


def test_the_last_measurement_of_a_text_counts(tmp_path: Path) -> None:
    failed = replace(measurement(PLAIN, "a"), error="no", wall=None)
    folder = write_run(tmp_path, [PLAIN], [failed, measurement(PLAIN, "a")])
    with (folder / RECORDS).open("a") as file:
        file.write('{"schema": 1, "kind": "measu')
    summary = summarize(folder)
    assert summary.complete
    assert [p.where for p in summary.problems] == [f"{RECORDS}, line 3"]


def test_what_could_not_be_opened_is_told(tmp_path: Path) -> None:
    folder = write_run(
        tmp_path, [PLAIN], [measurement(PLAIN, "a")], openings=[Opening(PLAIN, error="no memory")],
        skipped=["w.jsonl, line 2: not JSON"],
    )  # fmt: skip
    summary = summarize(folder)
    assert not summary.complete
    assert [p.what for p in summary.problems] == ["w.jsonl, line 2: not JSON", "no memory"]


# --- texts -----------------------------------------------------------------------------------


def test_texts_that_part_are_shown_where_they_do() -> None:
    measured = [
        measurement(PLAIN, "a", text="same"),
        measurement(FAST, "a", text="same"),
        measurement(PLAIN, "b", text="the plain one"),
        measurement(FAST, "b", text="the other one"),
    ]
    (c,) = compare([PLAIN, FAST], measured)
    assert (c.contestant, c.other, c.binding, c.texts, c.same) == ("fast", "plain", True, 2, 1)
    (p,) = c.partings
    assert (p.item, p.character, p.token, p.text, p.other) == ("b", 4, 4, "other one", "plain one")


def test_a_turn_behind_a_parting_is_not_compared() -> None:
    pairs = [("x", 0), ("y", 1)]
    measured = [measurement(PLAIN, "a", text="one", turn=n) for _, n in pairs]
    measured += [measurement(FAST, "a", text=t, turn=n) for t, n in pairs]
    (c,) = compare([PLAIN, FAST], measured)
    assert (c.texts, c.same) == (1, 0)


@pytest.mark.parametrize(
    ("who", "temperature", "binding"),
    [(FAST, 0.0, True), (FAST, 0.8, True), (BLOCK, 0.0, True), (BLOCK, 0.8, False)],
)
def test_the_same_text_is_asked_of_who_promises_it(
    who: object, temperature: float, binding: bool
) -> None:
    assert isinstance(who, type(FAST))
    sampling = Sampling(temperature=temperature, seed=1)
    measured = [measurement(c, "a", sampling=sampling) for c in (PLAIN, who)]
    (c,) = compare([PLAIN, who], measured)
    assert c.binding is binding


def test_other_engines_are_compared_for_information() -> None:
    other = contestant("t plain", engine="transformers", family="t")
    assisted = contestant("assisted", engine="transformers", family="t")
    measured = [measurement(c, "a") for c in (PLAIN, other)]
    measured.append(measurement(assisted, "a", text="another", prompt_tokens=6, tokens=22))
    made = {(c.contestant, c.other): c for c in compare([PLAIN, other, assisted], measured)}
    assert set(made) == {("t plain", "plain"), ("assisted", "t plain")}
    assert not made["t plain", "plain"].binding
    apart = made["assisted", "t plain"]
    assert (apart.binding, apart.unlike, apart.lengths) == (True, 1, 2.0)


# --- statistics ------------------------------------------------------------------------------


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    draw, covered, runs = random.Random(0), 0, 200
    for _ in range(runs):
        tokens = [draw.uniform(20, 200) for _ in range(30)]
        plain = [t / 100 * draw.uniform(0.9, 1.1) for t in tokens]
        fast = [t / 200 * draw.uniform(0.7, 1.3) for t in tokens]
        found = ratio_of_rates(tokens, fast, tokens, plain)
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 2.0 <= found.high
    assert 0.86 <= covered / runs <= 0.99


def test_few_prompts_have_no_interval_and_nothing_has_no_value() -> None:
    few = ratio_of_sums([1.0, 2.0], [1.0, 1.0])
    assert few is not None
    assert (few.value, few.low, few.high) == (1.5, None, None)
    assert ratio_of_sums([], []) is None
    assert ratio_of_rates([0.0], [1.0], [1.0], [1.0]) is None
    assert percentiles([]) is None
    hundred = percentiles([float(n) for n in range(101)])
    assert hundred is not None
    assert (hundred.p50, hundred.p95, hundred.p99) == (50, 95, 99)


# --- verdict ---------------------------------------------------------------------------------


def verdict_of(folder: Path, gain: float, spread: float, count: int = 12) -> tuple[str, ...]:
    draw, measured = random.Random(0), list[Measurement]()
    for n in range(count):
        seconds = draw.uniform(1, 2)
        measured.append(measurement(PLAIN, str(n), seconds=seconds))
        fast = seconds / gain * draw.uniform(1 - spread, 1 + spread)
        measured.append(measurement(FAST, str(n), seconds=fast, first=0.01))
    return summarize(write_run(folder, [PLAIN, FAST], measured, texts=count)).verdict


def test_the_verdict_says_what_the_interval_allows(tmp_path: Path) -> None:
    pays, sound = verdict_of(tmp_path / "a", 2.0, 0.1)
    assert pays.startswith("Speculation pays: with one text at a time fast is fastest")
    assert (
        sound == "All 12 speculative texts are the plain decoding's own; everything was measured."
    )
    assert verdict_of(tmp_path / "b", 0.7, 0.1)[0].startswith("Speculation does not pay")
    assert verdict_of(tmp_path / "c", 1.0, 0.3)[0].startswith("Whether speculation pays is not")
    assert verdict_of(tmp_path / "d", 2.0, 0.1, 3)[0].startswith("Whether speculation pays is not")


def test_a_large_run_has_every_kind_of_figure(tmp_path: Path) -> None:
    summary = summarize(write_large_run(tmp_path))
    loads = {f.load.name for f in summary.figures}
    assert loads == {"closed:1", "closed:4"}
    assert {f.category for f in summary.figures} == {None, "writing", "coding", "math"}
    assert not summary.complete
