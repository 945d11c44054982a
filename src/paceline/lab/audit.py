"""The audit: is speculation on this pair exact? Five parts, each with its evidence.

(a) enumeration: tiny pairs, the joint law over rounds, exactly; (b) laws: G-tests on the user's
pair; (c) identity: the same text with and without speculation; (d) mutations: rules broken on
purpose, which (a) must find; (e) traffic: a stream among many is the stream alone. Prints nothing;
a report holds what there is to print.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import get_args

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
    """seeds: tiny random pairs of each size in the enumeration."""

    seeds: int = 3
    laws: LawOptions = field(default_factory=LawOptions)
    identity: IdentityOptions = field(default_factory=IdentityOptions)
    traffic: TrafficOptions = field(default_factory=TrafficOptions)


@dataclass(frozen=True, slots=True)
class AuditReport:
    """The five parts."""

    enumeration: EnumerationReport
    mutations: MutationReport
    laws: LawReport
    identity: IdentityReport
    traffic: TrafficReport
    passed: bool


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

    Raises what `Engine` raises. progress is called after every step of a part.
    """
    options = options or AuditOptions()
    enumeration = audit_enumeration(options.seeds, progress)
    mutations = audit_mutations(progress=progress)
    laws = audit_laws(pair, prompts, options.laws, progress)
    identity = audit_identity(pair, prompts, options.identity, progress)
    traffic = audit_traffic(pair, prompts, options.traffic, progress)
    parts = (enumeration, mutations, laws, identity, traffic)
    passed = all(part.passed for part in parts)
    return AuditReport(enumeration, mutations, laws, identity, traffic, passed)
