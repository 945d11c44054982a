"""Live traffic on the user's pair: a stream among many is the stream alone.

Requests of random lengths, sampling parameters, draft lengths and priorities come from several
threads and share prompt beginnings; the cache is kept so small that texts must give their pages
back and resume; a third are cancelled at random moments. Every text that is finished must be the
one that the same request gets alone, by plain decoding; one that is cancelled a beginning of it.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from paceline import Engine, Event, PacelineError, SamplingParams
from paceline.lab.audit_identity import Divergence, divergence
from paceline.lab.audit_pair import Job, Pair
from paceline.types import EngineStats

Text = tuple[int, ...]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class TrafficOptions:
    """requests: in all; cancelled: the share that is; dtypes: the first is asserted where it is
    float64. longest: tokens a text is asked for at most; slots, readers: texts at once, and
    threads that ask for them; cache: of what all slots could need, the share there is."""

    requests: int = 200
    cancelled: float = 1 / 3
    dtypes: tuple[str, ...] = ("float32",)
    longest: int = 120
    slots: int = 6
    readers: int = 12
    cache: float = 0.35
    k: int = 4
    drafter: str = "model"
    seed: int = 0


@dataclass(frozen=True, slots=True)
class TrafficResult:
    """One dtype. finished, cancelled: requests that ended so; wrong: what must not be, in words;
    divergences: finished texts that differ; stats: the engine's, when all had ended."""

    dtype: str
    asserted: bool
    finished: int
    cancelled: int
    wrong: tuple[str, ...]
    divergences: tuple[Divergence, ...]
    stats: EngineStats
    passed: bool


@dataclass(frozen=True, slots=True)
class TrafficReport:
    """All dtypes."""

    results: tuple[TrafficResult, ...]
    passed: bool


@dataclass(frozen=True, slots=True)
class _Case:
    """A request, and after how many events it is cancelled (None: never; 0: at once)."""

    job: Job
    priority: int
    cancel: int | None


@dataclass(slots=True)
class _Outcome:
    events: list[Event] = field(default_factory=list)
    error: str = ""

    @property
    def tokens(self) -> Text:
        return tuple(token for event in self.events for token in event.token_ids)


def audit_traffic(
    pair: Pair,
    prompts: Sequence[Text],
    options: TrafficOptions | None = None,
    progress: Progress = lambda what, done, total: None,
) -> TrafficReport:
    """Play the traffic in each dtype. prompts: token ids that requests' prompts are cut from."""
    options = options or TrafficOptions()
    results = tuple(_one_dtype(pair, prompts, dtype, options, progress) for dtype in options.dtypes)
    return TrafficReport(results, all(result.passed for result in results))


def _one_dtype(
    pair: Pair,
    prompts: Sequence[Text],
    dtype: str,
    options: TrafficOptions,
    progress: Progress,
) -> TrafficResult:
    cases = make_cases(prompts, options)
    longest = max(len(case.job.prompt) + case.job.length for case in cases)
    needed = longest + 2 * options.k + 2
    drafter = options.drafter if pair.draft is not None else "ngram:min=1"
    # No longer than the cache it is given.
    longest = needed if pair.max_length is None else min(needed, pair.max_length)
    live = replace(pair, max_length=longest).open(
        drafter,
        dtype=dtype,
        k=options.k,
        slots=options.slots,
        adaptive=True,
        cache_tokens=max(needed + 64, int(options.cache * options.slots * needed)),
    )
    wrong, found, cancelled = list[str](), list[Divergence](), 0
    with live:
        outcomes = play(live, cases, options.readers, lambda n: progress(dtype, n, 2 * len(cases)))
        try:
            if not live.drain(60):
                wrong.append("a minute after the last request the engine is not idle")
        except PacelineError as error:
            wrong.append(str(error))
        stats = live.stats()
    with pair.open("none", dtype=dtype, k=0, slots=1) as judge:
        for number, (case, outcome) in enumerate(zip(cases, outcomes, strict=True)):
            alone = _alone(judge, case.job)
            cancelled += outcome.events[-1].finish == "cancelled" if outcome.events else 0
            wrong += [f"request {number}: {what}" for what in _faults(case, outcome)]
            tokens = outcome.tokens
            if case.cancel is not None:
                alone = alone[: len(tokens)]
            where = divergence(judge, case.job, alone, tokens)
            if where is not None:
                k = -1 if case.job.k is None else case.job.k
                found.append(replace(where, drafter=drafter, k=k, prompt=number))
            progress(dtype, len(cases) + number + 1, 2 * len(cases))
    if stats.pages_used or stats.waiting or stats.running:
        wrong.append(f"left behind: {stats.pages_used} pages, {stats.running} running")
    asserted = dtype == "float64"
    return TrafficResult(
        dtype=dtype,
        asserted=asserted,
        finished=len(cases) - cancelled,
        cancelled=cancelled,
        wrong=tuple(wrong),
        divergences=tuple(found),
        stats=stats,
        passed=not wrong and not (asserted and found),
    )


