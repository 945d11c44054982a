"""From a command line and a file to the engine's options."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from commands import Call, Pair
from rich.console import Console

from paceline import ConfigError, Engine
from paceline.cli import common, serve
from paceline.cli.common import engine_options, open_engine


def test_a_server_drafts_with_the_same_file_or_none(tmp_path: Path) -> None:
    """Predicted outputs work in both, unless somebody names a drafter."""
    file = tmp_path / "paceline.toml"
    for draft, drafter in ((None, "predicted+ngram"), ("b", "predicted+model")):
        said = "" if draft is None else f'draft = "{draft}"\n'
        file.write_text(f'target = "a"\n{said}')
        for options in (
            engine_options(file, serving=True),
            engine_options(None, serving=True, target="a", draft=draft),
        ):
            assert options["drafter"] == drafter
            assert options.get("adaptive") is None
    assert engine_options(file, serving=True, drafter="ngram")["drafter"] == "ngram"
    file.write_text('target = "a"\ndraft = "b"\ndrafter = "model"\nadaptive = false\n')
    options = engine_options(file, serving=True)
    assert (options["drafter"], options["adaptive"]) == ("model", False)


def test_a_text_alone_is_drafted_by_the_model(tmp_path: Path) -> None:
    file = tmp_path / "paceline.toml"
    file.write_text('target = "a"\ndraft = "b"\n')
    for options in (engine_options(file), engine_options(None, target="a", draft="b")):
        assert (options["drafter"], options["adaptive"]) == ("model", False)
    assert engine_options(file, draft=None, target="c")["target"] == "c"
    assert engine_options(None, target="a")["drafter"] == "none"


SWITCHES: list[tuple[str, Any]] = [
    ("cache_tokens", 640),
    ("memory", 0.5),
    ("latency", 0.25),
    ("prefix_cache", False),
    ("prefill_chunk", 128),
    ("max_gap", 0.05),
    ("seed", 11),
]


def test_a_server_has_a_switch_for_each(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    @contextmanager
    def opened(options: dict[str, Any], shown: bool) -> Iterator[Engine]:
        assert not shown
        asked.append(options)
        raise ConfigError("seen")
        yield

    monkeypatch.setattr(serve, "open_engine", opened)
    switches = []
    for name, value in SWITCHES:
        option = f"--{name.replace('_', '-')}"
        switches += ["--no-prefix-cache"] if value is False else [option, str(value)]
    file = tmp_path / "paceline.toml"
    file.write_text('target = "mini-target"\ncache_tokens = 320\nseed = 5\nmax_gap = 1.0\n')
    for config in ([], ["--config", str(file)]):
        done = call("serve", "--port", "0", *config, *switches)
        assert done.err.splitlines()[-1] == "error: seen"
        assert dict(SWITCHES).items() <= asked.pop().items()
    done = call("serve", "--port", "0", "--config", str(file))
    assert asked.pop()["cache_tokens"] == 320
    done = call("serve", "--port", "0", "--memory", "2")
    assert done.err.startswith("error: memory must be a number from 0 to 1")


@pytest.mark.parametrize("shown", [True, False])
def test_steps_are_drawn_on_a_terminal_where_they_are_wanted(
    shown: bool, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = StringIO()
    terminal = Console(file=drawn, force_terminal=True, width=80)
    monkeypatch.setattr(common, "stderr", terminal)
    options = engine_options(None, target=pair.target, drafter="none", dtype="float32", threads=1)
    with open_engine(options, shown):
        pass
    assert ("opening" in drawn.getvalue()) == shown
