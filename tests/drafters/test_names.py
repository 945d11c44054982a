"""Drafters by name: options as text, plugins that fail, and classes named with a dot."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from typer.testing import CliRunner

from paceline import ConfigError, Drafter, create_drafter
from paceline.cli import app
from paceline.drafters import create
from paceline.drafters.mix import MixDrafter
from paceline.drafters.ngram import NgramDrafter
from paceline.types import Draft, Rows

AGAIN = """
import torch
from paceline import Drafter
from paceline.types import Draft

SIZE = 3


class Again(Drafter):
    name = "again"

    def propose(self, rows, k, draw):
        last = rows.tokens[rows.index, rows.length - 1]
        count = torch.full_like(rows.length, k)
        return Draft(last.unsqueeze(1).expand(-1, k).contiguous(), count, 0 * count)


class Unfinished(Drafter):
    name = "unfinished"
"""


@dataclass(frozen=True, slots=True)
class ManyOptions:
    """One of each kind."""

    whole: int = 1
    real: float = 0.5
    flag: bool = False
    word: str = "a"
    path: Path = Path()
    maybe: int | None = None
    which: Literal["first", "last"] = "first"
    several: tuple[int, ...] = ()


class Many(Drafter):
    """Takes options of every kind."""

    name: ClassVar[str] = "many"
    Options: ClassVar[type[Any]] = ManyOptions

    def __init__(self, options: ManyOptions) -> None:
        self.options = options

    def propose(self, rows: Rows, k: int, draw: object) -> Draft:
        raise AssertionError


class NoDataclass(Many):
    """Its Options are none."""

    Options = dict


@dataclass(frozen=True)
class Plugin:
    """An entry point of a package."""

    found: object
    name: str = "plugin"

    def load(self) -> object:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Any:
    def register(found: object) -> None:
        monkeypatch.setattr("paceline.drafters.entry_points", lambda group: (Plugin(found),))

    return register


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a module of drafters in it that nobody installed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [part for part in sys.path if part])
    monkeypatch.delitem(sys.modules, "written", raising=False)
    (tmp_path / "written.py").write_text(AGAIN)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("whole=3", {"whole": 3}),
        ("real=2", {"real": 2.0}),
        ("flag=true", {"flag": True}),
        ("flag=off", {"flag": False}),
        ("path=a/b", {"path": Path("a/b")}),
        ("maybe=4", {"maybe": 4}),
        ("maybe=none", {"maybe": None}),
        ("which=last,word=b c", {"which": "last", "word": "b c"}),
    ],
)
def test_options_are_what_their_annotations_say(
    text: str, expected: dict[str, object], plugin: Any
) -> None:
    plugin(Many)
    options = create(f"plugin:{text}").options  # type: ignore[attr-defined]
    assert options == ManyOptions(**expected)  # type: ignore[arg-type]
    assert [type(getattr(options, key)) for key in expected] == [
        type(value) for value in expected.values()
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flag=maybe", "flag must be true or false, not 'maybe'"),
        ("whole=1.5", "whole must be a whole number"),
        ("maybe=x", "maybe must be a whole number"),
        ("which=lats", "which cannot be 'lats'; did you mean 'last'"),
        ("several=1", "several cannot be given as text.*make the drafter in Python"),
        ("whol=1", "no option 'whol'; did you mean 'whole'"),
    ],
)
def test_options_that_cannot_be_read(text: str, message: str, plugin: Any) -> None:
    plugin(Many)
    with pytest.raises(ConfigError, match=message):
        create(f"plugin:{text}")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (ModuleNotFoundError("No module named 'faiss'"), "'plugin' cannot be imported .*faiss"),
        (RuntimeError("no licence"), "'plugin' cannot be imported .RuntimeError: no licence"),
        (dict, "'plugin' is not a class derived from paceline.Drafter"),
        (NoDataclass, "its Options must be a dataclass"),
    ],
)
def test_a_plugin_that_cannot_be_used(found: object, message: str, plugin: Any) -> None:
    plugin(found)
    with pytest.raises(ConfigError, match=message):
        create("plugin")


def test_a_class_in_the_current_folder(here: Path) -> None:
    made = create("written.Again")
    assert (type(made).__name__, made.name) == ("Again", "again")
    mixed = create_drafter("ngram:min=1+written.Again")
    assert isinstance(mixed, MixDrafter)
    assert mixed.sources == ("ngram", "again")
    assert isinstance(create("paceline.drafters.ngram.NgramDrafter:min=1"), NgramDrafter)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("written.Agian", "module written has no 'Agian'; did you mean 'Again'"),
        ("written.SIZE", "'written.SIZE' is not a class derived from paceline.Drafter"),
        ("written.Unfinished", "class Unfinished has no method propose"),
        ("written.Again:size=1", "'written.Again' has no options: leave 'size=1' out"),
        ("unwritten.Again", "cannot be imported .*No module named 'unwritten'.*current folder"),
        ("broken.Again", "'broken.Again' cannot be imported .SyntaxError"),
        ("nameless.Nameless", "class Nameless has no name: write name"),
    ],
)
def test_a_class_that_cannot_be_used(name: str, message: str, here: Path) -> None:
    (here / "broken.py").write_text("def\n")
    (here / "nameless.py").write_text(
        "import paceline\n\n\nclass Nameless(paceline.Drafter):\n    propose = None\n"
    )
    with pytest.raises(ConfigError, match=message):
        create(name)


def test_from_the_command_line(here: Path) -> None:
    """The command may lie anywhere: the current folder is searched, whatever started it."""
    written = ["generate", "x = [", "-k", "2", "--max-tokens", "8", "--threads", "1", "--drafter"]
    runner = CliRunner()
    plain = runner.invoke(app, [*written, "none"])
    again = runner.invoke(app, [*written, "written.Again"])
    assert (again.exit_code, plain.exit_code) == (0, 0), again.output
    assert again.stdout.split("\n")[0] == plain.stdout.split("\n")[0]
    wrong = runner.invoke(app, [*written, "written.Unfinished"])
    assert wrong.exit_code == 2
    assert "has no method propose" in wrong.output


def test_the_installed_command_looks_in_the_current_folder(here: Path) -> None:
    """As a console script starts it: the folder of the script is searched, not the current one."""
    code = (
        "import sys; sys.path = [p for p in sys.path if p]\n"
        "from paceline.drafters import create; print(create('written.Again').name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=False
    )
    assert done.stdout == "again\n", done.stderr
