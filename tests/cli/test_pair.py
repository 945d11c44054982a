"""`paceline pair make`: what it prints, and how it fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import Call, one_line_error

MINI = ["--target-shape", "mini-target", "--draft-shape", "mini-draft", "--acceptance", "0.7"]


def test_make(call: Call, tmp_path: Path) -> None:
    out = tmp_path / "pair"
    done = call("pair", "make", *MINI, "--out", str(out), "--json")
    assert done.status == 0, done
    report = json.loads(done.out)
    assert report["target"] == str(out / "target")
    assert report["greedy"]["acceptance"] == pytest.approx(0.7, abs=0.5 / 128)
    assert report["temperature_1"]["acceptance_reject"] == pytest.approx(0.7, abs=1e-3)
    assert "versions" in report
    assert done.err == ""
    assert "not empty" in one_line_error(call("pair", "make", *MINI, "--out", str(out)))

    models = ["--target", str(out / "target"), "--draft", str(out / "draft"), "--threads", "1"]
    told = call("generate", *models, "--max-tokens", "80", "--json", "any words")
    assert 0.4 < json.loads(told.out)["acceptance_rate"] < 0.95


def test_a_table_for_people(call: Call, tmp_path: Path) -> None:
    done = call("pair", "make", *MINI, "--out", str(tmp_path))
    assert done.status == 0, done
    assert str(tmp_path / "draft") in done.out
    assert "repeats after 128 tokens" in done.out
    assert "\x1b" not in done.out


def test_mistakes(call: Call, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "pair")]
    misspelt = ["--target-shape", "mini-traget", *MINI[2:]]
    assert "did you mean 'mini-target'" in one_line_error(call("pair", "make", *misspelt, *out))
    too_much = [*MINI[:-1], "1.2"]
    assert "at most 1" in one_line_error(call("pair", "make", *too_much, *out))
    missing = call("pair", "make", *out)
    assert missing.status == 2
    assert "--target-shape" in missing.err
    assert "make" in call("pair", "--help").out
