"""The engine: the public way in. Opens models, takes requests, hands out events.

A facade: requests come in by intake.py, the engine's own thread (driver.py) does all the work, and
callers never wait for one another. What measures is in instruments.py.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import AsyncIterator, Iterator
from collections.abc import Sequence as Seq
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack

from paceline.config import EngineConfig, load_toml
from paceline.drafters import Drafter
from paceline.engine.build import Progress, on_device, open_machine, quiet
from paceline.engine.driver import Driver
from paceline.engine.handle import Handle
from paceline.engine.instruments import Instruments
from paceline.engine.intake import Intake
from paceline.engine.ledger import own
from paceline.engine.practice import ask
from paceline.engine.requests import Asked, Prompt, as_prompts
from paceline.errors import ConfigError, EngineClosedError, PacelineError
from paceline.models.memory import collect
from paceline.types import (
    Completion,
    EngineStats,
    Event,
    Grammar,
    Limits,
    SamplingParams,
)

# What a stream's generator gives to `stream` itself, never to a caller.
_STARTED = Event("", (), "", ())


class Engine(Instruments):
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
        all) is called while it opens, in the engine's own thread; all is 0 where nobody can say.
        options: the other fields of `EngineConfig` (k, rule, dtype, device, slots, max_length,
        threads, prefill_chunk, seed, capture, memory, adaptive, latency, cache_tokens,
        prefix_cache, max_gap). Raises ConfigError and CheckpointError, one line each.
        """
        if drafter is not None and not isinstance(drafter, str | Drafter):
            raise ConfigError(f"drafter must be a name or a Drafter, not {drafter!r}")
        name = drafter if isinstance(drafter, str) else None
        self.config = EngineConfig.make(
            target=str(target),
            drafter=name,
            draft=None if draft is None else str(draft),
            **options,
        )
        self._closed = self._draining = False
        progress = progress or quiet
        self._driver = driver = Driver(on_device(self.config.device))
        self._end = weakref.finalize(self, driver.stop)  # also where nobody closes the engine

        def told(what: str, done: int, every: int) -> None:
            if driver.stopping:
                raise EngineClosedError("the engine was closed while it opened")
            progress(what, done, every)

        given = drafter if isinstance(drafter, Drafter) else None
        config = self.config
        opened = driver.start(
            lambda: open_machine(config, given, told), lambda made: made.practice or made.loop
        )
        if opened.practice is not None:
            intake = Intake(config, replace(opened, loop=opened.practice), driver)
            try:
                ask(intake.take, opened.budget.limits)
                driver.drive(opened.loop)
            except BaseException:  # Ctrl-C, say: nobody will have this engine
                self._end()
                raise
        # From here on it says how many texts are written at once, whoever decided it.
        self.config = config = replace(config, slots=opened.budget.slots)
        self.tokenizer, self.threads = opened.tokenizer, opened.threads
        self._loop, self._widest, self._chooses = opened.loop, opened.widest, opened.chooses
        self._keep, self._costs = opened.keep, opened.costs
        self._pilot = opened.loop.pilot
        self._budget, self._limits = opened.budget, opened.budget.limits
        self._intake = Intake(config, opened, driver)

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        *,
        drafter: str | Drafter | None = None,
        progress: Progress | None = None,
        **overrides: object,
    ) -> Self:
        """Open what a configuration file says: what `paceline plan --out` writes and `paceline
        serve --config` reads. Its table [server] is left alone.

        drafter, progress, overrides: as the constructor's; they win over the file, `target` too.
        Raises ConfigError, which names the file, for what cannot be, and what the constructor does.
        """
        given = {n: str(v) if isinstance(v, Path) else v for n, v in overrides.items()}
        if isinstance(drafter, str):
            given["drafter"] = drafter
        options = asdict(load_toml(path, **given))
        if drafter is not None:
            options["drafter"] = drafter
        return cls(progress=progress, **options)

    # --- requests ---

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        **asked: Unpack[Asked],
    ) -> Handle:
        """Ask for one text; returns at once. It is written whether or not its events are read.

        prompt: text, token ids, or chat messages (a list of {"role", "content"}). asked, each
        by its name: prediction, text the user expects, for the "predicted" drafter; k, draft tokens
        for this request, at most the engine's (0 is plain decoding); priority, higher goes first;
        deadline, seconds from now (what is written by then stands, and the finish is "deadline");
        grammar, what the text must be (it is whole unless max_tokens cuts it). Raises RequestError
        at once for a request that cannot be served. A request whose logits are not finite fails
        with NumericsError, to whoever reads it.
        """
        self._check_open()
        handle = self._intake.take(prompt, params, **asked)
        try:
            self._check_open()
        except PacelineError:  # in between: the command may never be run, or for nobody
            handle.cancel()
            raise
        return handle

    def room(self, prompt_tokens: int) -> int:
        """The most tokens that may be written behind a prompt of so many, or 0 where it leaves no
        room: a larger max_tokens is cut there, or refused."""
        return max(0, self._loop.scheduler.room(prompt_tokens))

    def check_grammar(self, grammar: Grammar) -> None:
        """Compile a grammar, so that `submit` finds it ready. Raises RequestError where it cannot
        be used. It may take seconds, which a thread of its own can wait for."""
        self._intake.compiler().compile(grammar)

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        **asked: Unpack[Asked],
    ) -> Iterator[Event]:
        """`submit`, and the events as they come, one a round. asked: as of `submit`. Leaving the
        loop early cancels the request."""
        handle = self.submit(prompt, params, **asked)
        events = self._events(handle)
        next(events)  # inside its `try` from here on: dropping it unread cancels the request too
        return events

    def _events(self, handle: Handle) -> Iterator[Event]:
        try:
            yield _STARTED
            yield from handle.events()
        finally:
            handle.cancel()

    async def astream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        **asked: Unpack[Asked],
    ) -> AsyncIterator[Event]:
        """`stream` for asyncio."""
        handle = self.submit(prompt, params, **asked)
        try:
            async for event in handle.events():
                yield event
        finally:
            handle.cancel()

    def generate(
        self,
        prompts: Prompt | Seq[Prompt],
        params: SamplingParams | None = None,
        **asked: Unpack[Asked],
    ) -> list[Completion]:
        """Write whole texts, several at once where there are slots; results in order.

        prompts: one prompt or a list of prompts (text, token ids or chat messages each). asked: as
        of `submit`, the same for all. A request that fails raises its error after the others have
        finished.
        """
        handles: list[Handle] = []
        try:
            for prompt in as_prompts(prompts):
                handles.append(self.submit(prompt, params, **asked))
            for handle in handles:
                handle.wait_closed()
        finally:
            for handle in handles:
                handle.cancel()
        return [handle.result() for handle in handles]

    # --- how it stands, and closing ---

    @property
    def ended(self) -> Exception | None:
        """Why nothing is written any more and an engine has to be opened anew: an error that it did
        not survive, or it was closed. None while it serves, and while it drains."""
        broken = self._driver.broken
        if broken is not None:
            return own(broken)
        return EngineClosedError("the engine is closed; open a new one") if self._closed else None

    def stats(self) -> EngineStats:
        """Counts over all requests, round by round, and how things stand. From any thread."""
        return self._loop.stats()

    @property
    def limits(self) -> Limits:
        """Sizes that the engine was opened with; one of `slots` and of `pages` is scratch."""
        return self._limits

    @property
    def memory(self) -> dict[str, int]:
        """Bytes on the device by part, as they were reckoned before it was opened. How many
        positions the cache holds for them: `limits.positions`, and in `stats`."""
        return {part.name: part.size for part in self._budget.parts}

    def drain(self, timeout: float | None = None) -> bool:
        """Refuse what comes and wait until what is there is finished. timeout: seconds to wait at
        most; returns whether all is finished. Then `close`. Raises EngineClosedError where the
        engine ends meanwhile, and what was there with it."""
        self._draining = True
        until = None if timeout is None else time.monotonic() + timeout
        while not self._closed and self._driver.ask(lambda: not self._loop.idle):
            if until is not None and time.monotonic() >= until:
                return False
            time.sleep(0.01)
        return True

    def close(self) -> None:
        """End what runs, refuse what comes, and free the memory; `stats` can still be asked. Safe
        to call twice."""
        closed, self._closed = self._closed, True
        try:
            if not closed:
                self._keep()
        finally:
            self._end()
        # Once, whoever closes, and where the first one did not wait for the end.
        if self._driver.ended and vars(self).pop("_costs", None) is not None:
            self._driver.forget()
            self._loop.let_go()
            del self._keep  # which holds the models too, as `_costs` did
            collect(self._limits.device)

    def _check_open(self) -> None:
        if (ended := self.ended) is not None:
            raise ended
        if self._draining:
            raise EngineClosedError("the engine is draining: it takes no more requests")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
