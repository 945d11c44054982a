"""The traffic part of the audit on a tiny pair, and that it finds what it is there to find."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.helpers import tiny_checkpoint

from paceline.engine.loop import Loop
from paceline.engine.scheduling import Scheduler
from paceline.lab.audit_clients import TrafficOptions
from paceline.lab.audit_pair import Pair
from paceline.lab.audit_traffic import TrafficReport, audit_traffic

PROMPTS = tuple(tuple((37 * i + 11 * n) % 256 for i in range(n)) for n in (150, 90, 200))
OPTIONS = TrafficOptions(requests=60, longest=100, dtypes=("float64",), k=3)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    target = tiny_checkpoint(folder / "target", seed=0, dtype=torch.float64)
    other = tiny_checkpoint(folder / "other", seed=1, dtype=torch.float64)
    return Pair(str(target), str(other), max_length=512, threads=1)


@pytest.fixture(autouse=True)
def hostages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Now and then somebody else holds all pages for a while, so that texts must give theirs up."""
    step, rng = Loop.step, random.Random(1)
    held: list[int] = []

    def harsh(self: Loop) -> None:
        pages = self.scheduler.pages
        if self.machine.slots.limits.slots == 2:  # the judge is left alone
            step(self)
            return
        if held and rng.random() < 0.1:
            pages.drop(held)
            held.clear()
        elif not held and rng.random() < 0.05:
            held.extend(pages.take(pages.available))
        step(self)
        if not held:
            self.scheduler.check()
        if self.scheduler.idle:
            pages.drop(held)
            held.clear()

    monkeypatch.setattr(Loop, "step", harsh)


def played(pair: Pair) -> TrafficReport:
    return audit_traffic(pair, PROMPTS, OPTIONS)


def test_a_stream_among_many_is_the_stream_alone(pair: Pair) -> None:
    report = played(pair)
    (result,) = report.results
    assert report.passed, (result.wrong[:3], result.divergences[:3])
    assert result.cancelled > 5
    assert result.stats.preemptions > 3
    assert result.stats.prefix_hits > 500
    assert result.stats.finished == OPTIONS.requests
    assert result.stats.pages_used == 0


def _forgets_the_output(wrong: pytest.MonkeyPatch) -> None:
    from paceline.engine.slots import Slots

    admit = Slots.admit

    def bad(self: Slots, *args: object) -> None:
        admit(self, *args[:4])  # type: ignore[arg-type]

    wrong.setattr(Slots, "admit", bad)


def _keeps_the_page_table(wrong: pytest.MonkeyPatch) -> None:
    wrong.setattr(Loop, "_grant", lambda self, grant: None)


def _shares_too_much(wrong: pytest.MonkeyPatch) -> None:
    admit = Scheduler.admit

    def bad(self: Scheduler) -> list[object]:
        admitted = admit(self)
        for sequence in admitted:  # takes one position more for read than was
            if sequence.prefilled and sequence.prefilled < len(sequence.tokens) - 1:
                sequence.prefilled += 1
        return list(admitted)

    wrong.setattr(Scheduler, "admit", bad)


@pytest.mark.parametrize("fault", [_forgets_the_output, _keeps_the_page_table, _shares_too_much])
def test_faults_are_found(
    fault: Callable[[pytest.MonkeyPatch], None], pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)
    assert not played(pair).passed


def test_a_dtype_that_is_not_asserted_tells_its_divergences(pair: Pair, tmp_path: Path) -> None:
    options = TrafficOptions(requests=20, dtypes=("float32",), k=3, drafter="ngram:min=1")
    (result,) = audit_traffic(pair, PROMPTS, options).results
    assert not result.asserted
    assert result.passed
    assert result.divergences == ()  # CPU kernels sum in an order that is the position's alone
