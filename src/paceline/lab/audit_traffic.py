"""Live traffic on the user's pair: a stream among many is the stream alone.

Requests of random lengths, sampling parameters, draft lengths and priorities come from several
threads and an event loop and share prompt beginnings; the cache is kept so small that texts must
give their pages back and resume; a third are cancelled at random moments. Every text that is
finished must be the one that the same request gets alone, by plain decoding without a prefix cache;
one that is cancelled a beginning of it. Every event must come once, and in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from paceline import Completion, Engine, PacelineError
from paceline.lab.audit_clients import (
    Case,
    Outcome,
    TrafficOptions,
    disorder,
    finish_of,
    make_cases,
    play,
)
from paceline.lab.audit_identity import Divergence, divergence
from paceline.lab.audit_pair import Job, Pair, asserted
from paceline.types import EngineStats

Text = tuple[int, ...]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class TrafficResult:
    """One dtype. finished, cancelled: requests that ended so, of `requests`; compared: texts, with
    tokens and events in all; wrong: what must not be, in words, of which `lost` are requests that
    an event of was lost, came twice or out of order; divergences: texts that differ; stats: the
    engine's, when all had ended."""

    dtype: str
    asserted: bool
    requests: int
    finished: int
    cancelled: int
    compared: int
    tokens: int
    events: int
    lost: int
    wrong: tuple[str, ...]
    divergences: tuple[Divergence, ...]
    stats: EngineStats
    passed: bool


@dataclass(frozen=True, slots=True)
class TrafficReport:
    """All dtypes."""

    results: tuple[TrafficResult, ...]
    passed: bool


def audit_traffic(
    pair: Pair,
    prompts: Sequence[Text],
    options: TrafficOptions | None = None,
    progress: Progress = lambda what, done, total: None,
    prepare: Callable[[Engine], None] = lambda engine: None,
) -> TrafficReport:
    """Play the traffic in each dtype. prompts: token ids that requests' prompts are cut from.
    prepare: is given the engine of the traffic before the first request."""
    options = options or TrafficOptions()
    results = tuple(
        _one_dtype(pair, prompts, dtype, options, progress, prepare) for dtype in options.dtypes
    )
    return TrafficReport(results, all(result.passed for result in results))


def _one_dtype(
    pair: Pair,
    prompts: Sequence[Text],
    dtype: str,
    options: TrafficOptions,
    progress: Progress,
    prepare: Callable[[Engine], None],
) -> TrafficResult:
    cases = make_cases(prompts, options)
    drafter = options.drafter or ("model" if pair.draft is not None else "ngram:min=1")
    wrong, found, lost = list[str](), list[Divergence](), 0
    with _busy(pair, cases, drafter, dtype, options) as live:
        prepare(live)
        outcomes = play(live, cases, options, lambda n: progress(dtype, n, 2 * len(cases)))
        try:
            if not live.drain(options.patience):
                late = f"{options.patience:g} s after the last request"
                wrong.append(f"{late} the engine is not idle")
        except PacelineError as error:
            wrong.append(str(error))
        stats = live.stats()
    del live  # or its weights stay where the next one's have to go
    with pair.open("none", dtype=dtype, k=0, slots=1, prefix_cache=False) as judge:
        for number, (case, outcome) in enumerate(zip(cases, outcomes, strict=True)):
            faults = disorder(outcome)
            lost += bool(faults)
            tokens, length = outcome.tokens, case.job.length
            if finish_of(outcome) == "cancelled":  # all that can be compared
                length = len(tokens)
            alone = _alone(judge, replace(case.job, length=length)) if length else None
            faults += _faults(case, outcome, alone)
            wrong += [f"request {number}: {what}" for what in faults]
            text = () if alone is None else alone.token_ids
            where = divergence(judge, case.job, text, tokens)
            if where is not None:
                k = -1 if case.job.k is None else case.job.k
                found.append(replace(where, drafter=drafter, k=k, prompt=number))
            progress(dtype, len(cases) + number + 1, 2 * len(cases))
    if stats.pages_used or stats.waiting or stats.running:
        left = f"{stats.pages_used} pages, {stats.running} running, {stats.waiting} waiting"
        wrong.append(f"left behind: {left}")
    finishes, must = [finish_of(outcome) for outcome in outcomes], asserted(dtype, pair.device)
    return TrafficResult(
        dtype=dtype,
        asserted=must,
        requests=len(cases),
        finished=finishes.count("length"),
        cancelled=finishes.count("cancelled"),
        compared=sum(bool(outcome.tokens) for outcome in outcomes),
        tokens=sum(len(outcome.tokens) for outcome in outcomes),
        events=sum(len(outcome.events) for outcome in outcomes),
        lost=lost,
        wrong=tuple(wrong),
        divergences=tuple(found),
        stats=stats,
        passed=not wrong and not (must and found),
    )


def _busy(
    pair: Pair, cases: Sequence[Case], drafter: str, dtype: str, options: TrafficOptions
) -> Engine:
    """The engine of the traffic: its cache holds a share of what the requests could need."""
    longest = max(len(case.job.prompt) + case.job.length for case in cases)
    needed = longest + 2 * options.k + 2
    # No longer than the cache it is given.
    longest = needed if pair.max_length is None else min(needed, pair.max_length)
    return replace(pair, max_length=longest).open(
        drafter,
        dtype=dtype,
        k=options.k,
        slots=options.slots,
        adaptive=True,
        cache_tokens=max(needed + 64, int(options.cache * options.slots * needed)),
    )


def _alone(judge: Engine, job: Job) -> Completion:
    params = replace(job.params, max_tokens=job.length, ignore_eos=True)
    return judge.generate([list(job.prompt)], params)[0]


def _faults(case: Case, outcome: Outcome, alone: Completion | None) -> list[str]:
    """What must not be in one request's end, in words."""
    finish = finish_of(outcome)
    if finish is None or outcome.whole is None:
        return []  # told already
    faults = []
    allowed = ("length",) if case.cancel is None else ("length", "cancelled")
    if finish not in allowed:
        faults.append(f"ended with {finish}")
    if finish == "length" and len(outcome.tokens) != case.job.length:
        faults.append(f"{len(outcome.tokens)} tokens of {case.job.length}")
    if finish == "length" and alone is not None and outcome.tokens == alone.token_ids:
        faults += ["the same tokens, but another text"] * (outcome.whole.text != alone.text)
    return faults
