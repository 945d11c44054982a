"""`paceline audit` on a tiny random pair: what it prints, and how it fails."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from commands import Call, Pair, one_line_error

from paceline import CheckpointError
from paceline.cli import audit as command
from paceline.lab.audit import AuditOptions
from paceline.lab.audit_clients import TrafficOptions
from paceline.lab.audit_identity import IdentityOptions
from paceline.lab.audit_laws import LawOptions
from paceline.lab.audit_pair import Pair as Pair_

TINY = AuditOptions(
    seeds=1,
    laws=LawOptions(settings=LawOptions().settings[:1], samples=60, texts=4, rules=("match",)),
    identity=IdentityOptions(
        settings=IdentityOptions().settings[:1], ks=(0, 3), tokens=6, dtypes=("float64", "float32")
    ),
    traffic=TrafficOptions(requests=12, longest=12, dtypes=("float64",)),
)


@pytest.fixture
def options(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(command, "QUICK", TINY)
    return ["--target", pair.target, "--draft", pair.draft, "--threads", "1", "--quick",
            "--prompts", "2"]  # fmt: skip


def test_a_sound_pair_passes(call: Call, options: list[str]) -> None:
    done = call("audit", *options, "--json")
    assert done.status == 0, done
    report = json.loads(done.out)
    assert report["passed"] is True
    parts = ("enumeration", "statistics", "identity", "mutations", "traffic")
    assert {"enumeration", "laws", "identity", "mutations", "traffic", "versions"} <= report.keys()
    for letter, part in zip("abcde", parts, strict=True):
        assert f"({letter}) {part}" in done.err
    assert "audit passed" in done.err
    assert " on cpu\n" in done.err.split("(a)")[0]
    assert "\x1b" not in done.err


def test_a_part_that_fails_is_named(
    call: Call, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = command.run_audit

    def broken(*args: object) -> object:
        report = real(*args)  # type: ignore[arg-type]
        return replace(report, passed=False, laws=replace(report.laws, passed=False))

    monkeypatch.setattr(command, "run_audit", broken)
    done = call("audit", *options)
    assert done.status == 1
    assert done.out.endswith("audit failed: laws\n")


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts that need no pair are short."""
    monkeypatch.setattr("paceline.lab.audit.SIZES", ((2, 1, 5),))
    monkeypatch.setattr("paceline.lab.audit.MUTANTS", {})


@pytest.mark.usefixtures("brief")
def test_what_could_not_be_done_is_said(
    call: Call, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parts that ended are shown, and the status is not 0."""
    real = Pair_.open

    def open_if_it_fits(self: Pair_, drafter: object, **given: object) -> object:
        if given.get("dtype") == "float64":
            raise CheckpointError("it does not fit: use dtype bfloat16")
        return real(self, drafter, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(Pair_, "open", open_if_it_fits)
    done = call("audit", *options, "--dtype", "float32", "--dtype", "float64")
    assert done.status == 1
    assert "(b) statistics" in done.out
    assert "identity could not be done: float64: it does not fit" in done.out
    assert done.out.endswith("audit incomplete: identity, traffic\n")
    left = call("audit", *options)
    assert left.status == 0, left
    assert "left out, as it does not fit: float64" in left.out
    assert left.out.endswith("audit passed\n")


@pytest.mark.usefixtures("brief")
def test_dtypes_and_drafters_of_ones_own(call: Call, options: list[str]) -> None:
    asked = ["--dtype", "float64", "--drafter", "ngram:min=3"]
    done = call("audit", *options, *asked, "--json")
    assert done.status == 0, done
    report = json.loads(done.out)
    assert [result["dtype"] for result in report["identity"]["results"]] == ["float64"]
    assert "ngram:min=3" in report["identity"]["results"][0]["drafters"]
    assert "unknown drafter 'ngrm'" in one_line_error(call("audit", *options, "--drafter", "ngrm"))
    assert "dtype must be one of" in one_line_error(call("audit", *options, "--dtype", "float8"))


def test_own_prompts(call: Call, options: list[str], tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    for text, words in [
        ("", "no prompt that could be used"),
        ('{"promt": "a"}\n{"prompt": ""}\n', "line 1"),
        ('"a"\n', "line 1"),
        ('{"prompt"\n', "line 1"),
    ]:
        file.write_text(text)
        assert words in one_line_error(call("audit", *options, "--file", str(file)))
    assert "cannot be read" in one_line_error(call("audit", *options, "--file", "nowhere"))
