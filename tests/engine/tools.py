"""What the engine's tests share: cases, drafters of a test's own, a loop that reads streams."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from helpers import EOS, VOCAB_SIZE
from torch import Tensor

from paceline import Engine, Event, SamplingParams, TokenLogprob
from paceline.drafters.base import Drafter, Draw
from paceline.types import Draft, Limits, Request, Rows

PRINTABLE = range(32, 127)


@dataclass(frozen=True, slots=True)
class Pair:
    """Folders of a target and of a draft model that has nothing to do with it."""

    target: Path
    other: Path


@dataclass(frozen=True, slots=True)
class Case:
    """One request. `prediction` is text the user expects."""

    prompt: list[int]
    params: SamplingParams
    prediction: tuple[int, ...] | None = None
    k: int | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What a request's events add up to."""

    token_ids: tuple[int, ...]
    text: str
    finish: str | None
    stop_reason: str | int | None
    logprobs: tuple[TokenLogprob, ...]


def prompt(seed: int, length: int = 11) -> list[int]:
    """Token ids of plain bytes."""
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = torch.randint(256, (length,), generator=generator).tolist()
    return ids


def joined(events: Sequence[Event]) -> Result:
    """The whole text of a request's events, of which the last alone has a finish."""
    assert [event.finish is None for event in events] == [True] * (len(events) - 1) + [False]
    for event in events:
        assert len(event.sources) == len(event.token_ids)
        assert event.logprobs is None or len(event.logprobs) == len(event.token_ids)
    return Result(
        tuple(token for event in events for token in event.token_ids),
        "".join(event.text for event in events),
        events[-1].finish,
        events[-1].stop_reason,
        tuple(one for event in events for one in event.logprobs or ()),
    )


def together(
    engine: Engine, cases: Sequence[Case], k: int | None = None, in_order: bool = False
) -> list[Result]:
    """Write all cases at once; a case's own k goes before `k`. in_order: no text is begun before
    the last case is there, so that the n-th has slot n."""
    with engine._driver.held() if in_order else nullcontext():
        streams = [
            engine.stream(
                case.prompt,
                case.params,
                prediction=case.prediction,
                k=k if case.k is None else case.k,
            )
            for case in cases
        ]
    return [joined(list(stream)) for stream in streams]


def comes_to_rest(engine: Engine) -> None:
    """Wait until nothing is left to do: a round launched ahead ends after the text it was for."""
    until = time.monotonic() + 60
    while not engine._driver.ask(lambda: engine._loop.idle):
        assert time.monotonic() < until, "the engine does not come to rest"


def alone(engine: Engine, cases: Sequence[Case], k: int | None = None) -> list[Result]:
    """Write one case after the other."""
    return [result for case in cases for result in together(engine, [case], k)]


def same(left: Result, right: Result, tolerance: float = 1e-9, ties: bool = False) -> None:
    """Assert that two results are equal, log-probabilities up to `tolerance`.

    ties: logits may be equal to the bit, as in bfloat16, and `topk` may name either token.
    """
    assert left.token_ids == right.token_ids
    assert left.text == right.text
    assert (left.finish, left.stop_reason) == (right.finish, right.stop_reason)
    assert len(left.logprobs) == len(right.logprobs)
    for one, other in zip(left.logprobs, right.logprobs, strict=True):
        assert one.token_id == other.token_id
        assert abs(one.logprob - other.logprob) <= tolerance
        assert ties or [token for token, _ in one.top] == [token for token, _ in other.top]
        for (_, a), (_, b) in zip(one.top, other.top, strict=True):
            assert abs(a - b) <= tolerance


def readable(params: SamplingParams) -> SamplingParams:
    """Bias towards printable bytes, so that stop strings have characters to find."""
    extra = tuple((token, 9.0) for token in PRINTABLE)
    return replace(params, logit_bias=params.logit_bias + extra)


EVERYTHING = readable(
    SamplingParams(
        temperature=1.0,
        top_k=60,
        top_p=0.95,
        min_p=0.004,
        repetition_penalty=1.2,
        presence_penalty=0.3,
        frequency_penalty=0.2,
        logit_bias=((EOS, 2.0), (7, 1.5), (200, -float(4))),
        seed=11,
        max_tokens=26,
        min_tokens=7,
        logprobs=3,
    )
)


class RandomDrafter(Drafter):
    """Proposes tokens and counts at random: always the same for one prompt at one position,
    whoever shares the batch and whenever its requests came in."""

    name: ClassVar[str] = "random"

    def __init__(self, seed: int = 0, low: int = 0, high: int = VOCAB_SIZE) -> None:
        """Tokens from low to high - 1."""
        self._seed, self._low, self._high = seed, low, high
        self._prompts: dict[int, tuple[int, ...]] = {}

    def admit(self, slot: int, request: Request) -> None:
        self._prompts[slot] = request.prompt

    def propose(self, rows: Rows, k: int, draw: Draw) -> Draft:
        tokens, counts = [], []
        for slot, length in zip(rows.index.tolist(), rows.length.tolist(), strict=True):
            rng = random.Random(f"{self._seed} {self._prompts.get(slot)} {length}")
            tokens.append([rng.randrange(self._low, self._high) for _ in range(k)])
            counts.append(rng.randint(0, k))
        count = torch.tensor(counts)
        return Draft(torch.tensor(tokens), count, torch.zeros_like(count))


class KnownDrafter(Drafter):
    """Proposes the known continuation of a prompt, token for token."""

    name: ClassVar[str] = "known"

    def __init__(self, texts: dict[tuple[int, ...], tuple[int, ...]]) -> None:
        """texts: prompt to answer."""
        self.texts = texts
        self._full: dict[int, tuple[int, ...]] = {}

    def bind(self, target: Any, limits: Limits) -> None:
        self._full = dict.fromkeys(range(limits.slots), ())

    def admit(self, slot: int, request: Request) -> None:
        self._full[slot] = request.prompt + self.texts.get(request.prompt, ())

    def propose(self, rows: Rows, k: int, draw: Draw) -> Draft:
        tokens, counts = [], []
        for slot, length in zip(rows.index.tolist(), rows.length.tolist(), strict=True):
            ahead = self._full[slot][length : length + k]
            tokens.append([*ahead, *[0] * (k - len(ahead))])
            counts.append(len(ahead))
        count = torch.tensor(counts)
        return Draft(torch.tensor(tokens), count, torch.zeros_like(count))


class Holes(Drafter):
    """Draws through `draw`, but after one of its own tokens it has no numbers at all."""

    name: ClassVar[str] = "holes"

    def propose(self, rows: Rows, k: int, draw: Draw) -> Draft:
        size = rows.length.shape[0]
        drafted = rows.length.new_zeros(size, 0)
        scores: list[Tensor] = []
        for _ in range(k):
            logits = torch.zeros(size, VOCAB_SIZE, dtype=torch.float64)
            if drafted.shape[1]:
                logits[drafted[:, -1] == 66] = float("nan")
            token, score = draw.step(logits, drafted)
            drafted = torch.cat((drafted, token.unsqueeze(1)), 1)
            if score is not None:
                scores.append(score)
        count = torch.full_like(rows.length, k)
        stored = torch.stack(scores, 1) if scores else None
        return Draft(drafted, count, torch.zeros_like(count), stored)
