"""The log-probabilities of a given text: of one pass, whatever the pieces, beside running texts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.engine.tools import Pair, prompt

from paceline import Engine, EngineClosedError, RequestError, SamplingParams
from paceline.engine import instruments, scoring


@pytest.mark.parametrize("length", [1, 2, 8, 9, 30])
def test_pieces_add_up_to_one_pass(
    length: int, opened: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "PIECE", 8)
    engine = opened(k=0)
    ids = prompt(3, length)
    pieces = list(engine.prompt_logprobs(ids, top=3))
    assert [len(piece) for piece in pieces] == [
        min(8, length - 1 - start) for start in range(0, length - 1, 8)
    ]
    scores = engine.score(ids).log_softmax(-1)
    found = [item for piece in pieces for item in piece]
    assert [item.token_id for item in found] == ids[1:]
    for place, item in enumerate(found):
        assert item.logprob == pytest.approx(float(scores[place, item.token_id]), abs=1e-9)
        values, tokens = scores[place].topk(3)
        assert [token for token, _ in item.top] == tokens.tolist()
        assert [value for _, value in item.top] == pytest.approx(values.tolist(), abs=1e-9)


def test_others_go_on_between_pieces(
    opened: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "PIECE", 4)
    engine = opened(k=0)
    (alone,) = engine.generate([prompt(1)], SamplingParams(max_tokens=60, ignore_eos=True))
    pieces = engine.prompt_logprobs(prompt(2, 90))
    next(pieces)
    handle = engine.submit(prompt(1), SamplingParams(max_tokens=60, ignore_eos=True))
    written = [len(handle._reader.token_ids) for _ in pieces]
    assert written[-1] > 0
    assert handle.result(60).token_ids == alone.token_ids


def test_a_text_that_memory_has_no_room_for(
    opened: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened(k=0)

    def full(*args: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(instruments, "Scorer", full)
    for ask in (engine.score, lambda ids: next(engine.prompt_logprobs(ids))):
        with pytest.raises(RequestError, match="a text of 11 tokens does not fit beside the cac"):
            ask(prompt(1))


def test_what_cannot_be_scored(pair: Pair, opened: Callable[..., Engine]) -> None:
    engine = opened(k=0)
    for wrong in ([], [10**6], [-1], [0] * (engine.limits.max_length + 1)):
        with pytest.raises(RequestError):
            engine.prompt_logprobs(wrong)
    for top in (-1, 1.5, True):
        with pytest.raises(RequestError, match="top must be a whole number of at least 0"):
            engine.prompt_logprobs(prompt(1), top)  # type: ignore[arg-type]
    pieces = engine.prompt_logprobs(prompt(1))
    engine.close()
    with pytest.raises(EngineClosedError):
        next(pieces)
    with pytest.raises(EngineClosedError):
        engine.prompt_logprobs(prompt(1))
