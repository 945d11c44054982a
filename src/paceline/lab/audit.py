"""The audit: is speculation on this pair exact? Five parts, each with its evidence.

(a) enumeration: tiny pairs, the joint law over rounds, exactly; (b) laws: G-tests on the user's
pair; (c) identity: the same text with and without speculation; (d) mutations: rules broken on
purpose, which (a) must find; (e) traffic: a stream among many is the stream alone. Prints nothing;
a report holds what there is to print.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar, get_args

import torch

from paceline import CheckpointError, PacelineError
from paceline.lab.audit_clients import TrafficOptions
from paceline.lab.audit_enumeration import Enumeration, EnumerationResult
from paceline.lab.audit_identity import IdentityOptions, IdentityReport, audit_identity
from paceline.lab.audit_laws import LawOptions, LawReport, audit_laws
from paceline.lab.audit_mutations import MUTANTS
from paceline.lab.audit_pair import Pair
from paceline.lab.audit_reference import Schedule, random_pair
from paceline.lab.audit_traffic import TrafficReport, audit_traffic
from paceline.speculation.verify import RULES, Rule
from paceline.types import RuleName

__all__ = [
    "AuditOptions",
    "AuditReport",
    "EnumerationReport",
    "IdentityOptions",
    "LawOptions",
    "MutationReport",
    "Pair",
    "TrafficOptions",
    "audit",
    "audit_enumeration",
    "audit_identity",
    "audit_laws",
    "audit_mutations",
    "audit_traffic",
]

Report = TypeVar("Report")
Progress = Callable[[str, int, int], None]  # what, done, of how many
SIZES = ((2, 1, 5), (2, 2, 5), (2, 3, 5), (3, 2, 4))  # vocabulary, K, tokens compared


@dataclass(frozen=True, slots=True)
class EnumerationReport:
    """All cases; worst: the largest total variation met, exactly 0 if all passed."""

    results: tuple[EnumerationResult, ...]
    cells: int
    worst: float
    passed: bool


@dataclass(frozen=True, slots=True)
class MutantResult:
    """A broken rule; found: some case told it from a sound one, by this total variation."""

    name: str
    found: bool
    total_variation: float


@dataclass(frozen=True, slots=True)
class MutationReport:
    """All broken rules; passed: every one was found."""

    results: tuple[MutantResult, ...]
    passed: bool


@dataclass(frozen=True, slots=True)
class AuditOptions:
    """seeds: tiny random pairs of each size in the enumeration. fallback: the dtype for laws and
    traffic where theirs does not fit on the device; None where somebody asked for what they have,
    and then no dtype may be left out."""

    seeds: int = 3
    laws: LawOptions = field(default_factory=LawOptions)
    identity: IdentityOptions = field(default_factory=IdentityOptions)
    traffic: TrafficOptions = field(default_factory=TrafficOptions)
    fallback: str | None = "bfloat16"

    def asking(self, dtypes: Sequence[str], drafters: Sequence[str]) -> AuditOptions:
        """These with the dtypes that somebody asked for, in their order, the laws in the first of
        them; and with more drafters, the last of which also serves the traffic."""
        asked = self
        if dtypes:
            asked = replace(
                asked,
                laws=replace(asked.laws, dtype=dtypes[0]),
                identity=replace(asked.identity, dtypes=tuple(dtypes)),
                traffic=replace(asked.traffic, dtypes=tuple(dtypes)),
                fallback=None,
            )
        if drafters:
            asked = replace(
                asked,
                laws=replace(asked.laws, drafters=tuple(drafters)),
                identity=replace(asked.identity, drafters=tuple(drafters)),
                traffic=replace(asked.traffic, drafter=drafters[-1]),
            )
        return asked


@dataclass(frozen=True, slots=True)
class AuditReport:
    """The five parts; None for one that could not be done. left_out: dtypes that did not fit on the
    device, where others did; incomplete: what could not be done, and why, by part. passed: all
    parts were done and none failed."""

    enumeration: EnumerationReport
    mutations: MutationReport
    laws: LawReport | None
    identity: IdentityReport | None
    traffic: TrafficReport | None
    passed: bool
    left_out: tuple[str, ...] = ()
    incomplete: dict[str, str] = field(default_factory=dict)


def _constant(k: int) -> Callable[[int, tuple[int, ...]], int]:
    return lambda number, text: k


def _changing(k: int) -> Callable[[int, tuple[int, ...]], int]:
    """The count depends on the round and on what was committed, zero included."""
    return lambda number, text: (number + sum(text) + 1) % (k + 1)


def schedules(k: int, tokens: int) -> Iterator[Schedule]:
    """Three ways to draft: always k tokens, changing counts, and proposals without choice."""
    yield Schedule(k, _constant(k), tokens=tokens)
    yield Schedule(k, _changing(k), tokens=tokens)
    yield Schedule(k, _constant(k), tokens=tokens, one_hot_q=True)


def audit_enumeration(
    seeds: int = 3, progress: Progress = lambda what, done, total: None
) -> EnumerationReport:
    """Part (a): every rule, size and schedule on `seeds` tiny pairs, three rounds each."""
    names: tuple[RuleName, ...] = get_args(RuleName)
    cases = [
        (RULES[name], v, schedule, seed)
        for name in names
        for v, k, tokens in SIZES
        for schedule in schedules(k, tokens)
        for seed in range(seeds)
    ]
    results: list[EnumerationResult] = []
    for rule, v, schedule, seed in cases:
        results.append(_enumerate(rule, v, schedule, seed))
        what = f"{rule.name}, {v} tokens, K = {schedule.k}"
        progress(what, len(results), len(cases))
    return EnumerationReport(
        results=tuple(results),
        cells=sum(r.cells for r in results),
        worst=max((r.total_variation for r in results), default=0.0),
        passed=bool(results) and all(r.passed for r in results),
    )


def _enumerate(rule: Rule, vocab_size: int, schedule: Schedule, seed: int) -> EnumerationResult:
    pair = random_pair(vocab_size, schedule.tokens + schedule.k, seed)
    return Enumeration(rule, pair, schedule).run()


def audit_mutations(
    seeds: int = 6, progress: Progress = lambda what, done, total: None
) -> MutationReport:
    """Part (d): run the enumeration on each broken rule until it fails, as it must."""
    results: list[MutantResult] = []
    for name, mutant in MUTANTS.items():
        runs = (
            _enumerate(mutant, v, Schedule(k, _constant(k), tokens=tokens), seed)
            for seed in range(seeds)
            for v, k, tokens in ((2, 2, 5), (3, 2, 4))
        )
        failure = next((run for run in runs if not run.passed), None)
        distance = 0.0 if failure is None else failure.total_variation
        results.append(MutantResult(name, failure is not None, distance))
        progress(name, len(results), len(MUTANTS))
    return MutationReport(tuple(results), all(r.found for r in results))


def audit(
    pair: Pair,
    prompts: Sequence[tuple[int, ...]],
    options: AuditOptions | None = None,
    progress: Progress = lambda what, done, total: None,
) -> AuditReport:
    """Run all five parts on a pair. prompts: token ids, several, of text like the user's.

    What an engine raises ends its part and is in the report: the others' evidence is kept.
    progress is called after every step of a part.
    """
    options = options or AuditOptions()
    enumeration = audit_enumeration(options.seeds, progress)
    mutations = audit_mutations(progress=progress)
    parts = _Parts(options.fallback)
    one, many = options.laws, options.traffic
    laws = parts.first(
        "laws",
        lambda dtype: audit_laws(pair, prompts, replace(one, dtype=dtype), progress),
        one.dtype,
    )
    found = parts.every(
        "identity",
        lambda dtype: audit_identity(
            pair, prompts, replace(options.identity, dtypes=(dtype,)), progress
        ),
        options.identity.dtypes,
    )
    results = [
        parts.first(
            "traffic",
            lambda dtype: audit_traffic(pair, prompts, replace(many, dtypes=(dtype,)), progress),
            dtype,
        )
        for dtype in many.dtypes
    ]
    identity = IdentityReport(
        tuple(result for report in found for result in report.results),
        all(report.passed for report in found),
    )
    traffic = TrafficReport(
        tuple(result for report in results if report for result in report.results),
        all(report.passed for report in results if report),
    )
    done = (
        enumeration,
        mutations,
        laws,
        identity if identity.results else None,
        traffic if traffic.results else None,
    )
    passed = not parts.incomplete and all(part is not None and part.passed for part in done)
    return AuditReport(*done, passed, tuple(dict.fromkeys(parts.left_out)), parts.incomplete)


class _Parts:
    """Does parts in dtypes that fit on the device, and keeps what could not be done."""

    def __init__(self, fallback: str | None) -> None:
        """fallback: see `AuditOptions`."""
        self.fallback = fallback
        self.left_out: list[str] = []
        self.incomplete: dict[str, str] = {}

    def first(self, name: str, do: Callable[[str], Report], dtype: str) -> Report | None:
        """The part in `dtype`, or in the fallback."""
        further = () if self.fallback in (None, dtype) else (self.fallback,)
        return next(iter(self._done(name, do, (dtype, *further), most=1)), None)

    def every(self, name: str, do: Callable[[str], Report], dtypes: Sequence[str]) -> list[Report]:
        """The part in each dtype."""
        return self._done(name, do, dtypes, most=len(dtypes))

    def _done(
        self, name: str, do: Callable[[str], Report], dtypes: Sequence[str], most: int
    ) -> list[Report]:
        done: list[Report] = []
        refused: dict[str, str] = {}
        for dtype in dtypes:
            try:
                done.append(do(dtype))
            except CheckpointError as error:  # it is too large, having been opened before
                refused[dtype] = str(error)
            except (PacelineError, torch.OutOfMemoryError) as error:
                self._missing(name, f"{dtype}: {error}")
            if len(done) == most:
                break
        told = [f"{dtype}: {why}" for dtype, why in refused.items()]
        if done and self.fallback is not None:
            self.left_out += told
        else:
            for one in told:
                self._missing(name, one)
        return done

    def _missing(self, name: str, why: str) -> None:
        before = self.incomplete.get(name)
        self.incomplete[name] = why if before is None else f"{before}; {why}"
