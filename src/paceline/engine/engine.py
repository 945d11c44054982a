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
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from paceline.config import EngineConfig
from paceline.drafters import Drafter, create
from paceline.engine.capture import CapturedRounds
from paceline.engine.loop import Loop
from paceline.engine.outbox import Reader
from paceline.engine.prefill import warm_up
from paceline.engine.requests import Prompt, as_prompts, build_request, check_ids
from paceline.engine.round import Machine
from paceline.engine.rounds import EagerRounds, Rounds
from paceline.engine.scheduler import Scheduler, Sequence
from paceline.engine.slots import Slots
from paceline.engine.threads import choose_threads
from paceline.errors import ConfigError, EngineClosedError, RequestError
from paceline.kv.pools import KVPool, kv_bytes
from paceline.models.config import ModelConfig
from paceline.models.decoder import Decoder, kv_spec
from paceline.models.loading import resolve
from paceline.models.opening import open_decoder, parse_dtype
from paceline.ops.attention import BLOCK
from paceline.ops.choose import make_chooser
from paceline.speculation.verify import RULES
from paceline.text import Tokenizer
from paceline.types import Completion, Event, Limits, SamplingParams, SequenceStats, Window

# What a stream's generator gives to `stream` itself, never to a caller.
_STARTED = Event("", (), "", ())


@dataclass(frozen=True, slots=True)
class _Target:
    """What drafters may borrow (`drafters.base.TargetInfo`)."""

    vocab_size: int
    hidden_size: int
    embedding: Tensor
    tokenizer: Tokenizer | None


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
        **options: object,
    ) -> None:
        """Open `target` (a folder, "mini-target" or a hub id) and a drafter.

        drafter: a name such as "model", "ngram", "predicted", "ngram+model" (row by row the
        first that has a draft), with options as "ngram:max=6", or a `Drafter`; default "model"
        where `draft` is given, else "none". draft: the draft model's folder. options: the other
        fields of `EngineConfig` (k, rule, dtype, device, slots, max_length, threads,
        prefill_chunk, seed). Raises ConfigError and CheckpointError, one line each.
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
        with torch.inference_mode():
            self._open(drafter if isinstance(drafter, Drafter) else None)

    def _open(self, drafter: Drafter | None) -> None:
        config = self.config
        path = resolve(config.target)
        model = ModelConfig.from_folder(path)
        max_length = config.max_length or min(model.max_length, 4096)
        self.tokenizer = Tokenizer.load(path)
        # The scratch page holds the widest window: what a drafter has not seen, K + 2 tokens.
        page = -(-max(max_length, config.k + 2) // BLOCK) * BLOCK
        device = torch.device(config.device)
        limits = Limits(
            slots=config.slots + 1,
            max_length=max_length,
            max_k=max(1, config.k),
            vocab_size=model.vocab_size,
            pages=config.slots + 1,
            page_size=page,
            device=device,
        )
        cache = kv_bytes(kv_spec(model, parse_dtype(config.dtype), device), limits.pages * page)
        target = open_decoder(config.target, config.dtype, device, max_length, cache)
        self._target, self._limits = target, limits
        made = drafter or create(
            config.drafter,
            **({} if config.draft is None else {"path": config.draft, "dtype": config.dtype}),
        )
        made.bind(
            _Target(model.vocab_size, model.hidden_size, target.embedding, self.tokenizer), limits
        )
        deepest = max(made.needs.features, default=0)
        if deepest > target.spec.layers:
            raise ConfigError(
                f"drafter {made.name!r} reads the features of layer {deepest}; the target has 0 to "
                f"{target.spec.layers}: choose a drafter made for this target"
            )
        rule = RULES[config.rule]
        pool = KVPool(target.spec, limits.pages, page, device)
        compute = torch.promote_types(target.spec.dtype, torch.float32)
        slots, chooser = Slots(limits, rule.needs_q, compute), make_chooser(device)
        machine = Machine(target, pool, made, rule, slots, chooser)
        rounds: Rounds = EagerRounds(machine)
        if device.type == "cuda" and config.capture:
            most = config.k if made.needs.most is None else min(config.k, made.needs.most)
            rounds = CapturedRounds(machine, most)
        if device.type == "cuda":
            warm_up(machine, config.prefill_chunk)
        self._loop = Loop(machine, rounds, Scheduler(limits.slots), config.prefill_chunk)
        every_eos = {*model.eos_token_ids, *self.tokenizer.eos_ids}
        # A tokenizer may name more tokens than the model has.
        self._eos = frozenset(token for token in every_eos if token < model.vocab_size)
        self.threads = self._set_threads(target, pool)

    def _set_threads(self, target: Decoder, pool: KVPool) -> int:
        if self.config.threads is not None:
            torch.set_num_threads(self.config.threads)
            return self.config.threads
        if self._limits.device.type != "cpu":
            return torch.get_num_threads()
        # A verify window on the scratch page, which nobody reads.
        node = torch.arange(min(self.config.k + 1, self._limits.max_length)).unsqueeze(0)
        window = Window(torch.zeros_like(node), node, node, node >= 0, ((0, BLOCK),))
        return choose_threads(lambda: target.head(target.forward(window, pool)[0]))

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
        with self._lock, torch.inference_mode():
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
                with torch.inference_mode():
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
        size = -(-len(tokens) // BLOCK) * BLOCK
        with self._lock, torch.inference_mode():
            pool = KVPool(self._target.spec, 1, size, self._limits.device)
            place = torch.arange(len(tokens), device=self._limits.device).unsqueeze(0)
            ids = torch.tensor([list(tokens)], device=self._limits.device)
            page = torch.zeros_like(place[:, :1])
            window = Window(ids, place, place, place >= 0, ((0, len(tokens)),), page, size)
            return self._target.head(self._target.forward(window, pool)[0])

    def stats(self) -> SequenceStats:
        """Counts over all finished requests (rounds: the engine's own)."""
        return self._loop.totals

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
