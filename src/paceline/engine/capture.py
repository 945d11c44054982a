"""Rounds as CUDA graphs: recorded when the engine opens, replayed with no host work between.

A round becomes two graphs, up to the outbox and after it, so that the host reads its tokens while
the device drafts. What differs between two rounds of one key (rows, lengths, tokens, parameters)
lies in device arrays; what is left is the key: rows rounded up, window width, sampling stages.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paceline.config import MAX_LOGPROBS
from paceline.engine.landing import Landing, Marks
from paceline.engine.round import Machine, Plan, run_round
from paceline.engine.rounds import Outcome, Pending
from paceline.engine.slots import Batch
from paceline.types import Logprobs, SamplingFlags, Verdict

log = logging.getLogger(__name__)

# Sampling stages that a graph has, least first; a round takes the first that has all it needs.
# A stage that no row needs changes no value.
LEVELS = (
    SamplingFlags(),
    SamplingFlags(draws=True, bias=True, min_tokens=True),
    SamplingFlags(True, True, True, True, True, True, True, MAX_LOGPROBS),
)
_BUFFERS = 3  # verdicts of one key that may be on their way to the host

Progress = Callable[[int, int], None]


class Recording:
    """Work that stops once in the middle, as two CUDA graphs. On another device it is run again
    at each replay, which lets tests drive everything around it."""

    def __init__(
        self, work: Callable[[Callable[[], None]], None], two: bool, device: torch.device, pool: Any
    ) -> None:
        """work(between) calls `between` once; two: something comes after it. pool: the handle of
        the memory pool that graphs share which never run at the same time."""
        self._work, self._two = work, two
        self._graphs: tuple[torch.cuda.CUDAGraph, ...] = ()
        if device.type == "cuda":
            self._record(device, pool)

    def _record(self, device: torch.device, pool: Any) -> None:
        first, second = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()

        def between() -> None:
            first.capture_end()
            if self._two:
                second.capture_begin(pool=pool, capture_error_mode="thread_local")

        torch.cuda.synchronize(device)
        side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(side), _no_collection():
            first.capture_begin(pool=pool, capture_error_mode="thread_local")
            self._work(between)
            if self._two:
                second.capture_end()
        self._graphs = (first, second) if self._two else (first,)

    def first(self) -> None:
        """Replay up to the middle."""
        if self._graphs:
            self._graphs[0].replay()
        else:
            self._work(lambda: None)

    def second(self) -> None:
        """Replay the rest."""
        if len(self._graphs) > 1:
            self._graphs[1].replay()


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
class _Captured:
    """One key: its constant inputs, where its verdict lies, and the recording."""

    batch: Batch
    loaded: Batch | None = None
    report: Tensor | None = None
    logprobs: Logprobs | None = None
    recording: Recording | None = None
    buffers: list[Landing] = dataclasses.field(default_factory=list)
    turn: int = 0


_Key = tuple[int, int, int]


def every_plan(machine: Machine, k: int) -> dict[_Key, Plan]:
    """A plan of idle rows, which write scratch only, for every key (rows, draft tokens, level)
    there can be. The largest first, so that memory it needed serves the others. k: the widest
    draft."""
    limits, plans = machine.slots.limits, {}
    sizes = [1 << i for i in range((limits.slots - 2).bit_length() + 1)]
    for size, width, level in sorted(
        itertools.product(sizes, {0, k}, range(len(LEVELS))), reverse=True
    ):
        index = torch.zeros(size, dtype=torch.int64, device=limits.device)
        bounds = (limits.max_length,) * size
        batch = machine.slots.batch(index)
        plans[size, width, level] = Plan(batch, bounds, LEVELS[level], width, width)
    return plans


class CapturedRounds:
    """See `Rounds`. Rows that a round does not fill are slot 0, which is never active."""

    def __init__(self, machine: Machine, k: int, progress: Progress | None = None) -> None:
        """Record every round there can be. k: the widest draft. progress(done, all) is called
        on the way."""
        self._machine, self._k = machine, k
        self._device = machine.slots.limits.device
        on_gpu = self._device.type == "cuda"
        self._pool = torch.cuda.graph_pool_handle() if on_gpu else None
        self._marks: Marks | None = None
        began = time.perf_counter()
        plans = every_plan(machine, k)
        self._sizes = sorted({size for size, _, _ in plans})
        count = 0

        def step() -> None:
            nonlocal count
            count += 1
            if progress is not None:
                progress(count, 2 * len(plans))

        with torch.inference_mode():
            # Compiles what is not compiled yet and makes the buffers that are kept.
            for plan in plans.values():
                run_round(machine, plan, lambda verdict: None)
                step()
            run = time.perf_counter() - began
            if on_gpu:
                torch.cuda.synchronize(self._device)
                torch.cuda.empty_cache()  # the graphs have memory of their own
            self._rounds: dict[_Key, _Captured] = {}
            for key, plan in plans.items():
                self._rounds[key] = self._capture(plan)
                step()
        log.info(
            "captured %d rounds in %.1f s, %.1f s of it running them first",
            len(plans),
            time.perf_counter() - began,
            run,
        )

    def _capture(self, plan: Plan) -> _Captured:
        machine, captured = self._machine, _Captured(plan.batch)

        def work(between: Callable[[], None]) -> None:
            def outbox(verdict: Verdict) -> None:
                captured.report, captured.logprobs = verdict.report, verdict.logprobs
                between()

            run_round(machine, plan, outbox)

        two = bool(plan.k) or machine.drafter.needs.catch_up == "observe"
        captured.recording = Recording(work, two, self._device, self._pool)
        if self._device.type != "cuda":
            work(lambda: None)
        assert captured.report is not None
        captured.buffers = [
            Landing(captured.report, captured.logprobs, self._device) for _ in range(_BUFFERS)
        ]
        return captured

    def launch(self, plan: Plan) -> Pending:
        rows = plan.batch.index.shape[0]
        size = next(size for size in self._sizes if size >= rows)
        level = next(i for i, flags in enumerate(LEVELS) if _covers(flags, plan.flags))
        captured = self._rounds[size, self._k if plan.k else 0, level]
        if captured.loaded is not plan.batch:
            self._load(captured, plan.batch)
        assert captured.recording is not None
        assert captured.report is not None
        buffer = captured.buffers[captured.turn]
        captured.turn = (captured.turn + 1) % _BUFFERS
        marks = Marks(self._device)
        marks.begin()
        captured.recording.first()
        buffer.fill(captured.report, captured.logprobs)
        marks.middle()
        captured.recording.second()
        marks.end()
        before, self._marks = self._marks, marks
        return _Launched(buffer, rows, marks, before)

    def ahead(self, plan: Plan) -> int:
        # While a draft is made there is time to read and to plan; a plain round leaves none.
        return 0 if plan.next_k else 1

    def begin(self, plan: Plan) -> None:
        """Nothing: the first round is a plain one, and drafts for the second."""

    def _load(self, captured: _Captured, batch: Batch) -> None:
        """Put a batch into the place the graph reads."""
        size, rows = captured.batch.index.shape[0], batch.index.shape[0]
        if rows < size:
            idle = batch.index.new_zeros(size - rows)
            full = self._machine.slots.batch(torch.cat((batch.index, idle)))
        else:
            full = batch
        for into, value in zip(_tensors(captured.batch), _tensors(full), strict=True):
            into.copy_(value)
        captured.loaded = batch


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
    stages = ("draws", "penalties", "bias", "truncation", "min_tokens")
    if any(getattr(flags, stage) and not getattr(level, stage) for stage in stages):
        return False
    return flags.logprobs <= level.logprobs


def _tensors(batch: Batch) -> list[Tensor]:
    """Every tensor of a batch, in a fixed order."""
    own = [getattr(batch, field.name) for field in dataclasses.fields(batch)]
    sampling = dataclasses.fields(batch.sampling)
    return [x for x in own if isinstance(x, Tensor)] + [
        getattr(batch.sampling, field.name) for field in sampling
    ]
