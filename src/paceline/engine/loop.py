"""One step of the engine: admit, read prompts, run a round, hand out what it committed.

The only place where device values become host values. Knows nothing of threads or callers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from paceline.engine.outbox import Committed, Reader
from paceline.engine.prefill import prefill_chunk
from paceline.engine.round import Machine, Plan, draft_next, run_round
from paceline.engine.scheduler import Scheduler, Sequence
from paceline.engine.slots import Batch
from paceline.errors import NumericsError
from paceline.types import SamplingFlags, SequenceStats, TokenLogprob, Verdict

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Loop:
    """Drives `machine` for the sequences in `scheduler`. prefill_chunk: positions a step reads."""

    machine: Machine
    scheduler: Scheduler
    prefill_chunk: int
    totals: SequenceStats = field(default_factory=SequenceStats)
    _readers: dict[int, Reader] = field(default_factory=dict)
    _sequences: dict[int, Sequence] = field(default_factory=dict)
    _batch: tuple[tuple[str, ...], Batch] | None = None

    def submit(self, sequence: Sequence, reader: Reader) -> None:
        """Queue a sequence; its events appear in `reader`."""
        self._readers[id(sequence)] = reader
        self.scheduler.add(sequence)

    def step(self) -> None:
        """Admit who can be admitted, read one chunk of one prompt, run one round."""
        for sequence in self.scheduler.admit():
            self._admit(sequence)
        prefilling = self.scheduler.prefilling
        if prefilling:
            with self._all_or_none(prefilling[:1]):
                self._prefill(prefilling[0])
        running = self.scheduler.running
        if running:
            with self._all_or_none(running):
                self._round(running)

    def drop(self, sequence: Sequence, error: Exception | None = None) -> None:
        """End a sequence from outside, wherever it stands."""
        reader = self._readers.get(id(sequence))
        if reader is not None and reader.finish is None:
            reader.close("cancelled" if error is None else "error", error)
            self._finish(sequence)

    def _admit(self, sequence: Sequence) -> None:
        slots, request = self.machine.slots, sequence.request
        stop_ids = tuple(sorted(self._readers[id(sequence)].stop_ids))
        base = sequence.slot * self.machine.pool.page_size
        sequence.stats.prompt_tokens = len(request.prompt)
        try:
            slots.admit(sequence.slot, request, base, stop_ids, sequence.k)
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
            if sequence.k:
                draft_next(self.machine, self._make_plan([sequence], sequence.k), committed=1)
            self.scheduler.start(sequence)
        sequence.stats.prefill_seconds += time.perf_counter() - began

    def _make_plan(self, running: list[Sequence], k: int) -> Plan:
        """Spans cover the window, the tokens it may commit, and the draft behind them."""
        limits = self.machine.slots.limits
        page = self.machine.pool.page_size
        reach = 2 * k + 2
        spans = tuple((s.slot * page, min(s.length + reach, limits.max_length)) for s in running)
        requests = tuple(s.request.id for s in running)
        if self._batch is None or self._batch[0] != requests:
            index = torch.tensor([s.slot for s in running], device=limits.device)
            self._batch = (requests, self.machine.slots.batch(index))
        return Plan(self._batch[1], spans, _flags(running), k, k)

    def _round(self, running: list[Sequence]) -> None:
        plan = self._make_plan(running, max(s.k for s in running))
        began = time.perf_counter()
        rows: list[Committed] = []
        settled: list[float] = []

        def outbox(verdict: Verdict) -> None:
            settled.append(time.perf_counter())
            rows.extend(_to_host(verdict, self.machine.drafter.sources, running))

        run_round(self.machine, plan, outbox)
        ended = time.perf_counter()
        for sequence, row in zip(running, rows, strict=True):
            stats = sequence.stats
            stats.verify_seconds += settled[0] - began
            stats.draft_seconds += ended - settled[0]
            stats.decode_seconds += ended - began
            self._settle(sequence, row)
        self.totals.rounds += 1

    def _settle(self, sequence: Sequence, row: Committed) -> None:
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
            self.machine.pool.clear(sequence.slot, sequence.length + sequence.k + 1)
            self.machine.drafter.release(sequence.slot)
        self.scheduler.finish(sequence)
        del self._readers[id(sequence)]
        _add(self.totals, sequence.stats)


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


def _to_host(
    verdict: Verdict, sources: tuple[str, ...], running: list[Sequence]
) -> list[Committed]:
    """Read one verdict: the round's only transfer to the host."""
    tokens, n = verdict.tokens.tolist(), verdict.n.tolist()
    accepted, evaluated = verdict.accepted.tolist(), verdict.evaluated.tolist()
    failed, rows = verdict.failed.tolist(), []
    ended, drafted = verdict.ended.tolist(), verdict.drafted.tolist()
    source = verdict.source.tolist()
    for row, sequence in enumerate(running):
        wanted = sequence.request.params.logprobs
        rows.append(
            Committed(
                token_ids=tuple(tokens[row][: n[row]]),
                source=sources[source[row]],
                drafted=drafted[row],
                evaluated=evaluated[row],
                accepted=accepted[row],
                ended=ended[row],
                failed=failed[row],
                logprobs=None if wanted is None else _logprobs(verdict, row, n[row], wanted),
            )
        )
    return rows


def _logprobs(verdict: Verdict, row: int, n: int, wanted: int) -> tuple[TokenLogprob, ...]:
    assert verdict.logprobs is not None
    chosen = verdict.logprobs.chosen[row].tolist()
    ids, top = verdict.logprobs.top_ids[row].tolist(), verdict.logprobs.top[row].tolist()
    tokens = verdict.tokens[row].tolist()
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
