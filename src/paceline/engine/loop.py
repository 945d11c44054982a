"""One step of the engine: admit, read prompts, launch a round, hand out what one committed.

The only place where device values become host values. Knows nothing of threads or callers.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from paceline.engine.outbox import Committed, Reader
from paceline.engine.prefill import prefill_chunk
from paceline.engine.report import Report
from paceline.engine.round import Machine, Plan
from paceline.engine.rounds import Pending, Rounds
from paceline.engine.scheduler import Scheduler, Sequence, Status
from paceline.engine.slots import Batch
from paceline.errors import NumericsError
from paceline.types import Limits, SamplingFlags, SequenceStats, TokenLogprob

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Launched:
    """A round on its way, the sequences in its rows, and when it was launched."""

    rows: list[Sequence]
    pending: Pending
    at: float


@dataclass(slots=True)
class Loop:
    """Drives `machine` for the sequences in `scheduler`. prefill_chunk: positions a step reads."""

    machine: Machine
    rounds: Rounds
    scheduler: Scheduler
    prefill_chunk: int
    totals: SequenceStats = field(default_factory=SequenceStats)
    _readers: dict[int, Reader] = field(default_factory=dict)
    _sequences: dict[int, Sequence] = field(default_factory=dict)
    _batch: tuple[tuple[str, ...], Batch] | None = None
    _launched: deque[_Launched] = field(default_factory=deque)
    _settled_at: float = 0.0

    def submit(self, sequence: Sequence, reader: Reader) -> None:
        """Queue a sequence; its events appear in `reader`."""
        self._readers[id(sequence)] = reader
        self.scheduler.add(sequence)

    def step(self) -> None:
        """Admit who can be admitted, read one chunk of one prompt, launch one round, and settle
        those that are due."""
        for sequence in self.scheduler.admit():
            self._admit(sequence)
        prefilling = self.scheduler.prefilling
        if prefilling:
            with self._all_or_none(prefilling[:1]):
                self._prefill(prefilling[0])
        running, ahead = self.scheduler.running, 0
        if running:
            with self._all_or_none(running):
                plan = self._make_plan(running, max(s.k for s in running))
                pending = self.rounds.launch(plan)
                self._launched.append(_Launched(running, pending, time.perf_counter()))
                ahead = self.rounds.ahead(plan)
        while len(self._launched) > ahead:
            launched = self._launched.popleft()
            with self._all_or_none(launched.rows):
                self._settle(launched)

    def drop(self, sequence: Sequence, error: Exception | None = None) -> None:
        """End a sequence from outside, wherever it stands."""
        reader = self._readers.get(id(sequence))
        if reader is not None and reader.finish is None:
            reader.close("cancelled" if error is None else "error", error)
            self._finish(sequence)

    def _admit(self, sequence: Sequence) -> None:
        slots, request = self.machine.slots, sequence.request
        stop_ids = tuple(sorted(self._readers[id(sequence)].stop_ids))
        sequence.stats.prompt_tokens = len(request.prompt)
        try:
            slots.admit(sequence.slot, request, stop_ids, sequence.k)
            slots.set_pages(sequence.slot, 0, _pages_of(sequence.slot, slots.limits))
            self.machine.drafter.admit(sequence.slot, request)
        except Exception as error:
            self.drop(sequence, error)

    @contextmanager
    def _all_or_none(self, sequences: list[Sequence]) -> Iterator[None]:
        """Where a pass over `sequences` breaks off, none of them goes on: what it left of their
        state is not known."""
        try:
            yield
        except BaseException as error:
            for sequence in sequences:
                self.drop(sequence, error if isinstance(error, Exception) else None)
            raise

    def _prefill(self, sequence: Sequence) -> None:
        """Read the next chunk; after the last, draft for the first round and join."""
        began = time.perf_counter()
        last = len(sequence.request.prompt) - 1
        stop = min(sequence.prefilled + self.prefill_chunk, last)
        if stop > sequence.prefilled:
            prefill_chunk(self.machine, sequence.slot, sequence.prefilled, stop)
            sequence.prefilled = stop
        if stop == last:
            self.rounds.begin(self._make_plan([sequence], sequence.k))
            self.scheduler.start(sequence)
        sequence.stats.prefill_seconds += time.perf_counter() - began

    def _make_plan(self, running: list[Sequence], k: int) -> Plan:
        """Bounds cover the window, the tokens it may commit, and the draft behind them."""
        limits = self.machine.slots.limits
        reach = 2 * k + 2
        bounds = tuple(min(s.length + reach, limits.max_length) for s in running)
        requests = tuple(s.request.id for s in running)
        if self._batch is None or self._batch[0] != requests:
            index = torch.tensor([s.slot for s in running], device=limits.device)
            self._batch = (requests, self.machine.slots.batch(index))
        return Plan(self._batch[1], bounds, _flags(running), k, k)

    def _settle(self, launched: _Launched) -> None:
        """Read a round and book it. A row whose sequence has ended since is left out."""
        began = max(launched.at, self._settled_at)
        outcome = launched.pending.wait()
        self._settled_at = time.perf_counter()
        rows = _committed(outcome.report, self.machine.drafter.sources, launched.rows)
        for sequence, row in zip(launched.rows, rows, strict=True):
            if sequence.status is not Status.RUNNING:
                continue
            stats = sequence.stats
            stats.verify_seconds += outcome.verify_seconds
            stats.draft_seconds += outcome.draft_seconds
            stats.decode_seconds += self._settled_at - began
            self._book(sequence, row)
        self.totals.rounds += 1

    def _book(self, sequence: Sequence, row: Committed) -> None:
        """Book one row of a round and finish the sequence where it ended."""
        reader = self._readers[id(sequence)]
        sequence.length += len(row.token_ids)
        if row.failed:
            reader.close(
                "error",
                NumericsError(
                    f"request {sequence.request.id}: the target's logits are not finite, or every "
                    "token was masked; check logit_bias, or try dtype float32"
                ),
            )
        else:
            _count(sequence.stats, row, reader.take(row))
        if reader.finish is not None:
            self._finish(sequence)

    def _finish(self, sequence: Sequence) -> None:
        if sequence.slot:
            self.machine.slots.release(sequence.slot)
            # Masked positions are read too, times 0: what is not finite there must not stay.
            limits = self.machine.slots.limits
            used = -(-(sequence.length + sequence.k + 1) // limits.page_size)
            pages = _pages_of(sequence.slot, limits)[:used]
            self.machine.pool.clear(pages)
            self.machine.drafter.clear(pages)
            self.machine.drafter.release(sequence.slot)
        self.scheduler.finish(sequence)
        del self._readers[id(sequence)]
        _add(self.totals, sequence.stats)


def _pages_of(slot: int, limits: Limits) -> range:
    """A slot's own pages, one behind the other; page 0 is nobody's."""
    first = 1 + (slot - 1) * limits.table
    return range(first, first + limits.table)


def _flags(running: list[Sequence]) -> SamplingFlags:
    every = [s.request.params for s in running]
    return SamplingFlags(
        draws=any(p.temperature > 0 for p in every),
        penalties=any(p.penalized for p in every),
        bias=any(p.logit_bias for p in every),
        truncation=any(p.truncated for p in every),
        top_k=any(p.top_k > 0 for p in every),
        top_p=any(p.top_p < 1 for p in every),
        min_tokens=any(
            s.length - len(s.request.prompt) < s.request.params.min_tokens for s in running
        ),
        logprobs=max((-1 if p.logprobs is None else p.logprobs) for p in every),
    )


def _committed(
    report: Report, sources: tuple[str, ...], running: list[Sequence]
) -> list[Committed]:
    """A round's rows as the readers take them."""
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
                logprobs=None if wanted is None else _logprobs(report, row, n, wanted),
            )
        )
    return rows


