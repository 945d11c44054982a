"""What a user gets wrong: one line of a paceline error that says what may be, before any work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import EOS, VOCAB_SIZE
from tests.engine.tools import Case, Pair, prompt, together

from paceline import ConfigError, Engine, PacelineError, RequestError, SamplingParams
from paceline.drafters.base import Drafter, Draw
from paceline.engine.slots import MAX_BIAS, MAX_STOP_IDS
from paceline.types import Draft, Needs, Rows

FINE = SamplingParams(max_tokens=4)


@pytest.fixture
def engine(opened: Callable[..., Engine]) -> Engine:
    return opened(drafter="ngram", k=4, max_length=64)


def refused(
    engine: Engine, error: type[PacelineError], words: str, *args: Any, **more: Any
) -> None:
    """All three ways in refuse it, in one line, and nothing is left queued."""
    with pytest.raises(error, match=words) as caught:
        engine.generate(*args, **more)
    assert "\n" not in str(caught.value)
    with pytest.raises(error, match=words):
        engine.stream(*args, **more)
    assert engine._driver.ask(lambda: engine._loop.idle)
    (after,) = together(engine, [Case(prompt(1), FINE)])
    assert len(after.token_ids) == 4


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", "empty: give at least one token"),
        ([VOCAB_SIZE], rf"id {VOCAB_SIZE}; the vocabulary holds 0 to {VOCAB_SIZE - 1}"),
        ([-1], "id -1; the vocabulary holds"),
        ([2**70], "the vocabulary holds"),
        ([1] * 64, "has 64 tokens and the context holds 64: shorten it by at least 1,"),
        ([1] * 100, "has 100 tokens and the context holds 64: shorten it by at least 37,"),
        ("x" * 64, "has 64 tokens and the context holds 64"),
        ([1, "a"], "text, a list of token ids or a list of chat messages"),
        ([1.5, 2], "text, a list of token ids or a list of chat messages"),
        ([True], "text, a list of token ids or a list of chat messages"),
        ([1, None], "text, a list of token ids or a list of chat messages"),
        (None, "text, a list of token ids or a list of chat messages"),
        (5, "text, a list of token ids or a list of chat messages"),
        (b"abc", "text, a list of token ids or a list of chat messages"),
        ({"role": "user"}, "text, a list of token ids or a list of chat messages"),
        (torch.tensor([1, 2]), "text, a list of token ids or a list of chat messages"),
    ],
)
def test_prompts(given: Any, words: str, engine: Engine) -> None:
    refused(engine, RequestError, words, given, FINE)


def test_the_longest_prompt(engine: Engine) -> None:
    (one,) = engine.generate([[1] * 63], FINE)
    assert (len(one.token_ids), one.finish) == (1, "length")


@pytest.mark.parametrize("k", [-1, 5, 1000, 2.0, "3", True])
def test_k_of_a_request(k: Any, engine: Engine) -> None:
    refused(engine, RequestError, r"k must be .*0 to the engine's 4, not", prompt(1), FINE, k=k)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k": -1}, "k must be .* from 0 to 64"),
        ({"k": 1000}, "k must be .* from 0 to 64"),
        ({"rule": "exact"}, "rule must be one of match, reject, block"),
        ({"temprature": 1}, "unknown option 'temprature'"),
        ({"slot": 2}, "unknown option 'slot'; did you mean 'slots'"),
        ({"drafter": "n-gram"}, "unknown drafter 'n-gram'; did you mean 'ngram'"),
        ({"drafter": "ngram:most=3"}, "no option 'most'; .*m"),
        ({"drafter": "model"}, "needs path"),
        ({"slots": 0}, "slots must be"),
        ({"max_length": 1}, "max_length must be"),
        ({"dtype": "float16"}, "dtype must be one of"),
        ({"drafter": 3}, "drafter"),
        ({"prefill_chunk": 0}, "prefill_chunk must be"),
    ],
)
def test_options(options: dict[str, Any], words: str, pair: Pair) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        Engine(pair.target, **options)
    assert "\n" not in str(caught.value)


def bias(count: int) -> tuple[tuple[int, float], ...]:
    return tuple((token % VOCAB_SIZE, 1.0) for token in range(count))


@pytest.mark.parametrize(
    ("params", "words"),
    [
        (SamplingParams(temperature=-1.0), "temperature must be .*at least 0"),
        (SamplingParams(temperature=float("nan")), "temperature must be"),
        (SamplingParams(temperature="hot"), "temperature must be"),  # type: ignore[arg-type]
        (SamplingParams(temperature=10**400), "temperature must be .*at least 0"),
        (SamplingParams(top_p=0.0), "top_p must be above 0"),
        (SamplingParams(max_tokens=0), "max_tokens must be .*at least 1"),
        (SamplingParams(max_tokens=3, min_tokens=4), r"min_tokens \(4\) must not exceed"),
        (SamplingParams(seed=-3), "seed must be"),
        (SamplingParams(logprobs=21), "logprobs must be .*0 to 20"),
        (SamplingParams(stop=("",)), "stop must hold"),
        (SamplingParams(stop_after=7), "stop_after must be a text"),  # type: ignore[arg-type]
        (SamplingParams(stop_opened_by="<think>"), "stop_opened_by needs stop_after"),
        (SamplingParams(logit_bias=((VOCAB_SIZE, 1.0),)), f"0 to {VOCAB_SIZE - 1}"),
        (SamplingParams(logit_bias=((-1, 1.0),)), "logit_bias"),
        (SamplingParams(logit_bias=((1, float("-inf")),)), "logit_bias of token 1 must be"),
        (SamplingParams(logit_bias=((1, 1e300),)), "logit_bias"),
        (SamplingParams(logit_bias=((1, 1.0), (1, 2.0))), "logit_bias has token 1 twice"),
        (SamplingParams(presence_penalty=-1e300), "presence_penalty"),
        (SamplingParams(logit_bias=bias(MAX_BIAS + 1)), f"{MAX_BIAS + 1} entries; at most 300"),
        (SamplingParams(stop_token_ids=(VOCAB_SIZE,)), f"0 to {VOCAB_SIZE - 1}"),
        (SamplingParams(stop_token_ids=tuple(range(64))), "too many stop_token_ids; at most 63"),
        # A plain text or mapping where the frozen class wants a tuple.
        (SamplingParams(stop="abc"), "stop must be"),  # type: ignore[arg-type]
        (SamplingParams(stop_token_ids=7), "stop_token_ids must be"),  # type: ignore[arg-type]
        (SamplingParams(logit_bias={5: 1.0}), "logit_bias must be"),  # type: ignore[arg-type]
        ({"temperature": 1.0}, "SamplingParams"),
    ],
)
def test_parameters(params: Any, words: str, engine: Engine) -> None:
    refused(engine, RequestError, words, prompt(1), params)


@pytest.mark.parametrize(
    ("prediction", "words"),
    [
        ([VOCAB_SIZE], "the prediction has token id"),
        ([-2], "the prediction has token id"),
        ([1.5], "the prediction is text or a list of token ids"),
        (["a"], "the prediction is text or a list of token ids"),
        (7, "the prediction is text or a list of token ids"),
    ],
)
def test_predictions(prediction: Any, words: str, engine: Engine) -> None:
    refused(engine, RequestError, words, prompt(1), FINE, prediction=prediction)


def test_the_most_that_is_allowed(opened: Callable[..., Engine]) -> None:
    """300 biases and 64 ids that end a text, all of them used."""
    ids = tuple(token for token in range(200) if token % 4)[: MAX_STOP_IDS - 1]
    biased = tuple((token, -50.0) for token in range(VOCAB_SIZE) if token not in (ids[-1], EOS))
    params = SamplingParams(
        stop_token_ids=ids, logit_bias=(*biased, (EOS, -50.0)), logprobs=20, max_tokens=4
    )
    (one,) = opened(drafter="ngram", k=2).generate([prompt(1)], params)
    assert (one.token_ids, one.finish, one.stop_reason) == ((ids[-1],), "stop", ids[-1])


def test_no_prompts(engine: Engine) -> None:
    assert engine.generate([]) == []
    with pytest.raises(RequestError, match="empty: give at least one token"):
        engine.submit([])


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ([], "the text has 0 tokens; 1 to 64 can be read"),
        ([1] * 500, "the text has 500 tokens; 1 to 64 can be read"),
        ([VOCAB_SIZE], "vocabulary holds"),
        ([-1], "vocabulary holds"),
        ("abc", r"list of token ids; engine\.tokenizer encodes one, not 'abc'"),
        (None, "list of token ids"),
        ([1.5], "list of token ids"),
        ([True], "list of token ids"),
        (torch.tensor([1]), "list of token ids"),
    ],
)
def test_scoring(tokens: Any, words: str, engine: Engine) -> None:
    for ask in (engine.score, engine.prompt_logprobs):
        with pytest.raises(RequestError, match=words):
            ask(tokens)


class Greedy(Drafter):
    """Asks for a layer that there is not."""

    name = "greedy"
    needs = Needs(features=(1, 3))

    def propose(self, rows: Rows, k: int, draw: Draw) -> Draft:
        raise AssertionError


def test_a_drafter_that_needs_too_much(pair: Pair) -> None:
    with pytest.raises(ConfigError, match=r"'greedy' .*layer 3.* 0 to 2"):
        Engine(pair.target, drafter=Greedy(), dtype="float32", threads=1)
