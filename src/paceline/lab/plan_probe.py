"""Measures what a plan needs, in a stated time: costs of rounds, and short runs of a closed loop.

Asks the engine through its public face, as any client would. Texts come from the caller.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from paceline import Completion, Engine, Handle, RequestError, SamplingParams
from paceline.lab.plan_acceptance import Counts, counted
from paceline.lab.plan_fit import Run, Text
from paceline.lab.plan_measured import Drafted

_LOOK = 0.001  # seconds between two looks at what has come
_COSTS = 0.3  # of a drafter's time, what the table of costs takes
_COUNTED = (
    0.8  # of a run's share of the time, its stretch; the rest is its first tokens and its end
)
_LEAST = 0.2  # seconds of a run at least
_PATIENCE = 60.0  # seconds that a run's first tokens may take
_BEGUN = 6  # texts that such a run sees begin at least
_SHORT = 4  # tokens of texts that are to be mostly prompt
_FEW = 4  # tokens behind the first ones that a time per token is told of

Progress = Callable[[str], None]
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


def measure(
    open_engine: Callable[[], AbstractContextManager[Engine]],
    drafter: str,
    probe: Probe,
    progress: Progress = lambda what: None,
) -> Drafted:
    """Open an engine, measure, close it. Raises what the engine raises, and TimeoutError."""
    with open_engine() as engine:
        return measure_engine(engine, drafter, probe, progress)


def measure_engine(
    engine: Engine, drafter: str, probe: Probe, progress: Progress = lambda what: None
) -> Drafted:
    """`measure` on an engine that is open, writes nothing else, and keeps no prompts."""
    progress(f"{drafter}: what rounds cost")
    began = time.perf_counter()
    costs = engine.costs(probe.seconds * _COSTS)
    points = plan_runs(probe, costs.ks)
    free = [(load, None, False) for load in chosen_loads(probe)] if chooses(engine) else []
    unseen = check_points(probe, costs.ks) if probe.check else ()
    inside, checks = len(points) + len(free), ((load, k, False) for load, k in unseen)
    end, runs, each = began + probe.seconds, list[Run](), _LEAST
    for number, (load, k, short) in enumerate((*points, *free, *checks)):
        progress(f"{drafter}: {load} at a time, {'K chosen' if k is None else f'K = {k}'}")
        if number < inside:  # where one took too long, the others have less
            left = end - time.perf_counter()
            each = max(_LEAST, left / (inside - number) * _COUNTED)
        tokens = min(_SHORT, probe.params.max_tokens) if short else None
        runs.append(replace(closed_loop(engine, probe, load, k, each, tokens), drafter=drafter))
    settle(engine, None)
    return Drafted(
        drafter=drafter,
        draft=engine.config.draft if "model" in drafter else None,
        points=costs.points,
        ks=costs.ks,
        sizes=costs.sizes,
        runs=tuple(runs[: len(points)]),
        adaptive=tuple(replace(run, k=costs.ks[-1]) for run in runs[len(points) : inside]),
        checks=tuple(runs[inside:]),
        memory=engine.memory,
    )


def plan_runs(probe: Probe, ks: Sequence[int]) -> list[tuple[int, int, bool]]:
    """(Load, k, short) of the runs: plain and one K in the middle at the least, the most and a load
    between; both once more with texts of a few tokens, which tell what a prompt costs from what a
    row costs; at the most the longest draft, for the acceptance of its last positions, and the
    shortest, which hides least of the host's work."""
    loads, drafts = sorted(set(probe.loads)), _drafts(probe, ks)
    if len(loads) > 3:
        loads = [loads[0], loads[len(loads) // 2], loads[-1]]
    if not drafts:
        return [(load, 0, False) for load in loads]
    middle, between = drafts[(len(drafts) - 1) // 2], loads[len(loads) // 2]
    found = [(load, k, False) for load in loads for k in (0, middle)]
    found += [(between, k, True) for k in (0, middle)]
    return found + [(loads[-1], k, False) for k in (drafts[-1], drafts[0]) if k != middle]


def _drafts(probe: Probe, ks: Sequence[int]) -> list[int]:
    return [k for k in ks if k and k in probe.ks] or [k for k in ks if k]


def check_points(probe: Probe, ks: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """(Load, k) to check predictions at, none of them of `plan_runs`, which the fit sees: at the
    least and at the most load the shortest and the longest draft that are left there, and plain
    decoding at a load that has no run. None where the runs are all that there is."""
    seen = {(load, k) for load, k, _ in plan_runs(probe, ks)}
    loads = sorted(set(probe.loads))
    found = [(load, 0) for load in loads if (load, 0) not in seen][:1]
    for load in (loads[0], loads[-1]):
        left = [k for k in _drafts(probe, ks) if (load, k) not in seen]
        found += [(load, k) for k in (*left[:1], *left[-1:])]
    return tuple(dict.fromkeys(found))


def chooses(engine: Engine) -> bool:
    """Whether the engine chooses K round by round where it may not change a text: a server's
    does by itself."""
    return engine.config.rule == "match" and engine.config.adaptive is not False


def chosen_loads(probe: Probe) -> list[int]:
    """The loads at which the engine's own choice of K is measured: one between, and the most."""
    loads = sorted(set(probe.loads))
    return sorted({loads[len(loads) // 2], loads[-1]})


@dataclass(slots=True)
class _Writing:
    """One request as its client sees it. full: it may be as long as all are. stamps: (seconds,
    tokens) of each look that found some."""

    handle: Handle
    asked: float
    full: bool
    stamps: list[tuple[float, int]] = field(default_factory=list)
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
        return found


def closed_loop(
    engine: Engine, probe: Probe, load: int, k: int | None, seconds: float,
    tokens: int | None = None,
) -> Run:  # fmt: skip
    """`load` texts at a time for about so many seconds, counted from when all of them are being
    written at once and none waits behind the prompts of the beginning. k: None for the engine's
    own choice; the run's is 0 then. tokens: of each text, for a
    run that tells what a beginning costs, and lasts until it has seen some; it says nothing of how
    drafts stand. Raises TimeoutError where no tokens come."""
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
    began, opened, counted, begun, before = time.perf_counter(), 0.0, 0, 0, engine.stats()
    now, least = began, max(_BEGUN, load) if tokens is not None else 0
    waiting = set(range(load))  # clients that have had no token yet
    while not opened or now - opened < seconds or not counted or begun < least:
        time.sleep(_LOOK)
        now = time.perf_counter()
        if now - began > _PATIENCE + 2 * seconds:
            raise TimeoutError(f"{load} texts at a time: no tokens in {now - began:.0f} s")
        for place, text in enumerate(running):
            first = not text.stamps
            found = text.look(now)
            if opened:
                counted += found
                begun += first and found > 0
            elif found:
                waiting.discard(place)
            if text.done:
                running[place] = ask(most)
        # Texts of a few tokens are never all being written at once.
        if not opened and not waiting and (tokens or all(text.stamps for text in running)):
            opened, before = now, engine.stats()
    after = engine.stats()
    for text in running:
        text.handle.cancel()
    done = [(text, text.handle.result()) for text in asked]
    run = _run(load, k or 0, now - opened, counted, begun, done)
    run = replace(run, by_k=_rounds(before.rounds_by_k, after.rounds_by_k))
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
    rounds = sum(told.stats.rounds for _, told in done)
    emitted = sum(told.stats.emitted for _, told in done)
    texts = tuple(_text(text, told, k > 0) for text, told in done if told.stats.rounds)
    prompt = sum(text.prompt for text in texts) / len(texts)
    # Where a text stands in the middle of the stretch: half of what one has in the end.
    written = max(text.new for text in texts)
    return Run(
        drafter="",
        load=load,
        k=k,
        seconds=seconds,
        tokens=tokens,
        begun=begun,
        per_round=emitted / rounds,
        prompt=prompt,
        context=prompt + written / 2,
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
