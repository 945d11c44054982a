"""Who is being served: every request that is not finished, what it is told, and how it ends.

The host's side of a round's outcome. Decides nothing about rounds; `engine.loop` has those.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from traceback import clear_frames
from typing import TypeVar

from paceline.engine.acceptance import Track
from paceline.engine.outbox import Committed, Reader
from paceline.engine.round import Machine
from paceline.engine.rounds import Outcome
from paceline.engine.scheduling import Scheduler
from paceline.engine.sequence import Sequence, Status
from paceline.engine.settling import copied, count, spend
from paceline.errors import NumericsError, PacelineError, StepError
from paceline.types import EngineStats, FinishReason, Limits, SequenceStats

log = logging.getLogger(__name__)

_T = TypeVar("_T")


@dataclass(slots=True)
class Live:
    """What belongs to a sequence while it is not finished. asked: when it came."""

    reader: Reader
    track: Track
    error: Exception | None = None  # why its next round will fail, where that is known
    asked: float = field(default_factory=time.perf_counter)


@dataclass(slots=True)
class Ledger:
    """The requests that are not finished, and the counts over all there were. totals: what rounds
    were made of, and the engine's seconds in them."""

    machine: Machine
    scheduler: Scheduler
    live: dict[Sequence, Live] = field(default_factory=dict)
    totals: SequenceStats = field(default_factory=SequenceStats)
    finished: int = 0
    rounds_by_k: list[int] = field(default_factory=list)
    limits: Limits = field(init=False)

    def __post_init__(self) -> None:
        self.limits = self.machine.slots.limits

    def drop(
        self, sequence: Sequence, finish: FinishReason, error: Exception | None = None
    ) -> None:
        """End a sequence from outside, wherever it stands; nothing happens to one that has."""
        live = self.live.get(sequence)
        if live is not None:
            live.reader.close(finish, error)
            self._finish(sequence, keep=finish != "error")

    def end_all(self, error: Exception) -> None:
        """Every request that is not finished fails with `error`; the device is not touched. No
        round may be in flight any more, as far as the scheduler knows."""
        ended, self.live = self.live, {}
        try:
            for sequence in ended:
                self.scheduler.finish(sequence, keep=False)
        finally:
            for live in ended.values():
                live.reader.close("error", own(error))
                live.reader.seal()

    def book(self, sequence: Sequence, row: Committed) -> None:
        """Book one row of a round and finish the sequence where it ended."""
        reader = self.live[sequence].reader
        if row.failed:
            reader.close(
                "error",
                self.live[sequence].error
                or NumericsError(
                    f"request {sequence.request.id}: the target's logits are not finite, or every "
                    "token was masked; check logit_bias, or try dtype float32"
                ),
            )
        else:
            stand = reader.take(row)
            count(sequence.stats, row, stand)
            count(self.totals, row, stand)
            sequence.stats.rounds += 1
            self.totals.emitted += stand
            if sequence.request.constraint is not None:
                sequence.request.constraint.commit(row.token_ids)
        if reader.finish is not None:
            self._finish(sequence, keep=not row.failed)

    def _finish(self, sequence: Sequence, keep: bool) -> None:
        reader = self.live.pop(sequence).reader
        try:
            if sequence.status in (Status.PREFILL, Status.RUNNING):
                self.machine.slots.release(sequence.slot)
                self.machine.drafter.release(sequence.slot)
        finally:  # whatever the device or a drafter says: nobody else may find it running
            try:
                self.scheduler.finish(sequence, keep)
            finally:
                self.finished += 1
                reader.seal()

    def book_hit(self, sequence: Sequence) -> None:
        """Book what the prefix cache has spared a prompt so far. One that comes back after a
        preemption may find what it has read itself: that is not counted."""
        if not sequence.preemptions:
            gained = sequence.hit - sequence.stats.cached_tokens
            sequence.stats.cached_tokens += gained
            self.totals.cached_tokens += gained

    def book_round(self, k: int, outcome: Outcome, seconds: float) -> None:
        """Book a round of all rows, whose windows had room for k draft tokens, and its time."""
        report = outcome.report
        drafted, accepted = sum(report.drafted), sum(report.accepted)
        self.totals.rounds += 1
        spend(self.totals, outcome, seconds, drafted, accepted, len(report.n))
        self.rounds_by_k += [0] * (k + 1 - len(self.rounds_by_k))
        self.rounds_by_k[k] += 1

    @contextmanager
    def all_or_none(self, sequences: list[Sequence]) -> Iterator[None]:
        """Where a pass over `sequences` breaks off, none of them goes on: what it left of their
        state is not known. Rounds of theirs in flight are settled in their turn."""
        try:
            yield
        except BaseException as error:  # a panic of a library in Rust is no Exception
            for sequence in sequences:
                try:
                    self.drop(sequence, "error", told(error))
                except BaseException:  # each of them must end; the first error says why
                    log.debug("request %s: not released", sequence.request.id, exc_info=True)
            raise

    def each(
        self, cases: Iterable[tuple[Sequence, _T]], do: Callable[[Sequence, _T], None]
    ) -> None:
        """`do` for each sequence alone: one that fails ends, and only then is its error raised;
        a PacelineError is that request's own, and not raised."""
        first: BaseException | None = None
        for sequence, value in cases:
            try:
                with self.all_or_none([sequence]):
                    do(sequence, value)
            except PacelineError as error:
                log.info("request %s ends: %s", sequence.request.id, error)
                clear_frames(error.__traceback__)  # its reader keeps it: not what it was made of
            except BaseException as error:  # raised once all have had their turn
                first = first or error
        if first is not None:
            raise first

    def stats(self, speculation: str) -> EngineStats:
        """How things stand; speculation: what is done about drafting, in words. May be called from
        any thread."""
        counts, limits = self.scheduler.counts(), self.limits
        stats = EngineStats(
            finished=self.finished,
            waiting=counts.waiting,
            running=counts.running + counts.prefilling,
            preemptions=counts.preemptions,
            cache_tokens=limits.positions,
            cache_texts=limits.texts,
            pages=self.scheduler.pages.total,
            pages_used=counts.pages_used,
            pages_cached=counts.pages_cached,
            prefix_asked=counts.prefix_asked,
            prefix_hits=counts.prefix_hits,
            rounds_by_k=list(self.rounds_by_k),
            speculation=speculation,
        )
        copied(self.totals, into=stats)
        return stats


def own(error: Exception) -> Exception:
    """`error` as one of many may raise it, who each add to what it remembers."""
    made = copy(error)
    made.__cause__ = error.__cause__
    return made


def refused(name: str, error: BaseException) -> StepError:
    """What a request is told that the drafter `name` could not take."""
    log.error("drafter %r could not take a request: %r", name, error, exc_info=error)
    clear_frames(error.__traceback__)
    return StepError(
        f"the drafter {name!r} could not take this request: {_brief(error)}; this request ended "
        "with it: open the engine with another drafter, and report it"
    )


def told(error: BaseException) -> PacelineError:
    """What a request of a step that broke off is given: an error of its own, since whoever raises
    it adds to what it remembers."""
    made: PacelineError
    if isinstance(error, PacelineError):
        made = copy(error)
    else:
        made = StepError(
            f"the engine met {_brief(error)}; this request ended with it: "
            "send it again, and if it goes on, open a new engine and report it"
        )
    made.__cause__ = error
    return made


def _brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
