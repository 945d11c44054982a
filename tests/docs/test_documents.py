"""The documents' code runs: Python blocks as programs, console blocks as commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from paceline.cli import app

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [*DOCUMENTS, ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md"]


def blocks(language: str) -> list[tuple[str, str]]:
    """Return (name, code) of every fenced block of a language."""
    found = []
    for document in DOCUMENTS:
        for match in re.finditer(rf"^```{language}\n(.*?)^```", document.read_text(), re.M | re.S):
            line = document.read_text()[: match.start()].count("\n") + 1
            found.append((f"{document.name}:{line}", match[1]))
    return found


COMMANDS = [
    (f"{name} {line[2:40]}", line[2:])
    for name, code in blocks("console")
    for line in code.splitlines()
    if line.startswith("$ ")
]


@pytest.mark.parametrize(
    ("name", "code"), blocks("python"), ids=[name for name, _ in blocks("python")]
)
def test_python_runs(name: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, name, "exec"), {"__name__": "document"})


@pytest.mark.parametrize(("name", "line"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_commands_run(
    name: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    program, *arguments = shlex.split(line)
    assert program == "paceline", f"{name}: only paceline's own commands are tested"
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output


def test_there_is_something_to_run() -> None:
    assert blocks("python")
    assert COMMANDS


def anchors(document: Path) -> set[str]:
    """What a link may name behind # of a document: its headings, as GitHub writes them."""
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", LINKED, ids=lambda d: str(d.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        found = document.parent / target if target else document
        assert found.exists(), f"{document.name} links to {target}"
        assert not anchor or anchor in anchors(found), f"{document.name} links to {link}"
