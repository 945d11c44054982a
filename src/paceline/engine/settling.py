"""From a round's report to the rows that readers take, and the counts that are kept of them.

Host only; moves nothing on the device and decides nothing.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace

from paceline.engine.outbox import Committed
from paceline.engine.report import Report
from paceline.engine.rounds import Outcome
from paceline.engine.sequence import Sequence
from paceline.types import SamplingFlags, SequenceStats, TokenLogprob


def flags(running: list[Sequence]) -> SamplingFlags:
    """The stages of the distribution that some row needs."""
    every = [s.request.params for s in running]
    return SamplingFlags(
        draws=any(p.temperature > 0 for p in every),
        penalties=any(p.penalized for p in every),
        bias=any(p.logit_bias for p in every),
        truncation=any(p.truncated for p in every),
        top_k=any(p.top_k > 0 for p in every),
        top_p=any(p.top_p < 1 for p in every),
        min_tokens=any(
            len(s.tokens) - len(s.request.prompt) < s.request.params.min_tokens for s in running
        ),
        mask=any(s.request.constraint is not None for s in running),
        logprobs=max((-1 if p.logprobs is None else p.logprobs) for p in every),
        processed=any(p.processed_logprobs and p.logprobs is not None for p in every),
    )


def committed(
    report: Report,
    sources: tuple[str, ...],
    running: list[Sequence],
    asked: tuple[int, ...],
    seconds: float,
) -> list[Committed]:
    """A round's rows as the readers take them. asked: per row, the draft tokens that its window
    was to hold; seconds: that the round took."""
    rows = []
    for row, sequence in enumerate(running):
        wanted, n = sequence.request.params.logprobs, report.n[row]
        rows.append(
            Committed(
                token_ids=tuple(report.tokens[row][:n]),
                source=sources[report.source[row]],
                drafted=report.drafted[row],
                evaluated=report.evaluated[row],
                accepted=report.accepted[row],
                ended=bool(report.ended[row]),
                failed=bool(report.failed[row]),
                k=asked[row],
                seconds=seconds,
                logprobs=None if wanted is None else _logprobs(report, row, n, wanted),
            )
        )
    return rows


def unforced(report: Report, forced: int) -> Report:
    """The report without the drafts of the source `forced`: no drafter is to be judged by them."""
    if forced not in report.source:
        return report

    def spared(values: list[int]) -> list[int]:
        pairs = zip(values, report.source, strict=True)
        return [0 if source == forced else value for value, source in pairs]

    return replace(
        report,
        drafted=spared(report.drafted),
        evaluated=spared(report.evaluated),
        accepted=spared(report.accepted),
    )


def _logprobs(report: Report, row: int, n: int, wanted: int) -> tuple[TokenLogprob, ...]:
    assert report.logprobs is not None
    chosen = report.logprobs.chosen[row].tolist()
    ids, top = report.logprobs.top_ids[row].tolist(), report.logprobs.top[row].tolist()
    tokens, told = report.tokens[row], []
    for i in range(n):
        likeliest = zip(ids[i][:wanted], top[i][:wanted], strict=True)
        # What can never come is not among the likeliest, however few others there are.
        possible = tuple((token, value) for token, value in likeliest if value > -math.inf)
        told.append(TokenLogprob(tokens[i], chosen[i], possible))
    return tuple(told)


def count(stats: SequenceStats, row: Committed, stand: int) -> None:
    """Book a row of which `stand` tokens stand.

    Acceptance is censored by the window and by the end of the text: only draft tokens that were
    evaluated and come before the end are counted.
    """
    evaluated, accepted = min(row.evaluated, stand), min(row.accepted, stand)
    stats.drafted += row.drafted
    stats.evaluated += evaluated
    stats.accepted += accepted
    missing = evaluated - len(stats.evaluated_by_position)
    stats.evaluated_by_position += [0] * missing
    stats.accepted_by_position += [0] * missing
    for place in range(evaluated):
        stats.evaluated_by_position[place] += 1
        stats.accepted_by_position[place] += place < accepted
    if row.drafted:
        for counts, value in (
            (stats.drafted_by_source, row.drafted),
            (stats.evaluated_by_source, evaluated),
            (stats.accepted_by_source, accepted),
        ):
            counts[row.source] = counts.get(row.source, 0) + value


def spend(
    stats: SequenceStats,
    outcome: Outcome,
    seconds: float,
    drafted: int,
    accepted: int,
    rows: int = 1,
) -> None:
    """Book a round's time. seconds: all of it; drafted, accepted: of `rows` together, to whose
    account it goes. Wasted is the share of what was drafted, and of the window's positions, that
    was not accepted."""
    stats.verify_seconds += outcome.verify_seconds
    stats.draft_seconds += outcome.draft_seconds
    stats.decode_seconds += seconds
    if lost := drafted - accepted:
        stats.wasted_seconds += outcome.draft_seconds * lost / drafted
        stats.wasted_seconds += outcome.verify_seconds * lost / (drafted + rows)


def copied(stats: SequenceStats, into: SequenceStats) -> None:
    """Copy counts, while another thread may count on."""
    for item in fields(SequenceStats):
        value = getattr(stats, item.name)
        setattr(into, item.name, value.copy() if isinstance(value, list | dict) else value)
