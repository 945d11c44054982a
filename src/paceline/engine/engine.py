"""The engine: the public way in. Opens models, takes requests, hands out events.

Whoever reads events drives the loop, one caller at a time; every step moves all requests on.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from collections.abc import Sequence as Seq
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from paceline.config import EngineConfig
from paceline.drafters import Drafter
from paceline.engine.build import Progress, on_device, open_machine, quiet
from paceline.engine.outbox import Reader
from paceline.engine.requests import Prompt, as_prompts, build_request, check_ids
from paceline.engine.scheduler import Sequence
from paceline.errors import ConfigError, EngineClosedError, RequestError
from paceline.kv.pools import KVPool
from paceline.ops.attention import BLOCK
from paceline.types import Completion, Event, Limits, SamplingParams, SequenceStats, Window

# What a stream's generator gives to `stream` itself, never to a caller.
_STARTED = Event("", (), "", ())


class Engine:
    """Writes text with a target model, sooner with a drafter, and never another text.

    >>> with Engine("mini-target", draft="mini-draft") as engine:
    ...     print(engine.generate("def add(a, b):")[0].text)
    """

    def __init__(
        self,
        target: str | Path,
        *,
        drafter: str | Drafter | None = None,
        draft: str | Path | None = None,
        progress: Progress | None = None,
        **options: object,
    ) -> None:
        """Open `target` (a folder, "mini-target" or a hub id) and a drafter.

        drafter: a name such as "model", "ngram", "predicted", "ngram+model" (row by row the
        first that has a draft), with options as "ngram:max=6", or a `Drafter`; default "model"
        where `draft` is given, else "none". draft: the draft model's folder. progress(what, done,
        all) is called while it opens; all is 0 where nobody can say. options: the other fields of
        `EngineConfig` (k, rule, dtype, device, slots, max_length, threads, prefill_chunk, seed,
        capture, memory). Raises ConfigError and CheckpointError, one line each.
        """
        if drafter is not None and not isinstance(drafter, str | Drafter):
            raise ConfigError(f"drafter must be a name or a Drafter, not {drafter!r}")
        name = drafter if isinstance(drafter, str) else None
        self.config = EngineConfig.make(
            target=str(target),
            drafter=name or ("model" if draft is not None else "none"),
            draft=None if draft is None else str(draft),
            **options,
        )
        self._lock = threading.Lock()
        self._left: deque[Sequence] = deque()
        self._closed = False
        self._ids = itertools.count(1)
        self._worker: ThreadPoolExecutor | None = None
        self._on_device = on_device(self.config.device)
        with self._on_device():
            opened = open_machine(
                self.config, drafter if isinstance(drafter, Drafter) else None, progress or quiet
            )
        self.tokenizer, self.threads = opened.tokenizer, opened.threads
        self._loop, self._eos = opened.loop, opened.eos_ids
        self._budget, self._limits = opened.budget, opened.budget.limits

    # --- requests ---

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        prediction: str | Seq[int] | None = None,
        k: int | None = None,
    ) -> Iterator[Event]:
        """Write one text; yields an event a round. Leaving the loop early cancels the request.

        prompt: text, token ids, or chat messages (a list of {"role", "content"}). prediction:
        text the user expects, for the "predicted" drafter. k: draft tokens for this request, at
        most the engine's; 0 is plain decoding. Raises RequestError at once for a request that
        cannot be served, NumericsError where its logits are not finite.
        """
        events = self._events(*self._submit(prompt, params, prediction, k))
        next(events)  # inside its `try` from here on: dropping it unread cancels the request too
        return events

    def _events(self, sequence: Sequence, reader: Reader) -> Iterator[Event]:
        try:
            yield _STARTED
            while reader.events or not reader.closed:
                yield self._next(reader)
        finally:
            self._cancel(sequence)
        if reader.error is not None:
            raise reader.error

    async def astream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        prediction: str | Seq[int] | None = None,
        k: int | None = None,
    ) -> AsyncIterator[Event]:
        """`stream` for asyncio: the rounds run in a thread of the engine's own."""
        sequence, reader = self._submit(prompt, params, prediction, k)
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="paceline")
        running = asyncio.get_running_loop()
        try:
            while reader.events or not reader.closed:
                self._check_open()  # the worker of a closed engine takes no work
                yield await running.run_in_executor(self._worker, self._next, reader)
        finally:
            self._cancel(sequence)
        if reader.error is not None:
            raise reader.error

    def generate(
        self,
        prompts: Prompt | Seq[Prompt],
        params: SamplingParams | None = None,
        *,
        prediction: str | Seq[int] | None = None,
        k: int | None = None,
    ) -> list[Completion]:
        """Write whole texts, several at once where there are slots; results in order.

        prompts: one prompt or a list of prompts (text, token ids or chat messages each). See
        `stream`. A request that fails raises its error after the others have finished.
        """
        every = as_prompts(prompts)
        pairs: list[tuple[Sequence, Reader]] = []
        try:
            for prompt in every:
                pairs.append(self._submit(prompt, params, prediction, k))
            for _, reader in pairs:
                while not reader.closed:
                    self._step()
        finally:
            for sequence, _ in pairs:
                self._cancel(sequence)
        for _, reader in pairs:
            if reader.error is not None:
                raise reader.error
        return [reader.completion() for _, reader in pairs]

    def _submit(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        prediction: str | Seq[int] | None,
        k: int | None,
    ) -> tuple[Sequence, Reader]:
        self._check_open()
        if k is not None and (type(k) is not int or not 0 <= k <= self.config.k):
            raise ConfigError(
                f"k must be a whole number from 0 to the engine's {self.config.k}, not {k!r}; "
                "open the engine with the largest k you need"
            )
        request = build_request(
            f"r{next(self._ids)}",
            prompt,
            params or SamplingParams(),
            prediction,
            self.tokenizer,
            self._limits,
            self._eos,
        )
        if params is None or params.seed is None:
            request = replace(
                request,
                seed=self.config.seed if self.config.seed is not None else secrets.randbits(63),
            )
        most = self._loop.machine.drafter.needs.most
        wanted = self.config.k if k is None else k
        sequence = Sequence(request, wanted if most is None else min(wanted, most))
        reader = Reader(request, self.tokenizer, self._eos, sequence.stats)
        with self._lock:
            self._loop.submit(sequence, reader)
        return sequence, reader

    def _next(self, reader: Reader) -> Event:
        while not reader.events:
            self._step()
        return reader.events.popleft()

    def _step(self) -> None:
        with self._lock, self._on_device():
            self._check_open()
            self._drop_left()
            self._loop.step()

    def _cancel(self, sequence: Sequence) -> None:
        """End a request that nobody reads any more; nothing happens to one that has ended.

        Never waits: the garbage collector may call this in the very thread that holds the lock.
        Whoever holds it drops the request before the next step.
        """
        self._left.append(sequence)
        if self._lock.acquire(blocking=False):
            try:
                with self._on_device():
                    self._drop_left()
            finally:
                self._lock.release()

    def _drop_left(self) -> None:
        while self._left:
            self._loop.drop(self._left.popleft())

    # --- measuring and closing ---

    def score(self, tokens: Seq[int]) -> Tensor:
        """The target's raw logits [n, V] after each of `tokens`, in one pass (float32 or 64).

        For measuring: exp(log_softmax(score(t))[i, t[i + 1]]) is the probability of token i + 1.
        """
        self._check_open()
        if not 0 < len(tokens) <= self._limits.max_length:
            raise RequestError(f"score takes 1 to {self._limits.max_length} tokens at a time")
        check_ids("the text", tokens, self._limits.vocab_size)
        count = -(-len(tokens) // BLOCK)
        with self._lock, self._on_device():
            target = self._loop.machine.target
            pool = KVPool(target.spec, count, BLOCK, self._limits.device)
            place = torch.arange(len(tokens), device=self._limits.device).unsqueeze(0)
            ids = torch.tensor([list(tokens)], device=self._limits.device)
            pages = torch.arange(count, device=self._limits.device).unsqueeze(0)
            window = Window(ids, place, place, place >= 0, (len(tokens),), pages, BLOCK)
            return target.head(target.forward(window, pool)[0])

    def stats(self) -> SequenceStats:
        """Counts over all finished requests (rounds: the engine's own)."""
        return self._loop.totals

    @property
    def limits(self) -> Limits:
        """Sizes that the engine was opened with; one of `slots` and of `pages` is scratch."""
        return self._limits

    @property
    def memory(self) -> dict[str, int]:
        """Bytes on the device by part, as they were reckoned before it was opened."""
        return {part.name: part.size for part in self._budget.parts}

    def close(self) -> None:
        """Cancel what runs and refuse what comes. Safe to call twice."""
        self._closed = True
        if self._worker is not None:
            self._worker.shutdown(wait=True)

    def _check_open(self) -> None:
        if self._closed:
            raise EngineClosedError("the engine is closed; open a new one")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
