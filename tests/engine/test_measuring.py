"""Measuring rounds on made-up texts: what is timed, what is kept, and what is left behind."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.engine.tools import Pair, prompt

from paceline import Engine, SamplingParams
from paceline.engine import measuring
from paceline.engine.measuring import Rig, cost_table, keep, measure, measure_catch_up, powers
from paceline.engine.round import Machine

KS = (0, 1, 2, 4)


def rig(engine: Engine, **options: object) -> Rig:
    loop = engine._loop
    sizes = powers(loop.machine.slots.limits.slots - 1)
    readings = loop.feeder.readings
    return Rig(loop.machine, loop.rounds, readings, KS, sizes, False, **options)  # type: ignore[arg-type]


def state(machine: Machine) -> dict[str, torch.Tensor]:
    """All of the slots, but the tables of drafts that nobody takes."""
    return {
        name: value.clone()
        for name, value in vars(machine.slots).items()
        if isinstance(value, torch.Tensor) and name not in ("draft_tokens", "draft_source")
    }


@pytest.mark.parametrize("often", [False, True])
def test_sizes_are_measured_in_rounds_until_the_time_is_over(
    often: bool, opened: Callable[..., Engine], pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a slow moment of the machine is a few samples of each size, not all of one."""
    made = rig(opened(draft=pair.other, k=4, slots=3))
    given: dict[tuple[int, int, int], list[float]] = {}

    def sample(_: Rig, rows: int, k: int, context: int) -> list[tuple[float, float]]:
        seen = given.setdefault((rows, k, context), [])
        seen.append(1.0 + len(seen) % 3)  # 1, 2, 3, 1, …
        clock[0] += 1.0
        return [(seen[-1], 2 * seen[-1])]

    clock = [0.0]
    monkeypatch.setattr(measuring, "_time", sample)
    monkeypatch.setattr(measuring, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    points = measure(made, 60.0, often=often)
    counts = {len(seen) for seen in given.values()}
    assert len(given) == 18
    assert counts == ({3, 4} if often else {1})
    for point in points:
        middle = statistics.median(given[point.rows, point.k, point.context])
        assert point.seconds == middle * (1 if point.kind == "verify" else 2)


def test_context_is_of_all_rows_of_a_recorded_size(
    opened: Callable[..., Engine], pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three texts run as four, and the fourth has none."""
    made = replace(rig(opened(draft=pair.other, k=4, slots=3)), sizes=(1, 2, 4), rounded=True)
    monkeypatch.setattr(measuring, "_time", lambda *_: [(1.0, 1.0)])
    found = {(point.rows, point.context) for point in measure(made, 0.0)}
    whole = {context for rows, context in found if rows == 1}
    assert {context for rows, context in found if rows == 4} == {c * 3 // 4 for c in whole}


def test_numbers_of_rows() -> None:
    assert powers(1) == (1,)
    assert powers(4) == (1, 2, 4)
    assert powers(6) == (1, 2, 4, 6)


def test_every_cell_is_measured_and_the_slots_are_as_before(
    opened: Callable[..., Engine], pair: Pair
) -> None:
    engine = opened(draft=pair.other, k=4, slots=3)
    machine = engine._loop.machine
    before, seen = state(machine), []
    points = measure(rig(engine), 60.0, lambda done, count: seen.append((done, count)))
    for name, value in state(machine).items():
        assert torch.equal(value, before[name]), name
    cells = {(p.kind, p.rows, p.k) for p in points}
    assert cells == {("verify", n, k) for n in (1, 2, 3) for k in KS} | {
        ("draft", n, k) for n in (1, 2, 3) for k in KS[1:]
    }
    assert {p.context for p in points} == {64, 182}
    assert all(p.seconds > 0 for p in points)
    assert seen[-1] == (3 * 4 + 3 * 2, 3 * 4 + 3 * 2)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert sum(measure_catch_up(machine, engine._loop.feeder.readings)) > 0


def test_a_text_is_the_same_after_measuring(opened: Callable[..., Engine], pair: Pair) -> None:
    texts = []
    for measured in (False, True):
        engine = opened(draft=pair.other, k=4, slots=2)
        if measured:
            measure(rig(engine), 60.0)
            measure_catch_up(engine._loop.machine, engine._loop.feeder.readings)
        params = SamplingParams(max_tokens=40, temperature=0.8, seed=3)
        done = engine.generate([prompt(1, 70), prompt(2), prompt(3)], params)
        texts.append([(one.token_ids, one.stats.drafted) for one in done])
    assert texts[0] == texts[1]


def test_without_time_the_corners_are_measured(opened: Callable[..., Engine], pair: Pair) -> None:
    engine = opened(draft=pair.other, k=4, slots=4)
    points = measure(rig(engine), 0.0)
    assert {(p.rows, p.k) for p in points} == {(1, 0), (1, 4), (4, 0), (4, 4)}
    bounded = rig(engine, most=lambda rows: 4 if rows < 4 else 1)
    assert max(p.k for p in measure(bounded, 60.0) if p.rows == 4) == 1


def test_a_drafter_without_a_cache_is_never_behind(opened: Callable[..., Engine]) -> None:
    engine = opened(drafter="ngram", k=4, slots=1)
    assert measure_catch_up(engine._loop.machine, engine._loop.feeder.readings) == (0, 0)
    assert {p.kind for p in measure(rig(engine), 60.0)} == {"verify", "draft"}


def test_costs_are_measured_once_and_kept(
    opened: Callable[..., Engine],
    pair: Pair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path))
    engine = opened(draft=pair.other, k=4, slots=2)
    first = cost_table(rig(engine), {"models": "tiny"}, seconds=60.0)
    assert first.ks == KS

    def fails(*_: object) -> None:
        raise AssertionError("measured again")

    with monkeypatch.context() as patch:
        patch.setattr(measuring, "measure", fails)
        assert cost_table(rig(engine), {"models": "tiny"}).points == first.points
        with pytest.raises(AssertionError, match="measured again"):
            cost_table(rig(engine), {"models": "others"})
        before = first.verify(1, 1, 64)
        for _ in range(100):
            for k in KS:  # all of them: a longer window never costs less
                first.saw("verify", 1, k, 64, 3 * first.verify(1, k + 1, 64))
        keep(rig(engine), {"models": "tiny"}, first)
        assert cost_table(rig(engine), {"models": "tiny"}).verify(1, 1, 64) > 1.2 * before
