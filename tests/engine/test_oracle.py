"""Plain decoding against a loop that shares nothing with it but the noise.

transformers' model in float64, no cache; the request's processors step by step over Python
numbers (`tests.speculation.oracle`); text by decoding bytes; stops by looking at the whole text
after every token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from helpers import EOS, VOCAB_SIZE, tiny_model
from tests.engine.tools import EVERYTHING, Case, prompt, readable, together
from tests.speculation import oracle

from paceline import Engine, SamplingParams
from paceline.speculation.noise import Stream, gumbel, keys

# transformers normalises in float32 inside a float64 model, so its logits are that precise.
LOGIT_ERROR = 2e-5
# Scores that lie nearer than this could fall to either side.
MARGIN = 2e-4


@cache
def model() -> Any:
    return tiny_model(seed=0, dtype=torch.float64)


def logits_after(ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model()(torch.tensor([ids])).logits[0, -1]  # type: ignore[no-any-return]


def decoded(ids: list[int]) -> str:
    return bytes(token for token in ids if token < 256).decode("utf-8", "replace")


@dataclass
class Written:
    """What the loop wrote. logprobs: of each token, the whole vector."""

    token_ids: list[int]
    text: str
    finish: str
    stop_reason: str | int | None
    logprobs: list[torch.Tensor]


def weights(x: list[float], before: list[int], said: list[int], params: SamplingParams) -> Any:
    stops = () if params.ignore_eos else (EOS,)
    return oracle.distribution(
        x,
        before,
        said,
        position=len(said),
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        repetition=params.repetition_penalty,
        presence=params.presence_penalty,
        frequency=params.frequency_penalty,
        bias=dict(params.logit_bias),
        stop_ids=(*stops, *params.stop_token_ids),
        min_position=params.min_tokens,
    )


def write(before: list[int], params: SamplingParams) -> Written:
    said: list[int] = []
    logprobs: list[torch.Tensor] = []
    stops = set(params.stop_token_ids) | (set() if params.ignore_eos else {EOS})
    while True:
        x = logits_after(before + said)
        noise = [0.0] * VOCAB_SIZE
        if params.temperature > 0:
            assert params.seed is not None
            place = torch.tensor([[len(before) + len(said)]])
            key = keys(torch.tensor([params.seed]), Stream.TARGET, place)
            noise = gumbel(key, VOCAB_SIZE, torch.float64)[0, 0].tolist()
        p = weights(x.tolist(), before, said, params)
        scores = [oracle.log(w) + g for w, g in zip(p, noise, strict=True)]
        first, second = sorted(scores, reverse=True)[:2]
        assert first - second > MARGIN, "a near tie: choose another seed"
        said.append(oracle.argmax(scores))
        logprobs.append(x.log_softmax(-1))
        text = decoded(said)
        if len(said) > params.min_tokens:
            for stop in params.stop:
                if stop in text:
                    return Written(said, text[: text.index(stop)], "stop", stop, logprobs)
        if said[-1] in stops:
            reason = None if said[-1] == EOS else said[-1]
            return Written(said, decoded(said[:-1]), "stop", reason, logprobs)
        if len(said) == params.max_tokens:
            return Written(said, text, "length", None, logprobs)


GREEDY = SamplingParams(max_tokens=24, logprobs=4, seed=1)
SAMPLED = replace(GREEDY, temperature=1.0)
KINDS: dict[str, SamplingParams] = {
    "greedy": GREEDY,
    "sampled": SAMPLED,
    "cool": replace(SAMPLED, temperature=0.3),
    "hot": replace(SAMPLED, temperature=2.5),
    "top-k": replace(SAMPLED, top_k=4),
    "top-p": replace(SAMPLED, top_p=0.6),
    "min-p": replace(SAMPLED, min_p=0.1),
    "repetition": replace(GREEDY, repetition_penalty=1.4),
    "presence": replace(GREEDY, presence_penalty=1.1),
    "frequency": replace(readable(SAMPLED), frequency_penalty=0.9),
    "minimum": replace(SAMPLED, min_tokens=10, logit_bias=((EOS, 30.0), (7, 8.0))),
    "ignored end": replace(SAMPLED, ignore_eos=True, logit_bias=((EOS, 6.0),)),
    "stop string": replace(readable(SAMPLED), stop=("zz", "q"), max_tokens=60),
    "stop id": replace(readable(SAMPLED), stop_token_ids=(65, 66, 67), max_tokens=60),
    "everything": EVERYTHING,
}


@pytest.mark.parametrize("kind", KINDS)
def test_plain_text_is_the_loops(kind: str, opened: Callable[..., Engine]) -> None:
    params = KINDS[kind]
    cases = [Case(prompt(21), params), Case(prompt(22, 1), replace(params, seed=7))]
    for case, result in zip(cases, together(opened(k=0), cases), strict=True):
        expected = write(case.prompt, case.params)
        assert list(result.token_ids) == expected.token_ids
        assert result.text == expected.text
        assert (result.finish, result.stop_reason) == (expected.finish, expected.stop_reason)
        for one, vector in zip(result.logprobs, expected.logprobs, strict=True):
            best = vector.topk(params.logprobs or 0)
            assert one.logprob == pytest.approx(vector[one.token_id].item(), abs=LOGIT_ERROR)
            assert [value for _, value in one.top] == pytest.approx(
                best.values.tolist(), abs=LOGIT_ERROR
            )
            assert [token for token, _ in one.top] == best.indices.tolist()


def test_the_kinds_differ() -> None:
    """A parameter that changed nothing would not be tested."""
    texts = {kind: tuple(write(prompt(21), params).token_ids) for kind, params in KINDS.items()}
    assert len(set(texts.values())) == len(texts)
    for kind in ("stop string", "stop id"):
        assert write(prompt(21), KINDS[kind]).finish == "stop"


@pytest.mark.parametrize("wanted", [0, 1, 20])
def test_how_many_logprobs(wanted: int, opened: Callable[..., Engine]) -> None:
    params = SamplingParams(max_tokens=6, logprobs=wanted)
    other = replace(params, logprobs=None)
    engine = opened(drafter="ngram", k=2)
    first, second = together(engine, [Case(prompt(1), params), Case(prompt(1), other)])
    assert [len(one.top) for one in first.logprobs] == [wanted] * 6
    assert second.logprobs == ()
    assert all(
        sorted(one.top, key=lambda pair: -pair[1]) == list(one.top) for one in first.logprobs
    )
