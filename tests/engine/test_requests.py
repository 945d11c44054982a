"""From what a caller gives to token ids, with a tokenizer that puts a token before every text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import BOS, VOCAB_SIZE, tiny_tokenizer

from paceline import SamplingParams
from paceline.engine.requests import build_request
from paceline.text import Tokenizer
from paceline.types import Limits


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return Tokenizer.load(tiny_tokenizer(tmp_path, bos=True))


def test_a_prediction_begins_where_the_text_does(tokenizer: Tokenizer) -> None:
    """With the prompt's own beginning in it, its first drafts would be of another place."""
    limits = Limits(1, 64, 4, VOCAB_SIZE, 2, 64, torch.device("cpu"))
    request = build_request("r", "ab", SamplingParams(), "cd", tokenizer, limits, frozenset())
    assert request.prompt == (BOS, *b"ab")
    assert request.prediction == tuple(b"cd")
