"""The summary of a bench run: the figures that a report and the planner read.

Types and how they are kept as JSON; how they are computed is `bench_figures`' affair.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from paceline.files import write_whole
from paceline.lab.bench_json import Malformed, build, plain
from paceline.lab.bench_record import SCHEMA, SUMMARY, Load, Opening, Problem


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and its 95% interval by bootstrap over prompts; low and high are None where too few
    prompts were measured for one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of `count` values, in seconds."""

    p50: float
    p95: float
    p99: float
    count: int


@dataclass(frozen=True, slots=True)
class Position:
    """Acceptance at one draft position, counted from 1.

    conditional: accepted / evaluated, given that all before were accepted. joint: that this one and
    all before it are accepted, the product of the conditional ones, so that windows which were
    shorter do not count against it.
    """

    position: int
    evaluated: int
    accepted: int
    conditional: float
    joint: float


@dataclass(frozen=True, slots=True)
class Source:
    """Acceptance of one drafter's tokens."""

    name: str
    drafted: int
    evaluated: int
    accepted: int


@dataclass(frozen=True, slots=True)
class TimeShares:
    """Parts of the time that requests took, summed over them: of the whole, 0 to 1.

    prefill, draft, verify, host and other add up to 1 (other: waiting for a slot, and what the
    engine does not say); waste is a part of draft and verify.
    """

    prefill: float
    draft: float
    verify: float
    host: float
    other: float
    waste: float


@dataclass(frozen=True, slots=True)
class Figures:
    """One contestant under one load, over all texts (category None) or one category's.

    requests, failed: texts asked for, and those that ended in an error; the figures are over the
    others. tokens, seconds: written, and the time in which they were: their own where each had
    nobody beside it, else that of the passes, failed texts and all. speedup: tokens a second of a
    request's time over those of the plain contestant of the same family (`over`), on the same
    prompts; writing_speedup: the same of the time after the first piece of text and of the tokens
    behind it, so without the reading of prompts. natural: share of texts that came to their end by
    themselves. length: tokens a text on average.
    """

    contestant: str
    load: Load
    category: str | None
    requests: int
    failed: int
    tokens: int
    seconds: float
    tok_s: Interval | None = None
    speedup: Interval | None = None
    writing_speedup: Interval | None = None
    over: str | None = None
    length: float | None = None
    natural: float | None = None
    ttft: Percentiles | None = None
    tpot: Percentiles | None = None
    tokens_per_round: float | None = None
    acceptance: float | None = None
    draft_efficiency: float | None = None
    positions: tuple[Position, ...] = ()
    sources: tuple[Source, ...] = ()
    time: TimeShares | None = None
    joules_per_token: float | None = None
    joules_from: str | None = None
    rss: int | None = None
    device_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Parting:
    """Where two texts part: at which token, where both engines tell them, and which character."""

    item: str
    turn: int
    character: int
    token: int | None
    text: str
    other: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """One contestant's texts beside another's, for the same prompts and sampling.

    binding: `other` is the plain decoding of the same engine, whose text a lossless engine gives
    again; else the comparison informs. lengths: tokens a text, this over other. unlike: prompts
    that the two did not read as the same number of tokens, so that their texts may differ.
    """

    contestant: str
    other: str
    binding: bool
    texts: int
    same: int
    lengths: float | None = None
    unlike: int = 0
    partings: tuple[Parting, ...] = ()


@dataclass(frozen=True, slots=True)
class Summary:
    """All that a run came to. settings, workload, machine: in words, by name. openings: the last of
    each contestant. planned: texts that were to be measured; measured: those that were. complete:
    whether that is all of them, and every contestant could be opened."""

    settings: dict[str, str]
    workload: dict[str, str]
    machine: dict[str, str]
    openings: tuple[Opening, ...]
    figures: tuple[Figures, ...]
    comparisons: tuple[Comparison, ...]
    problems: tuple[Problem, ...] = ()
    planned: int = 0
    measured: int = 0
    complete: bool = True
    verdict: tuple[str, ...] = ()


def write_summary(folder: Path, summary: Summary) -> None:
    """Write the summary whole or not at all."""
    value = {"schema": SCHEMA} | plain(summary)
    write_whole(folder / SUMMARY, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def read_summary(folder: Path) -> Summary:
    """Read a run's summary. Raises Malformed, and OSError where there is none."""
    try:
        value = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except ValueError as error:
        raise Malformed(f"{SUMMARY} is not JSON ({error})") from None
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise Malformed(f"{SUMMARY}: not of schema {SCHEMA}")
    return build(Summary, value)