def _logprobs(report: Report, row: int, n: int, wanted: int) -> tuple[TokenLogprob, ...]:
    assert report.logprobs is not None
    chosen = report.logprobs.chosen[row].tolist()
    ids, top = report.logprobs.top_ids[row].tolist(), report.logprobs.top[row].tolist()
    tokens = report.tokens[row]
    return tuple(
        TokenLogprob(
            tokens[i], chosen[i], tuple(zip(ids[i][:wanted], top[i][:wanted], strict=True))
        )
        for i in range(n)
    )


def _count(stats: SequenceStats, row: Committed, stand: int) -> None:
    """Book a row of which `stand` tokens stand.

    Acceptance is censored by the window and by the end of the text: only draft tokens that were
    evaluated and come before the end are counted.
    """
    evaluated, accepted = min(row.evaluated, stand), min(row.accepted, stand)
    stats.rounds += 1
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
        previous = stats.accepted_by_source.get(row.source, 0)
        stats.accepted_by_source[row.source] = previous + accepted


def _add(total: SequenceStats, part: SequenceStats) -> None:
    """Add a finished sequence's counts to the engine's. Rounds are the engine's own count."""
    for name in ("drafted", "evaluated", "accepted", "emitted", "prompt_tokens"):
        setattr(total, name, getattr(total, name) + getattr(part, name))
    for name in ("prefill_seconds", "decode_seconds", "draft_seconds", "verify_seconds"):
        setattr(total, name, getattr(total, name) + getattr(part, name))
    for mine, theirs in (
        (total.evaluated_by_position, part.evaluated_by_position),
        (total.accepted_by_position, part.accepted_by_position),
    ):
        mine += [0] * (len(theirs) - len(mine))
        for place, value in enumerate(theirs):
            mine[place] += value
    for source, value in part.accepted_by_source.items():
        total.accepted_by_source[source] = total.accepted_by_source.get(source, 0) + value
