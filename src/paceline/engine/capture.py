"""Rounds as CUDA graphs: recorded when the engine opens, replayed with no host work between.

A round becomes two graphs, up to the outbox and after it, so that the host reads its tokens while
the device drafts, and any draft may follow any window. What differs between two rounds of one key
(rows, lengths, tokens, parameters) lies in device arrays; what is left is the key: rows rounded
up, draft tokens, sampling stages.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from paceline.config import MAX_LOGPROBS
from paceline.drafters.base import Drafter
from paceline.engine.landing import Landing, Marks
from paceline.engine.round import Machine, Plan, draft_after, verify_and_commit
from paceline.engine.rounds import Outcome, Pending
from paceline.engine.slots import Batch
from paceline.errors import ConfigError, PacelineError
from paceline.types import SamplingFlags, TargetOut, Verdict, Window

log = logging.getLogger(__name__)

# Sampling stages that a graph has, least first; a round takes the first that has all it needs.
# A stage that no row needs changes no value.
LEVELS = (
    SamplingFlags(),
    SamplingFlags(draws=True, bias=True, min_tokens=True),
    SamplingFlags(draws=True, bias=True, min_tokens=True, truncation=True),
    SamplingFlags(
        draws=True,
        penalties=True,
        bias=True,
        truncation=True,
        min_tokens=True,
        logprobs=MAX_LOGPROBS,
        mask=True,
        processed=True,
    ),
)
_BUFFERS = 3  # verdicts of one key that may be on their way to the host

Progress = Callable[[int, int], None]


_Record: TypeAlias = "Callable[[Callable[[], None]], Recording]"


class Recording:
    """Work as a CUDA graph. On another device it is run again at each replay, which lets tests
    drive everything around it."""

    def __init__(
        self,
        work: Callable[[], None],
        device: torch.device,
        pool: Any,
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        """pool: the handle of the memory pool that graphs share which never run at the same
        time; stream: the one they are recorded on, as a pool keeps what is free by stream."""
        self._work, self._graph = work, None
        if device.type != "cuda":
            work()
            return
        self._graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(device)
        if stream is None:
            stream = torch.cuda.Stream(device)
        with torch.cuda.stream(stream), _no_collection():
            self._graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                work()
            except BaseException:
                with suppress(RuntimeError):  # or the next call would fail for this, and hide it
                    self._graph.capture_end()
                raise
            self._graph.capture_end()

    def replay(self) -> None:
        """Run it."""
        if self._graph is None:
            self._work()
        else:
            self._graph.replay()


def recorder(device: torch.device) -> _Record:
    """What records work for `device`, all of it in one memory pool and on one stream: of what it
    makes no two may run at the same time."""
    if device.type != "cuda":
        return partial(Recording, device=device, pool=None)
    pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)
    return partial(Recording, device=device, pool=pool, stream=stream)


@contextmanager
def drafting(drafter: Drafter) -> Iterator[None]:
    """What goes wrong in here while work is recorded is the drafter's. Raises ConfigError."""
    try:
        yield
    except (PacelineError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        name = "+".join(drafter.sources)
        raise ConfigError(
            f"drafter {name!r} cannot be recorded ({type(error).__name__}: {reason}): propose and "
            "observe may not read the device (item, tolist, an if on a tensor), copy to it, or "
            "make a shape from values; capture=False runs every round at once instead"
        ) from error


@contextmanager
def _no_collection() -> Iterator[None]:
    """An older engine's graphs, collected in the middle of a recording, would break it."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@dataclass(slots=True)
class _Rows:
    """The rows of every recording of one size: what they read, and what was last put there."""

    batch: Batch
    loaded: Batch | None = None


class _Verify:
    """The first half of a round, and where its verdict lands."""

    def __init__(self, machine: Machine, plan: Plan, record: _Record) -> None:
        self._machine = machine
        self._seen: tuple[Window, TargetOut] | None
        self._verdict: Verdict

        def work() -> None:
            window, out, self._verdict = verify_and_commit(machine, plan)
            self._seen = window, out

        self._recording, device = record(work), machine.slots.limits.device
        report, logprobs = self._verdict.report, self._verdict.logprobs
        self._buffers = [Landing(report, logprobs, device) for _ in range(_BUFFERS)]
        self._turn = 0

    def draft_after(self, plan: Plan) -> None:
        """The second half of its round, as `plan` has it."""
        assert self._seen is not None
        draft_after(self._machine, plan, *self._seen, self._verdict)

    def forget(self) -> None:
        """Every second half is recorded: its logits, which take much, may make room in the pool."""
        self._seen = None

    def replay(self) -> Landing:
        """Run it; its verdict is on its way to where this says."""
        self._recording.replay()
        buffer, verdict = self._buffers[self._turn], self._verdict
        self._turn = (self._turn + 1) % _BUFFERS
        buffer.fill(verdict.report, verdict.logprobs)
        return buffer


# (rows, draft tokens, level), and for the second half (rows, draft tokens verified or 0 where that
# does not matter, draft tokens to make, level).
_First: TypeAlias = tuple[int, int, int]
_Second: TypeAlias = tuple[int, int, int, int]


def widths(k: int) -> tuple[int, ...]:
    """Draft lengths that rounds are recorded for where the policy chooses: 0 to k, thinned out."""
    return tuple(sorted({0, k, *range(1, min(k, 5)), *range(6, k, 2)}))


def every_plan(machine: Machine, ks: Sequence[int]) -> dict[_First, Plan]:
    """A plan of idle rows, which write scratch only, for every window there can be, with a draft
    as long behind it. The largest first, so that memory it needed serves the others."""
    limits, plans = machine.slots.limits, {}
    sizes = [1 << i for i in range((limits.slots - 2).bit_length() + 1)]
    for size in reversed(sizes):
        index = torch.zeros(size, dtype=torch.int64, device=limits.device)
        batch, bounds = machine.slots.batch(index), (limits.max_length,) * size
        for k, level in itertools.product(sorted(set(ks), reverse=True), range(len(LEVELS))):
            plans[size, k, level] = Plan(batch, bounds, LEVELS[level], k, k)
    return plans


def run_once(machine: Machine, plan: Plan, widest: int) -> None:
    """The round of `plan` with the draft behind it as it is recorded: a kernel that is met first
    while a graph is being recorded cannot be loaded."""
    window, out, verdict = verify_and_commit(machine, plan)
    draft_after(machine, _widened(machine, plan, widest), window, out, verdict)


def _widened(machine: Machine, plan: Plan, widest: int) -> Plan:
    """A draft serves whatever window came before: to a drafter that does not observe it, the
    widest."""
    return plan if machine.drafter.needs.catch_up == "observe" else replace(plan, k=widest)


class CapturedRounds:
    """See `Rounds`. Rows that a round does not fill are slot 0, which is never active."""

    def __init__(
        self, machine: Machine, ks: Sequence[int], progress: Progress | None = None
    ) -> None:
        """Record every round there can be. ks: the draft lengths, 0 among them or not.
        progress(done, all) is called on the way."""
        self._machine, self.ks = machine, tuple(sorted({0, *ks}))
        self._device = machine.slots.limits.device
        on_gpu, record = self._device.type == "cuda", recorder(self._device)
        self._marks: Marks | None = None
        self._observes = machine.drafter.needs.catch_up == "observe"
        began = time.perf_counter()
        plans = every_plan(machine, self.ks)
        self._rows = {size: _Rows(plan.batch) for (size, _, _), plan in plans.items()}
        self.sizes = tuple(sorted(self._rows))
        self._first: dict[_First, _Verify] = {}
        self._second: dict[_Second, Recording] = {}
        with torch.inference_mode():
            # Compiles what is not compiled yet and makes the buffers that are kept.
            for done, plan in enumerate(plans.values(), 1):
                if on_gpu:  # elsewhere recording runs it
                    run_once(machine, plan, self.ks[-1])
                if progress is not None:
                    progress(done, 2 * len(plans))
            run = time.perf_counter() - began
            if on_gpu:
                torch.cuda.synchronize(self._device)
                torch.cuda.empty_cache()  # the graphs have memory of their own
            for done, (key, plan) in enumerate(plans.items(), 1 + len(plans)):
                self._record(key, plan, record)
                if progress is not None:
                    progress(done, 2 * len(plans))
        log.info(
            "recorded %d graphs in %.1f s, %.1f s of it running them first",
            len(self._first) + len(self._second),
            time.perf_counter() - began,
            run,
        )

    def _record(self, key: _First, plan: Plan, record: _Record) -> None:
        """Record a window, and the drafts that may follow it and are not recorded yet."""
        size, k, level = key
        verify = self._first[key] = _Verify(self._machine, plan, record)
        for next_k in self.ks if self._observes else self.ks[1:]:
            second = self._follows(size, k, next_k, level)
            if second in self._second:
                continue
            after = _widened(self._machine, replace(plan, next_k=next_k), self.ks[-1])
            with drafting(self._machine.drafter):
                self._second[second] = record(partial(verify.draft_after, after))
        if self._device.type == "cuda":  # elsewhere it is all run again
            verify.forget()

    def _follows(self, size: int, k: int, next_k: int, level: int) -> _Second:
        return size, k if self._observes else 0, next_k, level

    def launch(self, plan: Plan) -> Pending:
        rows = plan.batch.index.shape[0]
        size = next(size for size in self.sizes if size >= rows)
        level = next(i for i, flags in enumerate(LEVELS) if _covers(flags, plan.flags))
        self._load(self._rows[size], plan.batch)
        k, next_k = self.width(plan.k), self.width(plan.next_k)
        marks = Marks(self._device)
        marks.begin()
        buffer = self._first[size, k, level].replay()
        marks.middle()
        second = self._second.get(self._follows(size, k, next_k, level))
        if second is not None:
            second.replay()
        marks.end()
        before, self._marks = self._marks, marks
        return _Launched(buffer, rows, marks, before)

    def width(self, k: int) -> int:
        return next(width for width in self.ks if width >= k)

    def ahead(self, plan: Plan) -> int:
        # While a draft is made there is time to read and to plan; a plain round leaves none. One
        # that verifies and does not draft may commit more than the draft's next first pass takes.
        return 0 if plan.k or plan.next_k else 1

    def begin(self, plan: Callable[[], Plan]) -> bool:
        """No: the first round is a plain one, and drafts for the second. The first token is there
        the sooner."""
        return False

    def _load(self, rows: _Rows, batch: Batch) -> None:
        """Put a batch into the place the graphs read."""
        if rows.loaded is batch:
            return
        size, count = rows.batch.index.shape[0], batch.index.shape[0]
        if count < size:
            idle = batch.index.new_zeros(size - count)
            full = self._machine.slots.batch(torch.cat((batch.index, idle)))
        else:
            full = batch
        for into, value in zip(_tensors(rows.batch), _tensors(full), strict=True):
            into.copy_(value)
        rows.loaded = batch


@dataclass(frozen=True, slots=True)
class _Launched:
    buffer: Landing
    rows: int
    marks: Marks
    before: Marks | None

    def wait(self) -> Outcome:
        verify = self.marks.wait()
        draft = self.before.draft_seconds() if self.before is not None else 0.0
        return Outcome(self.buffer.read(self.rows), verify, draft)


def _covers(level: SamplingFlags, flags: SamplingFlags) -> bool:
    """Whether a graph with the stages of `level` serves rows that need `flags`."""
    stages = (field.name for field in dataclasses.fields(SamplingFlags))
    return all(getattr(flags, stage) <= getattr(level, stage) for stage in stages)


def _tensors(batch: Batch) -> list[Tensor]:
    """Every tensor of a batch, in a fixed order."""
    own = [getattr(batch, field.name) for field in dataclasses.fields(batch)]
    sampling = dataclasses.fields(batch.sampling)
    return [x for x in own if isinstance(x, Tensor)] + [
        getattr(batch.sampling, field.name) for field in sampling
    ]
