"""Closed-loop clients for `load.py`: so many requests at once, the next one when one has ended, and
what is counted of them while all of that many are writing.

One thread looks at every handle once a millisecond. Clients that are woken for each event would
take the interpreter's lock from the engine's thread as often as there are rows.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from gpu_common import digits, fixed, median, quiesce
from load_engine import Watched

from paceline import Engine, SamplingParams
from paceline.engine.handle import Handle

LOOK = 0.001  # seconds between two looks
_FEW = 8  # tokens behind the first that a time per token is worth telling of


@dataclass(slots=True)
class Text:
    """One request as its client saw it. stamps: (time, tokens) of each look that found some."""

    number: tuple[int, int]  # client, turn
    handle: Handle
    asked: float
    ids: list[int] = field(default_factory=list)
    stamps: list[tuple[float, int]] = field(default_factory=list)
    events: int = 0
    done: bool = False

    def look(self, now: float) -> int:
        """Take what is there; how many tokens."""
        found = 0
        while not self.done and (event := self.handle.take()) is not None:
            self.ids += event.token_ids
            found += len(event.token_ids)
            self.events += bool(event.token_ids)
            self.done = event.finish is not None
            if event.finish == "error":
                self.handle.result()  # raises it
        if found:
            self.stamps.append((now, found))
        return found

    @property
    def tpot(self) -> float:
        """Seconds a token behind the first look's."""
        return (self.stamps[-1][0] - self.stamps[0][0]) / (len(self.ids) - self.stamps[0][1])


@dataclass(frozen=True, slots=True)
class Run:
    """One measured stretch. texts: of every request, by client and turn, finished or not."""

    figures: dict[str, Any]
    texts: dict[tuple[int, int], list[int]]


@dataclass(frozen=True, slots=True)
class Clients:
    """Who asks for what. Request (client, turn) has prompt first + client + turn · count of
    `asked`, and is the same request however the engine drafts. tokens: of each text; counted:
    tokens of a run."""

    count: int
    asked: list[list[int]]
    tokens: int
    temperature: float
    counted: int
    first: int = 0

    def root(self, client: int, turn: int) -> int:
        """The last token of that request's prompt."""
        return self._prompt(client, turn)[-1]

    def _prompt(self, client: int, turn: int) -> list[int]:
        return self.asked[self._place(client, turn) % len(self.asked)]

    def _place(self, client: int, turn: int) -> int:
        return self.first + client + turn * self.count

    def _submit(self, engine: Engine, client: int, turn: int) -> Text:
        tokens = self.tokens
        if turn == 0:  # first texts end one after the other, and so do all behind them
            tokens = max(1, -(-tokens * (client + 1) // self.count))
        params: SamplingParams = fixed(
            tokens, temperature=self.temperature, seed=1 + self._place(client, turn)
        )
        now = time.perf_counter()
        handle = engine.submit(self._prompt(client, turn), params)
        return Text((client, turn), handle, now)

    def run(self, engine: Engine, watched: Watched, limit: float = 60.0) -> Run:
        """Keep `count` requests going until `counted` tokens have come since each client had its
        first token; then cancel the rest. limit: seconds, then TimeoutError."""
        before = engine.stats()
        began = time.perf_counter()
        every = [self._submit(engine, client, 0) for client in range(self.count)]
        running = list(every)
        opened = 0.0  # when every client had a token
        counted, end = 0, began
        while not opened or counted < self.counted:
            time.sleep(LOOK)
            now = time.perf_counter()
            if now - began > limit:
                raise TimeoutError(f"{counted} of {self.counted} tokens after {limit:g} s")
            found = sum(text.look(now) for text in running)
            if opened:
                counted, end = counted + found, now
            elif all(text.stamps for text in running):
                opened = now
            for place, text in enumerate(running):
                if text.done:
                    client, turn = text.number
                    running[place] = self._submit(engine, client, turn + 1)
                    every.append(running[place])
        told = engine.stats().speculation
        for text in running:
            text.handle.cancel()
        quiesce(engine)
        after = engine.stats()
        figures = _figures(every, opened, end) | _counts(before, after)
        figures["tok_s"] = digits(counted / (end - opened))
        figures |= {"tokens": counted, "seconds": digits(end - opened)}
        figures["until_all_wrote_s"] = digits(opened - began)
        figures |= _decided(watched, opened, end) | {"speculation": told}
        return Run(figures, {text.number: text.ids for text in every})


def _figures(texts: list[Text], begin: float, end: float) -> dict[str, Any]:
    """Times to the first token of requests asked for in the stretch, and times per token of those
    that ended in it, in milliseconds."""
    first = [t.stamps[0][0] - t.asked for t in texts if t.asked >= begin and t.stamps]
    ended = [t for t in texts if t.done and t.stamps and begin <= t.stamps[-1][0] <= end]
    rates = [t.tpot for t in ended if len(t.ids) - t.stamps[0][1] >= _FEW]
    return {
        "ttft_ms": [digits(s * 1e3, 4) for s in first],
        "tpot_ms": [digits(s * 1e3, 4) for s in rates],
        "requests_ended": len(ended),
    }


def _counts(before: Any, after: Any) -> dict[str, Any]:
    """What the engine counted meanwhile, the time before the stretch included."""
    gained = {
        name: getattr(after, name) - getattr(before, name)
        for name in ("rounds", "drafted", "evaluated", "accepted", "preemptions")
    }
    accepted, evaluated, drafted = gained["accepted"], gained["evaluated"], gained["drafted"]
    return gained | {
        "acceptance_rate": digits(accepted / evaluated, 4) if evaluated else None,
        "draft_efficiency": digits(accepted / drafted, 4) if drafted else None,
    }


def _decided(watched: Watched, begin: float, end: float) -> dict[str, Any]:
    """Rounds by how many tokens they verified a row, and what else was decided for them."""
    launches = [launch for launch in watched.launches if begin <= launch[0] <= end]
    watched.launches.clear()
    ks = Counter(k for _, _, k, _ in launches)
    gaps = [b[0] - a[0] for a, b in pairwise(launches)]
    return {
        "k_rounds": {str(k): ks[k] for k in sorted(ks)},
        "mean_rows": digits(sum(r for _, r, _, _ in launches) / max(1, len(launches)), 4),
        "round_ms": digits(median(gaps) * 1e3),
    }


def percentiles(values: list[float]) -> dict[str, float | int | None]:
    """p50 and p95, and of how many."""
    kept = sorted(values)
    if not kept:
        return {"p50": None, "p95": None, "of": 0}
    p50, p95 = (kept[min(len(kept) - 1, int(share * len(kept)))] for share in (0.5, 0.95))
    return {"p50": p50, "p95": p95, "of": len(kept)}
