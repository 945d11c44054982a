"""How much of a prompt a step may read where the gap between two rounds is bounded."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline import Engine, sampling_params
from paceline.engine.feeding import Feeder
from paceline.engine.readings import REACH, WIDTHS, EagerReadings, pieces

HALF = 8000  # positions at which attention takes as long as everything else
PASS = {16: 4e-3, 64: 5e-3, 128: 7e-3, 256: 12e-3}  # seconds at the begin of a text
LONG = 40e-6  # a token of a chunk that is not recorded


def feeder(widths: tuple[int, ...] = WIDTHS, **options: Any) -> Feeder:
    machine: Any = SimpleNamespace(target=SimpleNamespace(half_context=HALF))
    readings: Any = SimpleNamespace(widths=widths)
    nobody: Any = None
    return Feeder(machine, readings, nobody, chunk=2048, **options)


class Text(SimpleNamespace):
    __hash__ = object.__hash__  # a sequence is itself and no other


def text(tokens: int, read: int = 0) -> Any:
    return Text(slot=1, tokens=range(tokens + 1), prefilled=read, observed=0)


def truth(start: int, stop: int) -> float:
    return sum(
        (PASS[width] if width else LONG * (end - begin)) * (1 + (begin + end) / 2 / HALF)
        for begin, end, width in pieces(start, stop, WIDTHS)
    )


def saw(found: Feeder, start: int, stop: int) -> None:
    """A step read it, and has settled."""
    marks: Any = SimpleNamespace(passed=True, wait=lambda: truth(start, stop))
    found._marks.append((start, stop, marks, 0.0))
    found.learn()


@given(st.integers(0, 9000), st.integers(1, 3000), st.booleans())
def test_pieces_are_the_whole_in_order(start: int, count: int, recorded: bool) -> None:
    widths = WIDTHS if recorded else ()
    cut = list(pieces(start, start + count, widths))
    assert cut[0][0] == start
    assert cut[-1][1] == start + count
    assert all(a[1] == b[0] for a, b in pairwise(cut))
    for begin, end, width in cut:
        if width:
            assert end - begin <= width in widths
        else:  # one pass of all that is left, and never a short one behind what is recorded
            assert end == start + count
            assert not recorded or (begin >= REACH and end - begin >= 2 * WIDTHS[-1])


def test_without_a_bound_or_anybody_waiting_a_step_reads_its_budget() -> None:
    found = feeder()
    assert found.step_tokens(text(5000), 2048, 0.01) == 2048
    bounded = feeder(max_gap=0.02)
    assert bounded.step_tokens(text(5000, 100), 2048, None) == 2048
    assert bounded.step_tokens(text(1000, 990), 2048, None) == 10


def test_what_was_never_measured_is_read_with_care() -> None:
    assert feeder(max_gap=0.1).step_tokens(text(5000), 2048, 0.01) == 16


@pytest.mark.parametrize("gap", [0.02, 0.03, 0.06, 0.2])
def test_the_bound_is_kept_along_a_long_prompt(gap: float) -> None:
    """With what earlier prompts taught, through the change from recorded passes to long chunks."""
    found, busy = feeder(max_gap=gap), 0.008
    for _ in range(30):
        for stop in (10, 60, 120, 250, 300):
            saw(found, 0, stop)
        saw(found, REACH, REACH + 1024)
    sequence, steps = text(32000), 0
    while sequence.prefilled < 32000:
        tokens = found.step_tokens(sequence, 2048, busy)
        start, stop = sequence.prefilled, sequence.prefilled + tokens
        least = truth(start, start + 16)
        assert truth(start, stop) <= max(gap - busy, least * 1.001)
        saw(found, start, stop)
        sequence.prefilled, steps = stop, steps + 1
    assert steps < 32000 / 16  # not all of it in the least steps


def test_a_machine_that_slows_down_is_followed() -> None:
    found = feeder(max_gap=0.03)
    for _ in range(10):
        saw(found, 0, 250)
    quick = found.seconds(0, 250)
    assert quick == pytest.approx(truth(0, 250))
    for _ in range(20):
        marks: Any = SimpleNamespace(passed=True, wait=lambda: 2 * truth(0, 250))
        found._marks.append((0, 250, marks, 0.0))
        found.learn()
    assert found.seconds(0, 250) == pytest.approx(2 * quick, rel=0.01)


def test_only_what_has_passed_is_learned_from() -> None:
    found = feeder()
    running: Any = SimpleNamespace(passed=False)
    found._marks.append((0, 16, running, 0.0))
    assert found.learn() == 0
    assert not found.paces


def test_a_bound_that_cannot_be_kept_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    found = feeder(max_gap=0.01)
    saw(found, 0, 16)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert found.step_tokens(text(500), 2048, 0.008) == 16
    assert [record.message for record in caplog.records] == [
        "max_gap of 10 ms cannot be kept: a round takes 8.0 ms and reading 16 tokens of a prompt "
        "4.0 ms"
    ]


def test_nobody_waits_for_a_drafter_to_read_a_whole_prefix() -> None:
    """A prefix was found that the target has read and the drafter has not."""
    calls: list[tuple[Any, ...]] = []
    found = feeder(max_gap=0.03)
    machine: Any = found.machine
    machine.drafter = SimpleNamespace(needs=SimpleNamespace(catch_up="tokens"))
    machine.slots = SimpleNamespace(limits=SimpleNamespace(device=SimpleNamespace(type="cpu")))
    readings: Any = found.readings
    readings.catch_up = lambda spans: calls.extend(("draft", *span[1:]) for span in spans)
    readings.read = lambda slot, start, stop, shown: calls.append(("both", start, stop, shown))
    for stop in (10, 60, 120, 250):
        for _ in range(3):
            saw(found, 0, stop)
    sequence = text(3010, read=3000)
    steps = 0
    while sequence.prefilled == 3000:  # though hardly anything of the prompt is left
        before = sequence.observed
        found.read(sequence, 1, drafting=True, busy=0.008)
        assert truth(before, max(before + 1, sequence.observed)) <= 0.03 - 0.008
        steps += 1
    assert steps < 25
    assert calls[-1] == ("both", 3000, 3001, True)
    assert all(kind == "draft" for kind, *_ in calls[:-1])
    assert [start for _, start, *_ in calls[1:]] == [stop for _, _, stop, *_ in calls[:-1]]
    calls.clear()
    alone = text(500, read=300)
    found.read(alone, 128, drafting=True)
    assert calls == [("draft", 0, 300), ("both", 300, 428, True)]


@pytest.mark.parametrize("gap", [0.04, 0.06, 0.08, 0.15])
def test_the_first_chunk_that_is_not_recorded_keeps_the_bound_too(gap: float) -> None:
    """Nobody knows its pace, and it takes half as long again as those behind it."""

    def takes(start: int, stop: int) -> float:
        return sum(
            truth(begin, end) + (0.0 if width or long else 0.025)
            for begin, end, width in pieces(start, stop, WIDTHS)
        )

    found, busy, long = feeder(max_gap=gap), 0.008, 0
    for stop in (10, 60, 120, 250, 300):
        for _ in range(10):
            saw(found, 0, stop)
    sequence = text(20000)
    while sequence.prefilled < 20000:
        tokens = found.step_tokens(sequence, 2048, busy)
        start, stop = sequence.prefilled, sequence.prefilled + tokens
        assert takes(start, stop) <= max(gap - busy, truth(start, start + 16) * 1.001)
        marks: Any = SimpleNamespace(
            passed=True, wait=lambda start=start, stop=stop: takes(start, stop)
        )
        found._marks.append((start, stop, marks, 0.0))
        found.learn()
        sequence.prefilled = stop
        long += any(not width for *_, width in pieces(start, stop, WIDTHS))
    assert long > 5 or gap < 0.1


def test_a_read_of_many_passes_is_learned_from_once() -> None:
    """Its time is one measurement, however many passes it had."""
    found = feeder()
    saw(found, 0, 2048)
    assert found.paces == {256: pytest.approx(PASS[256], rel=0.2)}
    for _ in range(30):
        saw(found, 0, 2048)
    assert found.seconds(0, 2048) == pytest.approx(truth(0, 2048), rel=1e-3)
    saw(found, 0, 256 + 44)  # with one of a width that was never seen
    assert found.paces[64] == pytest.approx(PASS[64], rel=0.5)


def test_whoever_chooses_k_is_told_what_went_by_without_the_reading(
    opened: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt takes as long beside a plain round as beside another, so it speaks for neither."""
    engine = opened(drafter="ngram", k=2, slots=2)
    read, told, settled = EagerReadings.read, list[float](), engine._loop.pilot.settled

    def slow(*given: Any) -> None:
        time.sleep(0.4)
        read(*given)

    def listen(*given: Any, elapsed_seconds: float, **more: Any) -> None:
        told.append(elapsed_seconds)
        settled(*given, elapsed_seconds=elapsed_seconds, **more)

    monkeypatch.setattr(EagerReadings, "read", slow)
    monkeypatch.setattr(engine._loop.pilot, "settled", listen)
    engine.generate("def f(x):", sampling_params(max_tokens=8))
    assert told
    assert 0 <= sum(told) < 0.4