def make_cases(prompts: Sequence[Text], options: TrafficOptions) -> list[_Case]:
    """The requests, the same for the same options."""
    rng = random.Random(options.seed)
    cases = []
    for number in range(options.requests):
        shared, other = rng.choice(prompts), rng.choice(prompts)
        own = other[: rng.randrange(1, 1 + min(len(other), 12))]
        prompt = shared[: rng.randrange(len(shared) + 1)] + own
        warm = rng.random() < 0.7
        params = SamplingParams(
            temperature=rng.choice((0.7, 1.0)) if warm else 0.0,
            top_p=rng.choice((1.0, 0.95)) if warm else 1.0,
            presence_penalty=rng.choice((0.0, 0.0, 0.3)),
            seed=number,
        )
        job = Job(
            prompt,
            params,
            rng.randrange(1, options.longest + 1),
            k=rng.choice((None, None, *range(options.k + 1))),
        )
        cancel = rng.randrange(6) if rng.random() < options.cancelled else None
        cases.append(_Case(job, rng.choice((0, 0, 0, 1, 2)), cancel))
    return cases


def play(
    engine: Engine, cases: Sequence[_Case], readers: int, told: Callable[[int], None]
) -> list[_Outcome]:
    """Ask for every case from one of `readers` threads; what each of them was given."""
    outcomes = [_Outcome() for _ in cases]
    turns, done = iter(range(len(cases))), 0
    lock = threading.Lock()

    def read() -> None:
        nonlocal done
        while True:
            with lock:
                number = next(turns, None)
            if number is None:
                return
            try:
                _read(engine, cases[number], outcomes[number])
            except Exception as error:  # told with the rest
                outcomes[number].error = repr(error)
            with lock:
                done += 1
                told(done)

    threads = [threading.Thread(target=read) for _ in range(readers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def _read(engine: Engine, case: _Case, outcome: _Outcome) -> None:
    job = case.job
    params = replace(job.params, max_tokens=job.length, ignore_eos=True)
    handle = engine.submit(job.prompt, params, k=job.k, priority=case.priority)
    if case.cancel == 0:
        time.sleep(random.random() * 0.01)  # while it waits, or while its prompt is read
        handle.cancel()
    for event in handle.events():
        outcome.events.append(event)
        if len(outcome.events) == case.cancel:
            handle.cancel()


def _alone(judge: Engine, job: Job) -> Text:
    params = replace(job.params, max_tokens=job.length, ignore_eos=True)
    return judge.generate([list(job.prompt)], params)[0].token_ids


def _faults(case: _Case, outcome: _Outcome) -> list[str]:
    """What must not be in one request's events, in words."""
    if outcome.error or not outcome.events:
        return [outcome.error or "no event at all"]
    faults = []
    finishes = [event.finish for event in outcome.events]
    if any(finishes[:-1]) or finishes[-1] is None:
        faults.append(f"finishes {finishes}")
    allowed = ("length",) if case.cancel is None else ("length", "cancelled")
    if finishes[-1] not in allowed:
        faults.append(f"ended with {finishes[-1]}")
    if finishes[-1] == "length" and len(outcome.tokens) != case.job.length:
        faults.append(f"{len(outcome.tokens)} tokens of {case.job.length}")
    return faults
