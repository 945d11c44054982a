"""A user's own prompts: what `paceline bench -w` takes, `plan` and `audit` take too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paceline import ConfigError
from paceline.cli import plan_gather, prompts

USER = {"role": "user", "content": "hi"}
FILES: dict[str, tuple[list[Any], list[Any]]] = {
    "prompts.jsonl": ([{"prompt": "a"}, {"text": "b"}], ["a", "b"]),
    "chats.jsonl": ([{"messages": [USER]}, {"prompt": "a"}], [[USER], "a"]),
    "spec.jsonl": ([{"turns": ["hi", "more"]}], [[USER]]),
    "log.jsonl": (
        [{"at": 9, "body": {"model": "m", "prompt": "b"}}, {"at": 2, "body": {"prompt": "a"}}],
        ["a", "b"],
    ),
    "lines.txt": (["one", "two"], ["one", "two"]),
}


@pytest.mark.parametrize("name", FILES)
def test_one_file_serves_all(name: str, tmp_path: Path) -> None:
    rows, wanted = FILES[name]
    file = tmp_path / name
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    file.write_text("\n".join(lines) + "\n")
    assert prompts.read(file) == wanted
    assert list(plan_gather.prompts(file, "anything")) == wanted


def test_a_bad_line_is_told_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a"}\n{"promt": "b"}\n')
    assert prompts.read(file) == ["a"]
    assert 'p.jsonl, line 2: no "prompt"' in capsys.readouterr().err
    file.write_text("{\n")
    with pytest.raises(ConfigError, match="line 1"):
        prompts.read(file)
