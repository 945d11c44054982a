"""Made-up requests before the first user's: they go the whole way, and leave nothing behind."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
from tests.engine.tools import Pair, prompt

from paceline import Engine, SamplingParams
from paceline.engine import build, practice
from paceline.engine.acceptance import Acceptance
from paceline.engine.policy import Governor

PARAMS = SamplingParams(max_tokens=12, temperature=0.8, seed=3)


def test_nothing_is_left_behind(
    opened: Callable[..., Engine],
    pair: Pair,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def another() -> Engine:
        return opened(draft=pair.other, k=3, slots=2, adaptive=True)

    with monkeypatch.context() as patch, caplog.at_level(logging.INFO, "paceline"):
        patch.setattr(build, "_slow_at_first", lambda device: True)
        patch.setattr(practice, "_SECONDS", 0.1)
        engine = another()
    told = " ".join(caplog.messages)
    assert "practised for" in told
    assert int(told.split("asked for ")[1].split()[0]) >= 1
    stats, loop = engine.stats(), engine._loop
    assert (stats.finished, stats.emitted, stats.rounds, stats.prefix_asked) == (0, 0, 0, 0)
    assert loop.scheduler.pages.used == loop.scheduler.pages.cached == 0
    assert loop.feeder.paces.known
    assert isinstance(loop.pilot, Governor)
    assert loop.pilot.acceptance.tokens(0) == Acceptance(3).tokens(0)  # as before any traffic
    assert engine._driver._steps is loop
    mine, theirs = (e.generate([prompt(1, 9)], PARAMS)[0].token_ids for e in (engine, another()))
    assert mine == theirs
    assert engine.stats().emitted == len(mine)
