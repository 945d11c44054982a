"""A tiny random pair on disk, and two ways to call the command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from commands import Call, Done, Pair
from helpers import tiny_checkpoint
from typer.testing import CliRunner

from paceline.cli import app


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Two models of one tokenizer; the draft is the target with a layer less."""
    folder = tmp_path_factory.mktemp("pair")
    target = tiny_checkpoint(folder / "target", seed=0)
    draft = tiny_checkpoint(folder / "draft", seed=0, num_hidden_layers=1)
    return Pair(str(target), str(draft))


@pytest.fixture
def call() -> Call:
    """Run the command in this process: `call("generate", ..., stdin=b"...")`."""

    def run(*arguments: str, stdin: bytes = b"") -> Done:
        result = CliRunner().invoke(app, list(arguments), input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Done(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def shell() -> Call:
    """Run `python -m paceline` in a process of its own, its output piped."""

    def run(*arguments: str, stdin: bytes = b"") -> Done:
        command = [sys.executable, "-m", "paceline", *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, timeout=300, check=False)
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


@pytest.fixture
def config_file(tmp_path: Path, pair: Pair) -> Path:
    file = tmp_path / "engine.toml"
    file.write_text(
        f'target = "{pair.target}"\ndraft = "{pair.draft}"\ndrafter = "model"\n'
        'k = 3\ndtype = "float32"\nthreads = 1\n'
    )
    return file
