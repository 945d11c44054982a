"""How a request comes in: from what a caller asks for to a sequence in the loop, and its handle.

Every check is made here, in the caller's thread, and grammars are compiled in it; the loop is told
with a command. Knows no device.
"""

from __future__ import annotations

import itertools
import secrets
import threading
import time
from collections.abc import Sequence as Seq
from dataclasses import replace

from paceline.config import EngineConfig, check_request
from paceline.engine.build import Opened
from paceline.engine.driver import Driver
from paceline.engine.handle import Handle
from paceline.engine.outbox import Reader
from paceline.engine.requests import Prompt, build_request
from paceline.engine.sequence import Sequence
from paceline.errors import RequestError
from paceline.text.grammar import Grammars
from paceline.types import Constraint, Grammar, Request, SamplingParams


class Intake:
    """Makes requests and hands them over. For any thread."""

    def __init__(self, config: EngineConfig, opened: Opened, driver: Driver) -> None:
        self._config, self._driver, self._loop = config, driver, opened.loop
        self._tokenizer, self._eos = opened.tokenizer, opened.eos_ids
        self._limits, self._widest = opened.budget.limits, opened.widest
        self._grammars: Grammars | None = None
        self._grammars_lock = threading.Lock()
        self._ids = itertools.count(1)

    def take(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        *,
        prediction: str | Seq[int] | None = None,
        k: int | None = None,
        priority: int = 0,
        deadline: float | None = None,
        grammar: Grammar | None = None,
    ) -> Handle:
        """Queue one text; see `Engine.submit`. Raises RequestError at once for one that cannot be
        served."""
        check_request(k, self._config.k, priority, deadline)
        request = build_request(
            f"r{next(self._ids)}",
            prompt,
            params or SamplingParams(),
            prediction,
            self._tokenizer,
            self._limits,
            self._eos,
        )
        seed = request.seed
        if params is None or params.seed is None:
            seed = self._config.seed if self._config.seed is not None else secrets.randbits(63)
        until = None if deadline is None else time.monotonic() + deadline
        constraint = None if grammar is None else self._constraint(grammar, request)
        request = replace(
            request, seed=seed, priority=priority, deadline=until, constraint=constraint
        )
        loop, driver = self._loop, self._driver
        loop.scheduler.extent(request)  # refuses what can never fit
        sequence = Sequence(request, min(self._widest, self._config.k if k is None else k))
        reader = Reader(request, self._tokenizer, self._eos, sequence.stats)
        handle = Handle(
            reader, lambda: driver.post(lambda: loop.ledger.drop(sequence, "cancelled"))
        )
        reader.notify = lambda: driver.touch(handle)
        driver.post(lambda: loop.submit(sequence, reader))
        return handle

    def _constraint(self, grammar: Grammar, request: Request) -> Constraint:
        """`grammar` for one text. Raises RequestError."""
        constraint = self.compiler().compile(grammar)
        if constraint.ends and request.params.ignore_eos:
            raise RequestError("a grammar says where a text ends: leave ignore_eos out")
        return constraint

    def compiler(self) -> Grammars:
        """What compiles grammars, made when the first one is asked for."""
        with self._grammars_lock:
            if self._grammars is None:
                eos = sorted(self._eos)
                self._grammars = Grammars(self._tokenizer, self._limits.vocab_size, eos)
            return self._grammars
