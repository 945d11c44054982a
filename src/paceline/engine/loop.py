"""One step of the engine: admit, read prompts, launch a round, hand out what one committed.

Here what a round did becomes host values (`engine/report.py`), one round late. Which other files
read from the device is in tests/test_layering.py. Knows nothing of threads or callers.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import deque
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace

import torch

from paceline.engine import following
from paceline.engine.acceptance import Track
from paceline.engine.constrain import FORCED, Constrainer
from paceline.engine.feeding import Feeder, Read
from paceline.engine.ledger import Ledger, Live, refused, told
from paceline.engine.outbox import Committed, Reader
from paceline.engine.paging import Grant
from paceline.engine.pilot import Launch, Pilot
from paceline.engine.round import Machine, Plan
from paceline.engine.rounds import Pending, Rounds
from paceline.engine.scheduling import Scheduler
from paceline.engine.scoring import Scorer
from paceline.engine.sequence import Sequence
from paceline.engine.settling import committed, flags, spend, unforced
from paceline.engine.slots import Batch
from paceline.errors import PacelineError
from paceline.ops.upload import upload
from paceline.types import EngineStats, TokenLogprob

log = logging.getLogger(__name__)

_HOSTED = 0.5  # of the time between two rounds, that the host may launch reading for


@dataclass(frozen=True, slots=True)
class _Launched:
    """A round on its way: its rows, what was decided for it, and when it was launched. alone:
    no prompt was read between it and the round before it. follows: per row, how many tokens it may
    commit so that the drafter has then seen them all. reads: what was read in front of it."""

    rows: list[Sequence]
    tracks: list[Track]
    launch: Launch
    pending: Pending
    at: float
    alone: bool
    follows: list[int]
    reads: Seq[Read]


@dataclass(slots=True)
class Loop:
    """Drives `machine` for the sequences in `scheduler`. reach: positions past a text that a round
    and the draft behind it touch, at most; widest: draft tokens a round at most."""

    machine: Machine
    rounds: Rounds
    scheduler: Scheduler
    ledger: Ledger
    feeder: Feeder
    pilot: Pilot
    reach: int
    widest: int
    constrainer: Constrainer
    _batch: tuple[tuple[tuple[int, int], ...], Batch] | None = None
    _launched: deque[_Launched] = field(default_factory=deque)
    _settled_at: float = 0.0
    _round_seconds: float = 0.0
    _turn: bool = False  # of a drafter that is to be shown something: the next step feeds no prompt

    # --- what the driver calls ---

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return self.scheduler.idle and not self._launched

    def submit(self, sequence: Sequence, reader: Reader) -> None:
        """Queue a sequence; its events appear in `reader`."""
        params, was_idle = sequence.request.params, self.idle
        try:
            self.scheduler.add(sequence)
        except PacelineError as error:
            reader.close("error", error)
            reader.seal()
            return
        if was_idle:  # what goes by from now on is work
            self._settled_at = time.perf_counter()
            self.feeder.take()  # of a prompt that was given up
        sequence.stats.prompt_tokens = len(sequence.request.prompt)
        self.ledger.totals.prompt_tokens += len(sequence.request.prompt)
        remaining = min(params.max_tokens, sequence.limit - len(sequence.tokens))
        self.ledger.live[sequence] = Live(reader, self.pilot.track(sequence.k, remaining))

    def step(self) -> None:
        """Admit who can be admitted, read from prompts, launch one round, and settle those that
        are due."""
        for sequence in self.scheduler.expire(time.monotonic()):
            self.ledger.drop(sequence, "deadline")
        admitted = [(sequence, sequence.tokens) for sequence in self.scheduler.admit()]
        self.ledger.each(admitted, self._admit)
        busy = self._busy
        fed = self._feed(busy)
        ahead = self._launch(busy, alone=not fed) if self.scheduler.running else 0
        while len(self._launched) > ahead:
            self._settle(self._launched.popleft())

    def end_all(self, error: Exception) -> None:
        """Every request that is not finished fails with `error`; the device is not touched."""
        try:
            while self._launched:
                for sequence in self._launched.popleft().rows:
                    self.scheduler.settled(sequence, ())
        finally:  # whatever the books say: nobody may wait for ever
            self.ledger.end_all(error)

    def let_go(self) -> None:
        """Forget the models and caches, so that their memory is free. Nothing is driven from here
        on; `stats` goes on."""
        self._batch = None
        del self.machine, self.rounds, self.feeder, self.constrainer, self.ledger.machine

    def stats(self) -> EngineStats:
        """How things stand. May be called from any thread."""
        return self.ledger.stats(self.pilot.describe())

    def score(self, scorer: Scorer, top: int) -> Seq[TokenLogprob]:
        """The next log-probabilities of a text that is given, between two steps; none at its end.
        top: see `Scorer.logprobs`."""
        return self.feeder.score(scorer, top, self._busy)

    def answers(self) -> bool:
        """Whether the device still works, after a step that failed."""
        device = self.machine.slots.limits.device
        try:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return bool((torch.ones(2, device=device) + 1).sum().item() == 4)
        except Exception:  # whatever it is: a device that answers raises nothing
            return False

    # --- one step ---

    @property
    def _busy(self) -> float | None:
        """Seconds that a round of the running texts takes; None where none runs."""
        return self._round_seconds if self.scheduler.running else None

    def _admit(self, sequence: Sequence, tokens: list[int]) -> None:
        slots, request, live = self.machine.slots, sequence.request, self.ledger.live[sequence]
        live.track.waiting, sequence.stale = 0, False
        if not sequence.preemptions:
            sequence.stats.queue_seconds = time.perf_counter() - live.asked
            self.ledger.totals.queue_seconds += sequence.stats.queue_seconds
        self.ledger.book_hit(sequence)
        stop_ids = tuple(sorted(live.reader.stop_ids))
        written = tokens[len(request.prompt) :]
        slots.admit(sequence.slot, request, stop_ids, sequence.k, written)
        slots.set_pages(sequence.slot, 0, sequence.pages)
        try:
            self.machine.drafter.admit(sequence.slot, request)
        except PacelineError:
            raise
        except BaseException as error:  # a panic of a library in Rust is no Exception
            if not self.answers():
                raise
            raise refused(self.machine.drafter.name, error) from error

    def _feed(self, busy: float | None) -> bool:
        """Read from prompts what a step may; whether anything was read. busy: see `Feeder`."""
        left, fed = self.feeder.chunk, False
        if self._turn:
            self._turn = False
            return False
        for sequence in self.scheduler.prefilling:
            with self.ledger.all_or_none([sequence]):
                grant = self.scheduler.rematch(sequence)
                if grant is not None:
                    self._grant(grant)
                drafting = not self.pilot.paused
                tokens = self.feeder.step_tokens(sequence, left, drafting, busy)
                began = time.perf_counter()
                if tokens:
                    start = sequence.prefilled
                    self.feeder.read(sequence, tokens, drafting, busy)
                    if sequence.prefilled > start:  # else the drafter was brought up first
                        self.pilot.fed(sequence.prefilled - start)
                    left, fed = left - tokens, True
                if sequence.prefilled == len(sequence.tokens) - 1:
                    self._start(sequence)
                seconds = time.perf_counter() - began
                sequence.stats.prefill_seconds += seconds
                self.ledger.totals.prefill_seconds += seconds
            if left <= 0 or (fed and busy is not None and self.feeder.max_gap is not None):
                break
        return fed

    def _start(self, sequence: Sequence) -> None:
        """All of a text but its last token has been read: it joins the rounds."""
        live = self.ledger.live[sequence]
        self.ledger.book_hit(sequence)
        self.scheduler.start(sequence)
        k = self.pilot.first(live.track)
        shown = sequence.observed >= sequence.prefilled or not self._catches_up
        if k and shown and self.rounds.begin(lambda: self._make_plan([sequence], 0, k)):
            sequence.observed = len(sequence.tokens)
        else:
            live.track.waiting = 0

    def _launch(self, busy: float | None, alone: bool) -> int:
        """Launch a round of all that run; returns how many rounds may stay in flight. busy: see
        `Feeder`; alone: no prompt was read in front of it."""
        if self.scheduler.missing(self.scheduler.running, self.reach):
            self._make_room()
        rows = self.scheduler.running
        if not rows:
            return 0
        tracks = [self.ledger.live[s].track for s in rows]
        context = sum(len(s.tokens) for s in rows) / len(rows)
        if self._catches_up:
            for sequence, track in zip(rows, tracks, strict=True):
                track.behind = max(0, len(sequence.tokens) - 1 - sequence.observed)
        launch = self.pilot.plan(tracks, context)
        bound = any(s.request.constraint is not None for s in rows)
        with self.ledger.all_or_none(rows):
            for grant in self.scheduler.reserve(rows, self.reach):
                self._grant(grant)
            if not self._catch_up(rows, launch, busy):
                launch, self._turn = self.pilot.put_off(tracks, launch), not alone
            forced = [0] * len(rows)
            if bound:
                launch, forced = self._constrain(rows, launch)
            follows = [
                following.follows(s, n, self.widest) if launch.next_k else 0
                for s, n in zip(rows, forced, strict=True)
            ]
            plan = self._make_plan(rows, self.rounds.width(launch.k), launch.next_k)
            at = time.perf_counter()
            pending = self.rounds.launch(plan)
        self.scheduler.launched(rows, plan.k + 1)
        reads = self.feeder.take()
        self._launched.append(_Launched(rows, tracks, launch, pending, at, alone, follows, reads))
        return 0 if bound else self.rounds.ahead(plan)

    def _constrain(self, rows: list[Sequence], launch: Launch) -> tuple[Launch, list[int]]:
        """Tell the slots what may come in rows that a grammar binds; with the launch as it is then,
        and how many tokens are forced in each row."""
        k, forced, failed = self.constrainer.prepare(rows, launch.k, self.widest, self.rounds.width)
        for sequence, error in failed:
            self.ledger.live[sequence].error = told(error)
        asked = tuple(0 if n else a for n, a in zip(forced, launch.asked, strict=True))
        return replace(launch, k=k, asked=asked), forced

    def _catch_up(self, rows: list[Sequence], launch: Launch, busy: float | None) -> bool:
        """Show the drafter what it has not seen of the rows that it is to draft for; False where
        `max_gap` leaves too little time for all of it. A draft that nobody counts on, made without
        having seen it, is dropped: what is then proposed behind it would be taken for something
        that the drafter knows."""
        if not self._catches_up:
            return True
        lost = [s for s, asked in zip(rows, launch.asked, strict=True) if s.stale and not asked]
        if lost:
            self.machine.slots.drop_drafts([s.slot for s in lost])
        if not launch.next_k:
            return True
        wanted = [s for s, drafts in zip(rows, launch.drafts, strict=True) if drafts]
        behind = [s for s in wanted if following.room(s) < 1]
        return self.feeder.bring_up({s: len(s.tokens) for s in behind}, busy)

    def _make_room(self) -> None:
        """Preempt until there are pages for a round of those that then still run."""
        while self._launched:
            self._settle(self._launched.popleft())
        for sequence in self.scheduler.make_room(self.scheduler.running, self.reach):
            log.debug("request %s gives its pages back and waits", sequence.request.id)
            self.machine.slots.release(sequence.slot)
            self.machine.drafter.release(sequence.slot)

    def _grant(self, grant: Grant) -> None:
        self.machine.slots.set_pages(grant.slot, grant.first, grant.pages)

    @property
    def _catches_up(self) -> bool:
        """Whether the drafter has a cache that may fall behind."""
        return self.machine.drafter.needs.catch_up == "tokens"

    def _make_plan(self, rows: list[Sequence], k: int, next_k: int) -> Plan:
        """Bounds cover the window, the tokens it may commit, and the draft behind them."""
        limits = self.machine.slots.limits
        bounds = tuple(min(s.bound + k + next_k + 2, limits.max_length) for s in rows)
        who = tuple((s.slot, s.epoch) for s in rows)
        if self._batch is None or self._batch[0] != who:
            index = upload([s.slot for s in rows], limits.device)
            self._batch = (who, self.machine.slots.batch(index))
        return Plan(self._batch[1], bounds, flags(rows), k, next_k)

    def _settle(self, launched: _Launched) -> None:
        """Read a round and book it. A row whose sequence has ended since is left out."""
        with self.ledger.all_or_none(launched.rows):
            sources = (*self.machine.drafter.sources, FORCED)
            began, asked = max(launched.at, self._settled_at), launched.launch.asked
            try:
                outcome = launched.pending.wait()
                now = time.perf_counter()
                rows = committed(outcome.report, sources, launched.rows, asked, now - began)
            except BaseException:  # the round is over for its rows, however it ended
                for sequence in launched.rows:
                    self.scheduler.settled(sequence, ())
                raise
            for sequence, row in zip(launched.rows, rows, strict=True):
                self.scheduler.settled(sequence, row.token_ids)
            elapsed, self._settled_at = now - self._settled_at, now
            # With a plain round in flight, the launching of what is read behind it is seen a round
            # too soon: a long chunk's says nothing of either.
            others = (r for later in self._launched for r in later.reads)
            hosted = self.feeder.hosted(itertools.chain(launched.reads, others))
            known = elapsed if hosted < _HOSTED * elapsed else None
            reading = self.feeder.learn(launched.reads, known)
            self._round_seconds = outcome.verify_seconds + outcome.draft_seconds
            # What nobody reckoned with says nothing of the host.
            alone = launched.alone and all(read.planned for read in launched.reads)
            self.pilot.settled(
                launched.tracks,
                launched.launch,
                unforced(outcome.report, len(self.machine.drafter.sources)),
                verify_seconds=outcome.verify_seconds,
                draft_seconds=outcome.draft_seconds,
                wall_seconds=now - began if alone else None,
                elapsed_seconds=None if known is None else known - reading,
            )
            self.ledger.book_round(launched.launch.k, outcome, now - began)
            booked: list[tuple[Sequence, Committed]] = []
            for sequence, row, follows in zip(launched.rows, rows, launched.follows, strict=True):
                if sequence in self.ledger.live:
                    spend(sequence.stats, outcome, now - began, row.drafted, row.accepted)
                    if self._catches_up:
                        drafted = launched.launch.next_k > 0 and sequence.k > 0
                        following.settle(sequence, len(row.token_ids), follows, drafted)
                    else:  # it was shown the window, or has nothing to see
                        sequence.observed = sequence.prefilled
                    booked.append((sequence, row))
        self.ledger.each(booked, self.ledger.book)
