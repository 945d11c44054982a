"""What measures with an engine: a text that is given, what rounds cost, one K beside another.

The half of `engine.Engine` that writes no text. Asks the engine's thread and waits for the answer;
knows no requests.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from paceline.config import MAX_LOGPROBS, check_k
from paceline.engine.costs import Costs
from paceline.engine.driver import Driver
from paceline.engine.fixed import FixedK
from paceline.engine.loop import Loop
from paceline.engine.pilot import Pilot
from paceline.engine.requests import check_ids, token_ids
from paceline.engine.scoring import Scorer
from paceline.errors import RequestError
from paceline.types import Limits, TokenLogprob

_T = TypeVar("_T")


class Instruments(ABC):
    """The engine's questions. Its fields are set where an engine is opened."""

    _driver: Driver
    _loop: Loop
    _limits: Limits
    _pilot: Pilot  # as the engine was opened, also while one K is fixed
    _widest: int
    _chooses: bool
    _costs: Callable[[float | None], Costs]

    @abstractmethod
    def _check_open(self) -> None:
        """Raise what ended the engine, if anything did."""

    def score(self, tokens: Sequence[int]) -> Tensor:
        """The target's raw logits [n, V] after each of `tokens`, in one pass (float32 or 64).

        For measuring: exp(log_softmax(score(t))[i, t[i + 1]]) is the probability of token i + 1.
        Raises RequestError for tokens that cannot be read, or that memory has no room for.
        """
        ids = self._given(tokens)
        loop, device = self._loop, self._limits.device

        def logits() -> Tensor:
            target = loop.machine.target
            return Scorer(target.spec, ids, device).logits(target, len(ids))

        return self._read(ids, logits)

    def prompt_logprobs(self, tokens: Sequence[int], top: int = 0) -> Iterator[list[TokenLogprob]]:
        """The target's raw log-probabilities of all `tokens` but the first, and of the `top` most
        likely at each place, a piece at a time: the rounds of others go on between two pieces,
        however many ask.

        Nothing is read before the first piece is asked for, nor after the last that is. Raises
        RequestError at once for tokens that cannot be read, and for a `top` that is no count.
        """
        ids = self._given(tokens)
        if type(top) is not int or top < 0:
            raise RequestError(f"top must be a whole number of at least 0, not {top!r}")
        return self._pieces(ids, min(top, MAX_LOGPROBS))

    def _pieces(self, ids: list[int], top: int) -> Iterator[list[TokenLogprob]]:
        loop, device = self._loop, self._limits.device
        scorer = self._read(ids, lambda: Scorer(loop.machine.target.spec, ids, device))
        while piece := self._read(ids, lambda: loop.score(scorer, top)):
            yield list(piece)

    def _read(self, ids: list[int], question: Callable[[], _T]) -> _T:
        """The answer to a question for which the text `ids` is read beside the caches."""
        try:
            return self._driver.ask(question, heavy=True)
        except torch.OutOfMemoryError:
            raise RequestError(
                f"a text of {len(ids)} tokens does not fit beside the caches; score a shorter "
                "one, or open the engine with a smaller memory or cache_tokens"
            ) from None

    def _given(self, tokens: Sequence[int]) -> list[int]:
        """The tokens of a text to read. Raises RequestError, and where the engine has ended."""
        self._check_open()
        ids = token_ids(tokens, "the text is a list of token ids; engine.tokenizer encodes one")
        if not 0 < len(ids) <= self._limits.max_length:
            raise RequestError(
                f"the text has {len(ids)} tokens; 1 to {self._limits.max_length} can be read"
            )
        check_ids("the text", ids, self._limits.vocab_size)
        return ids

    def costs(self, seconds: float | None = None) -> Costs:
        """What rounds cost here: as measured when the engine opened and corrected by live rounds.

        seconds: measure anew, in about so many; also where nothing was measured (K is fixed). That
        writes over the caches, so it is for an engine that has written nothing yet, or keeps
        nothing (`prefix_cache=False`) and is idle: else RequestError.
        """
        self._check_open()

        def told() -> Costs:
            pages = self._loop.scheduler.pages
            anew = seconds is not None or not self._chooses
            if anew and (not self._loop.idle or pages.used or pages.cached):
                raise RequestError(
                    "costs are measured where nothing is in the caches: ask before the first text, "
                    "or open the engine with prefix_cache=False and wait until it is idle"
                )
            return self._costs(seconds)

        return self._driver.ask(told, heavy=True)

    def fix_k(self, k: int | None) -> None:
        """From here on every round drafts k tokens, 0 is plain decoding; None: as the engine was
        opened. For measuring one K beside another: it changes when tokens come, and under `match`
        never which. Raises RequestError for a k that the engine is not made for (where rounds are
        recorded, one between two that were), and while texts are being written."""
        self._check_open()
        if k is not None:
            check_k(k, self._widest)

        def exchange() -> None:
            width = self._loop.rounds.width
            if k is not None and width(k) != k:
                there = ", ".join(str(n) for n in range(k) if width(n) == n)
                raise RequestError(
                    f"no round of {k} drafts was recorded: take one of {there} or {width(k)}"
                )
            if not self._loop.idle:
                raise RequestError("texts are being written: fix k before, or when they have ended")
            self._loop.pilot = self._pilot if k is None else FixedK(k)

        self._driver.ask(exchange)
