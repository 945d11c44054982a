"""`paceline audit` on a tiny random pair: what it prints, and how it fails."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from commands import Call, Pair, one_line_error

from paceline.cli import audit as command
from paceline.lab.audit import AuditOptions
from paceline.lab.audit_clients import TrafficOptions
from paceline.lab.audit_identity import IdentityOptions
from paceline.lab.audit_laws import LawOptions

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
