"""An engine of a configuration file: what it says, and what wins over it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.engine.tools import Pair

from paceline import ConfigError, Engine, sampling_params
from paceline.drafters import create

PARAMS = sampling_params(max_tokens=12, ignore_eos=True)


@pytest.fixture
def file(tmp_path: Path, pair: Pair) -> Path:
    file = tmp_path / "paceline.toml"
    file.write_text(
        f'target = "{pair.target}"\ndraft = "{pair.other}"\nk = 3\ndtype = "float32"\n'
        "threads = 1\nslots = 2\nmax_length = 128\nadaptive = false\n[server]\nport = 1\n"
    )
    return file


def test_it_is_opened_as_the_file_says(file: Path, pair: Pair) -> None:
    seen: list[str] = []
    with Engine.from_file(file, progress=lambda what, *_: seen.append(what)) as engine:
        config = engine.config
        assert (config.drafter, config.draft, config.k) == ("model", str(pair.other), 3)
        assert (config.slots, engine.limits.max_length, config.adaptive) == (2, 128, False)
        text = engine.generate("abc", PARAMS)[0].text
    assert "reading the target" in seen
    with Engine(pair.target, dtype="float32", threads=1, max_length=128) as engine:
        assert engine.generate("abc", PARAMS)[0].text == text


def test_what_is_given_wins_over_the_file(file: Path, pair: Pair) -> None:
    with Engine.from_file(str(file), k=2, drafter="ngram", target=pair.other) as engine:
        config = engine.config
        assert (config.k, config.drafter, config.slots) == (2, "ngram", 2)
        assert config.target == str(pair.other)
    own = create("ngram")
    with Engine.from_file(file, drafter=own) as engine:
        assert engine._loop.machine.drafter is own


@pytest.mark.parametrize(
    ("more", "options", "words"),
    [("", {"kk": 3}, "did you mean 'k'"), ('rule = "no"\n', {}, "rule must be one of"),
     ("", {"drafter": 5}, "drafter must be a name or a Drafter")],
)  # fmt: skip
def test_what_cannot_be_is_one_line(
    file: Path, more: str, options: dict[str, object], words: str
) -> None:
    file.write_text(more + file.read_text())
    with pytest.raises(ConfigError, match=words) as caught:
        Engine.from_file(file, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Engine.from_file(tmp_path / "none.toml")
