"""Clients of the audit's traffic: what they ask for, how they read it and when they hang up.

Several threads and tasks of one event loop ask for one request after the other; what each was given
is kept, and what its handle says of it in the end. Knows nothing of what the text ought to be.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from paceline import Completion, Engine, Event, Handle, SamplingParams
from paceline.lab.audit_pair import Job

Text = tuple[int, ...]
# How events are read: as they come, from another thread or an event loop, or when all are there.
Reading = Literal["thread", "loop", "late"]


@dataclass(frozen=True, slots=True)
class TrafficOptions:
    """requests: in all; cancelled: the share that is; dtypes: asserted or counted, see
    `audit_pair.asserted`. drafter: None for the pair's own, n-grams where it has none. longest:
    tokens a text is asked for at most; slots, readers: texts at once, and readers that ask for
    them, half of them tasks of one event loop; cache: of what all slots could need, the share there
    is; patience: seconds the engine has, after the last text, to be idle."""

    requests: int = 200
    cancelled: float = 1 / 3
    dtypes: tuple[str, ...] = ("float32",)
    longest: int = 120
    slots: int = 6
    readers: int = 12
    cache: float = 0.35
    k: int = 4
    drafter: str | None = None
    seed: int = 0
    patience: float = 60.0


@dataclass(frozen=True, slots=True)
class Case:
    """A request, how it is read, and when it is cancelled: after so many events (None: never), or
    after a while where that is 0 or nothing is read before the end."""

    job: Job
    priority: int
    reading: Reading
    cancel: int | None


@dataclass(slots=True)
class Outcome:
    """What the reader of a request was given, and what its handle says of it."""

    events: list[Event] = field(default_factory=list)
    whole: Completion | None = None
    error: str = ""

    @property
    def tokens(self) -> Text:
        return tuple(token for event in self.events for token in event.token_ids)


def make_cases(prompts: Sequence[Text], options: TrafficOptions) -> list[Case]:
    """The requests, the same for the same options."""
    rng = random.Random(options.seed)
    readings: tuple[Reading, ...] = ("thread", "loop", "loop", "late")
    cases = []
    for _ in range(options.requests):
        shared, other = rng.choice(prompts), rng.choice(prompts)
        own = other[: rng.randrange(1, 1 + min(len(other), 12))]
        prompt = shared[: rng.randrange(len(shared) + 1)] + own
        warm = rng.random() < 0.7
        params = SamplingParams(
            temperature=rng.choice((0.4, 0.7, 1.0, 1.3)) if warm else 0.0,
            top_p=rng.choice((1.0, 0.95)) if warm else 1.0,
            presence_penalty=rng.choice((0.0, 0.0, 0.3)),
            seed=rng.randrange(1 << 40),
        )
        job = Job(
            prompt,
            params,
            1 + int(options.longest * rng.random() ** 2),  # many are short
            k=rng.choice((None, None, *range(options.k + 1))),
        )
        # After no event (while it waits or its prompt is read), or after some, or after too many.
        cancel = None
        if rng.random() < options.cancelled:
            cancel = rng.choice((0, rng.randrange(6), rng.randrange(1 + job.length // 2)))
        cases.append(Case(job, rng.choice((0, 0, 0, 1, 2)), rng.choice(readings), cancel))
    return cases


def play(
    engine: Engine,
    cases: Sequence[Case],
    options: TrafficOptions,
    told: Callable[[int], None] = lambda done: None,
) -> list[Outcome]:
    """Ask for every case and read it in its way; what each reader was given."""
    outcomes = [Outcome() for _ in cases]
    queues = {
        looped: deque(n for n, case in enumerate(cases) if (case.reading == "loop") is looped)
        for looped in (False, True)
    }
    lock, done = threading.Lock(), 0

    def ended(number: int, error: Exception | None) -> None:
        nonlocal done
        if error is not None:
            outcomes[number].error = repr(error)  # told with the rest
        with lock:
            done += 1
            told(done)

    def read() -> None:
        while queues[False]:
            try:
                number = queues[False].popleft()
            except IndexError:
                return
            try:
                _read(engine, cases[number], outcomes[number])
            except Exception as error:  # of whatever kind, it is what the audit looks for
                ended(number, error)
            else:
                ended(number, None)

    async def task() -> None:
        while queues[True]:
            number = queues[True].popleft()
            try:
                await _read_async(engine, cases[number], outcomes[number])
            except Exception as error:  # of whatever kind, it is what the audit looks for
                ended(number, error)
            else:
                ended(number, None)

    async def tasks() -> None:
        await asyncio.gather(*(task() for _ in range(max(1, options.readers // 2))))

    threads = [threading.Thread(target=lambda: asyncio.run(tasks()))]
    threads += [threading.Thread(target=read) for _ in range(max(1, options.readers // 2))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def _submit(engine: Engine, case: Case) -> Handle:
    job = case.job
    params = replace(job.params, max_tokens=job.length, ignore_eos=True)
    return engine.submit(job.prompt, params, k=job.k, priority=case.priority)


def _read(engine: Engine, case: Case, outcome: Outcome) -> None:
    handle = _submit(engine, case)
    if case.cancel is not None and (case.cancel == 0 or case.reading == "late"):
        time.sleep(random.random() * 0.01 * (1 + case.cancel))
        handle.cancel()
    if case.reading == "late":
        outcome.whole = handle.result()
    for event in handle.events():
        outcome.events.append(event)
        if len(outcome.events) == case.cancel:
            handle.cancel()
    outcome.whole = handle.result()


async def _read_async(engine: Engine, case: Case, outcome: Outcome) -> None:
    """Waits for an event again and again with too little patience: none may be lost by that."""
    handle = _submit(engine, case)
    if case.cancel == 0:
        await asyncio.sleep(random.random() * 0.01)
        handle.cancel()
    events = handle.events()
    while True:
        patience = random.choice((None, 0.0005, 0.005))
        try:
            event = await asyncio.wait_for(anext(events), patience)
        except TimeoutError:
            continue
        except StopAsyncIteration:
            break
        outcome.events.append(event)
        if len(outcome.events) == case.cancel:
            handle.cancel()
    outcome.whole = handle.result()


def finish_of(outcome: Outcome) -> str | None:
    """How the request ended, by its last event."""
    return outcome.events[-1].finish if outcome.events else None


def disorder(outcome: Outcome) -> list[str]:
    """What is wrong with the order of one request's events, or missing from them, in words."""
    events, whole = outcome.events, outcome.whole
    if outcome.error or not events or whole is None:
        return [outcome.error or "no event at all"]
    faults = []
    finishes = [event.finish for event in events]
    if any(finishes[:-1]) or finishes[-1] is None or finishes[-1] != whole.finish:
        faults.append(f"finishes {finishes}, in the end {whole.finish}")
    if outcome.tokens != whole.token_ids:
        faults.append("the events' tokens are not the whole's")
    if "".join(event.text for event in events) != whole.text:
        faults.append("the events' text is not the whole's")
    if tuple(source for event in events for source in event.sources) != whole.sources:
        faults.append("the events' sources are not the whole's")
    if {event.request_id for event in events} != {whole.request_id}:
        faults.append("an event of another request")
    return faults
