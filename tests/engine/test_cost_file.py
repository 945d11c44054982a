"""Costs on disk: what was kept comes back, and what is broken or foreign is as none."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from paceline.engine import cost_file
from paceline.engine.catch_up import NO_CATCH_UP, CatchUp
from paceline.engine.cost_file import Saved, cache_folder, cost_path, load_costs, save_costs
from paceline.engine.cost_grid import Point

KEY = {"device": "abacus", "target": "two beads"}
POINTS = (Point("verify", 1, 0, 64, 4e-3), Point("draft", 8, 5, 64, 1.5e-3))


def test_what_was_kept_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "here"
    assert load_costs(KEY, folder) is None
    save_costs(KEY, POINTS, CatchUp(1e-3, 2e-6), folder)
    assert load_costs(KEY, folder) == Saved(POINTS, CatchUp(1e-3, 2e-6))
    save_costs(KEY, POINTS[:1], NO_CATCH_UP, folder)
    assert load_costs(KEY, folder) == Saved(POINTS[:1], NO_CATCH_UP)
    assert [path.name for path in folder.iterdir()] == [cost_path(KEY, folder).name]
    assert load_costs(KEY | {"device": "another"}, folder) is None


GOOD = {"format": 3, "key": KEY, "points": [["verify", 1, 0, 64, 0.004]], "catch_up": [0.001, 0]}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        "\x00\xff",
        json.dumps(GOOD | {"format": 0}),
        json.dumps(GOOD | {"key": {}}),
        json.dumps(GOOD | {"points": []}),
        json.dumps(GOOD | {"points": None}),
        json.dumps(GOOD | {"points": [["draft", 1, 1, 64, 0.004]]}),
        json.dumps(GOOD | {"points": [["guess", 1, 0, 64, 0.004]]}),
        json.dumps(GOOD | {"points": [["verify", 1, 0, 64]]}),
        json.dumps(GOOD | {"points": [["verify", 0, 0, 64, 0.004]]}),
        json.dumps(GOOD | {"points": [["verify", 1, 0.5, 64, 0.004]]}),
        json.dumps(GOOD | {"points": [["verify", 1, 0, 64, float("nan")]]}),
        json.dumps(GOOD | {"points": [["verify", 1, 0, 64, "0.004"]]}),
        json.dumps(GOOD | {"catch_up": -1}),
        json.dumps(GOOD | {"catch_up": [1, 2, 3]}),
        json.dumps(GOOD | {"catch_up": [1, None]}),
        json.dumps(GOOD | {"catch_up": [1, 10**400]}),
    ],
)
def test_a_broken_file_is_as_none(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    cost_path(KEY, tmp_path).write_text(text, encoding="latin-1")
    with caplog.at_level(logging.INFO):
        assert load_costs(KEY, tmp_path) is None
    assert "measured again" in caplog.text
    save_costs(KEY, POINTS, NO_CATCH_UP, tmp_path)
    assert load_costs(KEY, tmp_path) == Saved(POINTS, NO_CATCH_UP)


def test_a_folder_that_cannot_be_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        save_costs(KEY, POINTS, NO_CATCH_UP, tmp_path / "file")
    assert "the next start measures again" in caplog.text


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("PACELINE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "paceline"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "paceline"


def test_a_user_without_a_home_measures_each_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a container's user whom its passwd does not name: told once, in one line."""

    def fails() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("PACELINE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", fails)
    cost_file._tell_homeless.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert load_costs(KEY) is None
        save_costs(KEY, POINTS, NO_CATCH_UP)
        save_costs(KEY, POINTS, NO_CATCH_UP)
    assert len(caplog.records) == 1
    assert "set PACELINE_CACHE" in caplog.text
