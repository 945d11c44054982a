"""What is installed: the wheel's files, and the commands that messages name."""

from __future__ import annotations

import ast
import re
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest

from paceline.errors import needs_extra

ROOT = Path(__file__).parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def test_the_package_says_that_it_is_typed() -> None:
    assert (files("paceline") / "py.typed").is_file()


def test_the_wheel_has_what_is_read_at_run_time() -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel")
    packed = {
        file.distribution_path for file in wheel.WheelBuilder(str(ROOT)).recurse_included_files()
    }
    assert "paceline/py.typed" in packed
    source = ROOT / "src"
    for folder in ("assets", "server/page"):
        for file in (source / "paceline" / folder).rglob("*"):
            assert file.is_dir() or file.relative_to(source).as_posix() in packed


def test_a_message_names_a_command_for_the_clone() -> None:
    assert needs_extra("uvicorn", "server") == (
        "needs the package uvicorn: in paceline's clone, pip install -e '.[server]'"
    )
    assert "pip install -e '.[server,bench,report]'" in (ROOT / "README.md").read_text()


def test_every_extra_that_is_named_is_one() -> None:
    named = []
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "needs_extra":
                named.append(ast.literal_eval(node.args[1]))
    assert len(named) == 4
    assert set(named) <= set(EXTRAS)


def test_nothing_is_installed_from_an_index_that_has_no_paceline() -> None:
    texts = [*(ROOT / "src").rglob("*.py"), *(ROOT / "docs").glob("*.*"), *ROOT.glob("*.md"),
             *(ROOT / "deploy").glob("*")]  # fmt: skip
    for file in texts:
        if file.suffix != ".png" and file.is_file():
            found = re.search(r"pip install (\S+ )*'?paceline\b", file.read_text(encoding="utf-8"))
            assert found is None, f"{file.name}: {found}"
