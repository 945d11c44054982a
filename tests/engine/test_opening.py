"""The tokenizer while an engine opens: what needs it waits for it, and nothing else does."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_tokenizer
from tests.engine.tools import Pair, prompt

from paceline import CheckpointError, ConfigError, Engine, SamplingParams
from paceline.engine import build
from paceline.text import Tokenizer


def test_the_machine_is_made_while_the_tokenizer_is_loaded(
    pair: Pair, opened: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, load, ready = threading.Event(), Tokenizer.load, build._ready

    def late(path: str | Path) -> Tokenizer:
        assert begun.wait(60)
        return load(path)

    def making(*args: Any) -> Any:
        begun.set()
        return ready(*args)

    monkeypatch.setattr(Tokenizer, "load", late)
    monkeypatch.setattr(build, "_ready", making)
    engine = opened(draft=pair.other)
    [written] = engine.generate([prompt(0)], SamplingParams(max_tokens=4, ignore_eos=True))
    assert len(written.token_ids) == 4


def test_a_draft_with_another_tokenizer_is_refused(
    pair: Pair, opened: Callable[..., Engine], tmp_path: Path
) -> None:
    draft = shutil.copytree(pair.other, tmp_path / "draft")
    tiny_tokenizer(draft, swap=(65, 66))
    with pytest.raises(ConfigError, match="has another tokenizer than the target"):
        opened(draft=draft)


def test_a_target_without_a_tokenizer_is_refused(
    pair: Pair, opened: Callable[..., Engine], tmp_path: Path
) -> None:
    target = shutil.copytree(pair.target, tmp_path / "target")
    for file in target.glob("tokenizer*"):
        file.unlink()
    for draft in (None, pair.other):
        with pytest.raises(CheckpointError, match="no tokenizer"):
            opened(target, draft=draft)
