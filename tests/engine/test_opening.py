"""The tokenizer while an engine opens: what needs it waits for it, and nothing else does."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import VOCAB_SIZE, tiny_checkpoint, tiny_tokenizer
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


@pytest.mark.parametrize("vocab_size", [256, 258, 300])
@pytest.mark.parametrize("rule", ["match", "reject", "block"])
def test_a_draft_with_other_added_tokens_is_told_of(
    vocab_size: int,
    rule: str,
    pair: Pair,
    opened: Callable[..., Engine],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever it has fewer or more than the target: it drafts within the target's vocabulary,
    reads what it does not know, and costs no token."""
    named = {"pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2}
    draft = tiny_checkpoint(tmp_path / "draft", seed=1, vocab_size=vocab_size, **named)
    tiny_tokenizer(draft, special=("<|bos|>", "<|eos|>", "<|new|>", "<|newer|>"))
    unknown = [VOCAB_SIZE - 1, *prompt(0), VOCAB_SIZE - 1]
    params = SamplingParams(temperature=2.0, seed=5, max_tokens=24, ignore_eos=True)
    # Both models like best what one of them has not.
    params = replace(params, logit_bias=((VOCAB_SIZE - 1, 4.0), (VOCAB_SIZE - 2, 2.0)))
    engine = opened(draft=draft, rule=rule, k=3)
    [warned] = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert "2 added tokens that are not the target's, the first: 258 is" in warned
    drafted = engine.generate([unknown, prompt(1)], params)
    assert all(0 <= token < VOCAB_SIZE for text in drafted for token in text.token_ids)
    assert all(text.stats.drafted for text in drafted)
    if rule == "match":
        plain = opened(k=0).generate([unknown, prompt(1)], params)
        assert [text.token_ids for text in drafted] == [text.token_ids for text in plain]


def test_a_target_without_a_tokenizer_is_refused(
    pair: Pair, opened: Callable[..., Engine], tmp_path: Path
) -> None:
    target = shutil.copytree(pair.target, tmp_path / "target")
    for file in target.glob("tokenizer*"):
        file.unlink()
    for draft in (None, pair.other):
        with pytest.raises(CheckpointError, match="no tokenizer"):
            opened(target, draft=draft)
