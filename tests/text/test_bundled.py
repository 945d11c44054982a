"""The bundled checkpoints are plain Hugging Face checkpoints: transformers opens them unchanged."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoTokenizer

from paceline.text import Tokenizer
from paceline.text.likeness import difference

ASSETS = Path(str(files("paceline"))) / "assets"


@pytest.mark.parametrize("name", ["mini-target", "mini-draft"])
def test_transformers_opens_it(name: str) -> None:
    config = AutoConfig.from_pretrained(ASSETS / name)
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / name)
    assert len(tokenizer) == config.vocab_size
    assert config.eos_token_id == tokenizer.eos_token_id


def test_one_tokenizer_for_both() -> None:
    target, draft = Tokenizer.load(ASSETS / "mini-target"), Tokenizer.load(ASSETS / "mini-draft")
    assert difference(target, draft) is None
    assert target.has_chat_template
    text = "def f(x):\n    return '日本語 🙂'\n"
    assert target.decode(target.encode(text)) == text
