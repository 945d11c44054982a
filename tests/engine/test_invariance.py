"""Under `match` the text is a function of target, parameters and seed alone.

Whatever drafts, at any K, in any company, with any prefill chunk: the same tokens, text, ending
and log-probabilities as plain decoding of the request alone. In float64, where no tie is near.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from helpers import EOS
from tests.engine.tools import (
    EVERYTHING,
    Case,
    KnownDrafter,
    Pair,
    RandomDrafter,
    Result,
    alone,
    prompt,
    readable,
    same,
    together,
)

from paceline import Engine, SamplingParams
from paceline.drafters.base import Drafter
from paceline.drafters.replay import ReplayDrafter, ReplayOptions
from paceline.ops.linear import kept

MAX_K = 8
TOKENS = 26


def plain_engine(target: Path) -> Engine:
    return Engine(target, dtype="float64", threads=1, max_length=192, slots=1, k=0)


@cache
def cases(target: Path) -> tuple[Case, ...]:
    """Requests of every kind. Stops are taken from what the request says without them."""
    greedy = SamplingParams(max_tokens=TOKENS, logprobs=2)
    sampled = readable(replace(greedy, temperature=1.0, seed=5))
    stopped = replace(sampled, seed=6)
    with plain_engine(target) as engine:
        free = together(engine, [Case(prompt(4), stopped)])[0]
        ended = together(engine, [Case(prompt(5), replace(EVERYTHING, min_tokens=0))])[0]
    # Three characters that cross tokens; a token from the middle.
    assert len(free.text) > 16, free
    stop, stop_id = free.text[12:15], ended.token_ids[9]
    return (
        Case(prompt(1), greedy),
        Case(prompt(2), replace(greedy, repetition_penalty=1.3, frequency_penalty=0.4)),
        Case(prompt(3, 5), sampled),
        Case(prompt(4), replace(stopped, stop=("\x00never", stop))),
        Case(prompt(5), replace(EVERYTHING, min_tokens=0, stop_token_ids=(stop_id,))),
        Case(prompt(6, 1), EVERYTHING),
        Case(prompt(7), replace(EVERYTHING, min_tokens=12, seed=2, stop_token_ids=(stop_id,))),
        Case(prompt(8, 30), replace(EVERYTHING, temperature=0.6, ignore_eos=True)),
        # Two tokens in random order, so that an n-gram is right at times.
        Case(
            prompt(9), replace(greedy, temperature=1.0, seed=1, logit_bias=((65, 40.0), (66, 40.0)))
        ),
    )


@cache
def plain(target: Path) -> tuple[Result, ...]:
    """What plain decoding says to each case, alone."""
    with plain_engine(target) as engine:
        return tuple(alone(engine, cases(target)))


def test_the_cases_end_in_every_way(pair: Pair) -> None:
    """Else equality below would say less than it seems to."""
    results = plain(pair.target)
    reasons = {(one.finish, type(one.stop_reason)) for one in results}
    assert {("length", type(None)), ("stop", str), ("stop", int)} <= reasons
    assert len({one.token_ids for one in results}) == len(results)
    assert all(len(one.token_ids) > 4 for one in results)


def right(target: Path) -> dict[tuple[int, ...], tuple[int, ...]]:
    pairs = zip(cases(target), plain(target), strict=True)
    return {tuple(case.prompt): result.token_ids for case, result in pairs}


def predicting(target: Path, wrong: bool) -> list[Case]:
    """The cases with what will be said as prediction, or with a part of it and other text."""
    every = []
    for case, result in zip(cases(target), plain(target), strict=True):
        text = result.token_ids
        every.append(
            replace(case, prediction=(9, 8, *text[:6], 7, 7, *text[12:16]) if wrong else text)
        )
    return every


def drafter(name: str, pair: Pair) -> Drafter | str:
    """A drafter as a user would name it, or one made by the test."""
    made: dict[str, Drafter | str] = {
        "none": "none",
        "ngram": "ngram:min=1",
        "unrelated model": f"model:path={pair.other}",
        "target itself": f"model:path={pair.target}",
        "right prediction": "predicted",
        "wrong prediction": "predicted",
        "mix": f"predicted+ngram+model:path={pair.other}",
        "random": RandomDrafter(),
    }
    if name.startswith("replay"):
        error = 0.0 if name == "replay" else 0.3
        return ReplayDrafter(ReplayOptions(error=error), right(pair.target))
    return made[name]


DRAFTERS = (
    "none",
    "ngram",
    "unrelated model",
    "target itself",
    "right prediction",
    "wrong prediction",
    "replay",
    "replay, spoiled",
    "mix",
    "random",
)


@pytest.mark.parametrize("name", DRAFTERS)
def test_no_drafter_changes_a_text(name: str, pair: Pair, opened: Callable[..., Engine]) -> None:
    """Every K from 0 to 8, all cases in one batch."""
    asked = list(cases(pair.target))
    if "prediction" in name or name == "mix":
        asked = predicting(pair.target, wrong=name != "right prediction")
    engine = opened(drafter=drafter(name, pair), k=MAX_K, slots=len(asked))
    for k in range(MAX_K + 1):
        for got, expected in zip(together(engine, asked, k), plain(pair.target), strict=True):
            same(got, expected)
    accepted = engine.stats().accepted
    assert accepted == 0 if name == "none" else accepted > 0


@pytest.mark.parametrize("k", [2, 5])
def test_alone_and_in_company(k: int, pair: Pair, opened: Callable[..., Engine]) -> None:
    """One row at a time through few slots, and rows that come and go among others."""
    asked = list(cases(pair.target))
    for slots in (1, 3):
        engine = opened(drafter="ngram:min=1", k=k, slots=slots)
        for run in (alone, together):
            for got, expected in zip(run(engine, asked), plain(pair.target), strict=True):
                same(got, expected)


def test_rows_of_different_k_in_one_batch(pair: Pair, opened: Callable[..., Engine]) -> None:
    every = (0, 8, 1, 3, 0, 5, 2, 7, 4)
    asked = [replace(case, k=k) for k, case in zip(every, cases(pair.target), strict=True)]
    for spec in (f"model:path={pair.target}", f"model:path={pair.other}", "ngram:min=1"):
        engine = opened(drafter=spec, k=MAX_K, slots=4)
        for got, expected in zip(together(engine, asked), plain(pair.target), strict=True):
            same(got, expected)


@pytest.mark.parametrize("chunk", [1, 3, 256])
def test_prefill_chunk(chunk: int, pair: Pair, opened: Callable[..., Engine]) -> None:
    asked = list(cases(pair.target))
    engine = opened(draft=pair.target, k=4, slots=3, prefill_chunk=chunk)
    for got, expected in zip(together(engine, asked), plain(pair.target), strict=True):
        same(got, expected)
    # A cache that misses a position would show as a draft that is no longer perfect.
    stats = engine.stats()
    assert stats.accepted > 0.95 * stats.evaluated


@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(
            dtype,
            marks=pytest.mark.skipif(
                kept(getattr(torch, dtype), torch.device("cpu")) is None,
                reason=f"no products of our own in {dtype} on this machine",
            ),
        )
        for dtype in ("bfloat16", "float32")
    ],
)
def test_the_dtypes_that_are_timed(dtype: str, pair: Pair, opened: Callable[..., Engine]) -> None:
    """A row's sums do not depend on the window's width, so that here too nothing changes."""
    asked = [replace(case, k=None) for case in cases(pair.target)]
    expected = alone(opened(dtype=dtype, slots=1, k=0), asked)
    for made in (RandomDrafter(), f"model:path={pair.other}", KnownDrafter(right(pair.target))):
        engine = opened(dtype=dtype, drafter=made, k=MAX_K, slots=5, prefill_chunk=16)
        for k in (1, 4, 8):
            for got, wanted in zip(together(engine, asked, k), expected, strict=True):
                same(got, wanted, tolerance=0.0, ties=dtype == "bfloat16")


def test_a_seed_is_a_text(pair: Pair, opened: Callable[..., Engine]) -> None:
    """Other seeds give other texts; the engine's seed stands in for a request's."""
    params = SamplingParams(temperature=1.0, max_tokens=12, ignore_eos=True)
    engine = opened(drafter="ngram", k=3, seed=4)
    texts = [engine.generate([prompt(1)], replace(params, seed=s))[0].token_ids for s in range(6)]
    assert len(set(texts)) == 6
    (unseeded,) = engine.generate([prompt(1)], params)
    assert unseeded.seed == 4
    assert unseeded.token_ids == texts[4]
    drawn = [opened().generate([prompt(1)], params)[0] for _ in range(2)]
    assert drawn[0].seed != drawn[1].seed
    again = opened(drafter="ngram", k=2)
    (text,) = again.generate([prompt(1)], replace(params, seed=drawn[0].seed))
    assert text.token_ids == drawn[0].token_ids


def test_the_end_of_sequence_is_drawn_at_every_k(pair: Pair, opened: Callable[..., Engine]) -> None:
    """A text that ends by itself, with and without the tokens after it in the draft."""
    params = readable(
        SamplingParams(temperature=1.0, seed=3, max_tokens=60, logit_bias=((EOS, 12.0),))
    )
    (expected,) = together(opened(k=0), [Case(prompt(1), params)])
    assert expected.finish == "stop"
    assert expected.stop_reason is None
    assert expected.token_ids[-1] == EOS
    longer = (*expected.token_ids, 65, 66, 67, 68)
    engine = opened(drafter=ReplayDrafter(answers={tuple(prompt(1)): longer}), k=MAX_K)
    for k in range(MAX_K + 1):
        same(together(engine, [Case(prompt(1), params)], k)[0], expected)
