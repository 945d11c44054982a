"""A closed loop of clients on an engine, and what is counted of it while all are being written."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from paceline import Completion, Engine, Handle, RequestError, SamplingParams
from paceline.lab.plan_acceptance import Counts, counted
from paceline.lab.plan_fit import Run, Text

_LOOK = 0.001  # seconds between two looks at what has come
_PATIENCE = 60.0  # seconds in which some token has to come
_BEGUN = 6  # texts that a run of short ones sees begin at least
_FEW = 4  # tokens behind the first ones that a time per token is told of

# Text, token ids or chat messages, as `Engine.submit` takes them.
Prompt: TypeAlias = str | tuple[int, ...] | list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Probe:
    """What to measure. seconds: for everything but opening the engine. loads: texts at a time; ks:
    draft lengths of the runs, plain decoding (0) always among them. check: measure some points
    besides (`check_points`), after `seconds`, for a look at the predictions."""

    prompts: tuple[Prompt, ...]
    params: SamplingParams
    loads: tuple[int, ...]
    ks: tuple[int, ...]
    seconds: float = 60.0
    check: bool = False


@dataclass(slots=True)
class _Writing:
    """One request as its client sees it. full: it may be as long as all are. stamps: (seconds,
    tokens) of each look that found some."""

    handle: Handle
    asked: float
    full: bool
    stamps: list[tuple[float, int]] = field(default_factory=list)
    written: int = 0
    done: bool = False

    def look(self, now: float) -> int:
        """Take what is there; how many tokens."""
        found = 0
        while not self.done and (event := self.handle.take()) is not None:
            found += len(event.token_ids)
            self.done = event.finish is not None
            if event.finish == "error":
                self.handle.result()  # raises it
        if found:
            self.stamps.append((now, found))
            self.written += found
        return found


def closed_loop(
    engine: Engine, probe: Probe, load: int, k: int | None, seconds: float,
    tokens: int | None = None, least: int = 0,
) -> Run:  # fmt: skip
    """`load` texts at a time for about so many seconds, counted from when all of them are being
    written at once and none waits behind the prompts of the beginning. k: None for the engine's
    own choice; the run's is 0 then. tokens: of each text, for a
    run that tells what a beginning costs, and lasts until it has seen some; it says nothing of how
    drafts stand. least: tokens that a run lasts for at least; under a text a client, fewer texts
    begin in it and contexts are shorter than in a long run. Raises TimeoutError where no tokens
    come."""
    settle(engine, k)
    numbers, most = itertools.count(), tokens or probe.params.max_tokens
    asked: list[_Writing] = []

    def ask(tokens: int) -> _Writing:
        number = next(numbers)
        prompt = probe.prompts[number % len(probe.prompts)]
        params = replace(probe.params, max_tokens=tokens, seed=number, min_tokens=0)
        now = time.perf_counter()
        asked.append(_Writing(engine.submit(prompt, params), now,
                              tokens == probe.params.max_tokens))  # fmt: skip
        return asked[-1]

    # The first texts end one after the other, and so do all behind them.
    running = [ask(max(1, -(-most * (place + 1) // load))) for place in range(load)]
    opened, counted, begun, before = 0.0, 0, 0, engine.stats()
    beginnings = max(_BEGUN, load) if tokens is not None else 0
    now = heard = time.perf_counter()  # heard: when the last tokens came
    waiting = set(range(load))  # clients that have had no token yet
    first_ones = set(range(load))  # clients whose first text has not ended
    behind = 0.0  # tokens that the texts had behind their prompts, times seconds
    least = max(least, 1)
    while not opened or now - opened < seconds or counted < least or begun < beginnings:
        time.sleep(_LOOK)
        looked, now = now, time.perf_counter()
        if opened:
            behind += (now - looked) * sum(text.written for text in running)
        if now - heard > _PATIENCE:
            raise TimeoutError(f"{load} texts at a time: no tokens in {now - heard:.0f} s")
        for place, text in enumerate(running):
            first = not text.stamps
            found = text.look(now)
            heard = now if found else heard
            if opened:
                counted += found
                begun += first and found > 0
            elif found:
                waiting.discard(place)
            if text.done:
                running[place] = ask(most)
                first_ones.discard(place)
        # Texts of a few tokens are never all being written at once, and may end sooner than asked.
        begun_all = tokens or not first_ones or all(text.stamps for text in running)
        if not opened and not waiting and begun_all:
            opened, before = now, engine.stats()
    after = engine.stats()
    for text in running:
        text.handle.cancel()
    done = [(text, text.handle.result()) for text in asked]
    run = _run(load, k or 0, now - opened, counted, begun, done)
    by_k = _rounds(before.rounds_by_k, after.rounds_by_k)
    run = replace(run, context=run.context + behind / (now - opened) / load, by_k=by_k)
    if tokens is None:
        return run
    texts = tuple(replace(t, tested=Counts((), ())) for t in run.texts)
    return replace(run, texts=texts)


def _rounds(before: Sequence[int], after: Sequence[int]) -> tuple[int, ...]:
    """Rounds by K between two counts, of which the second may reach farther."""
    return tuple(b - a for a, b in itertools.zip_longest(before, after, fillvalue=0))


def _run(
    load: int, k: int, seconds: float, tokens: int, begun: int,
    done: Sequence[tuple[_Writing, Completion]],
) -> Run:  # fmt: skip
    """context: of the prompts alone."""
    rounds = sum(told.stats.rounds for _, told in done)
    emitted = sum(told.stats.emitted for _, told in done)
    texts = tuple(_text(text, told, k > 0) for text, told in done if told.stats.rounds)
    prompt = sum(text.prompt for text in texts) / len(texts)
    return Run(
        drafter="",
        load=load,
        k=k,
        seconds=seconds,
        tokens=tokens,
        begun=begun,
        per_round=emitted / rounds,
        prompt=prompt,
        context=prompt,
        texts=texts,
    )


def _text(text: _Writing, told: Completion, drafts: bool) -> Text:
    stats = told.stats
    # At a limit of its own, as the first texts have, a text is cut off.
    whole = told.finish == "stop" or (text.full and told.finish == "length")
    ttft, tpot = None, None
    if text.stamps:
        (first, least), last = text.stamps[0], text.stamps[-1][0]
        ttft, behind = first - text.asked, sum(n for _, n in text.stamps) - least
        tpot = (last - first) / behind if behind >= _FEW else None
    return Text(
        prompt=told.prompt_tokens,
        new=len(told.token_ids),
        rounds=stats.rounds,
        tested=counted(stats.rounds, stats.evaluated_by_position, stats.accepted_by_position)
        if drafts
        else Counts((), ()),
        ttft=ttft,
        tpot=tpot,
        whole=whole,
    )


def settle(engine: Engine, k: int | None) -> None:
    """Wait until nothing is being written, and fix k (`Engine.fix_k`)."""
    until = time.perf_counter() + _PATIENCE
    while True:
        try:
            engine.fix_k(k)
        except RequestError:
            if time.perf_counter() > until:
                raise
            time.sleep(0.01)
        else:
            return
