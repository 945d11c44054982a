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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paceline.config import MAX_LOGPROBS
from paceline.engine.report import Report
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

        # An older engine's graphs, collected in the middle of a recording, would break it.
        gc.collect()
        torch.cuda.synchronize(device)
        side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(side):
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


@dataclass(slots=True)
class _Captured:
    """One key: its constant inputs, where its verdict lies, and the recording."""

    batch: Batch
    loaded: Batch | None = None
    report: Tensor | None = None
    logprobs: Logprobs | None = None
    recording: Recording | None = None
    buffers: list[_Buffer] = dataclasses.field(default_factory=list)
    turn: int = 0


class CapturedRounds:
    """See `Rounds`. Rows that a round does not fill are slot 0, which is never active."""

    def __init__(self, machine: Machine, k: int, progress: Progress | None = None) -> None:
        """Record every round there can be. k: the widest draft. progress(done, all) is called
        after each."""
        self._machine, self._k = machine, k
        self._device = machine.slots.limits.device
        most = machine.slots.limits.slots - 1
        self._sizes = tuple(1 << i for i in range((most - 1).bit_length() + 1))
        self._rounds: dict[tuple[int, int, int], _Captured] = {}
        self._marks: _Marks | None = None
        on_gpu = self._device.type == "cuda"
        self._pool = torch.cuda.graph_pool_handle() if on_gpu else None
        began = time.perf_counter()
        keys = list(itertools.product(self._sizes, sorted({0, k}), range(len(LEVELS))))
        with torch.inference_mode():
            for done, key in enumerate(keys, 1):
                self._rounds[key] = self._capture(*key)
                if progress is not None:
                    progress(done, len(keys))
        log.info("captured %d rounds in %.1f s", len(keys), time.perf_counter() - began)

    def _capture(self, size: int, k: int, level: int) -> _Captured:
        machine, limits = self._machine, self._machine.slots.limits
        index = torch.zeros(size, dtype=torch.int64, device=self._device)
        captured = _Captured(machine.slots.batch(index))
        spans = ((0, limits.max_length),) * size
        plan = Plan(captured.batch, spans, LEVELS[level], k, k)

        def work(between: Callable[[], None]) -> None:
            def outbox(verdict: Verdict) -> None:
                captured.report, captured.logprobs = verdict.report, verdict.logprobs
                between()

            run_round(machine, plan, outbox)

        # Compiles what is not compiled yet and makes the buffers that are kept. Idle rows only:
        # all that is written is scratch.
        run_round(machine, plan, lambda verdict: None)
        two = bool(k) or machine.drafter.needs.catch_up == "observe"
        captured.recording = Recording(work, two, self._device, self._pool)
        if self._device.type != "cuda":
            work(lambda: None)
        assert captured.report is not None
        captured.buffers = [
            _Buffer(captured.report, captured.logprobs, self._device) for _ in range(_BUFFERS)
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
        marks = _Marks(self._device)
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


class _Buffer:
    """Where one verdict lies on the host; pinned, so that the copy waits for nothing."""

    def __init__(self, report: Tensor, logprobs: Logprobs | None, device: torch.device) -> None:
        pin = device.type == "cuda"

        def like(x: Tensor) -> Tensor:
            return torch.empty(x.shape, dtype=x.dtype, pin_memory=pin)

        self._report = like(report)
        self._logprobs: Logprobs | None = None
        if logprobs is not None:
            self._logprobs = Logprobs(*(like(x) for x in _logprobs(logprobs)))

    def fill(self, report: Tensor, logprobs: Logprobs | None) -> None:
        """Copy a verdict, in the device's own time."""
        self._report.copy_(report, non_blocking=True)
        if self._logprobs is not None and logprobs is not None:
            for into, value in zip(_logprobs(self._logprobs), _logprobs(logprobs), strict=True):
                into.copy_(value, non_blocking=True)

    def read(self, rows: int) -> Report:
        """The verdict's first rows, once it is there."""
        logprobs = self._logprobs
        if logprobs is not None:
            logprobs = Logprobs(*(x[:rows].clone() for x in _logprobs(logprobs)))
        return Report.read(self._report[:rows], logprobs)


class _Marks:
    """Three points in the device's time: a round's begin, its verdict, its end."""

    def __init__(self, device: torch.device) -> None:
        self._events: list[torch.cuda.Event] = []
        if device.type == "cuda":
            event = torch.cuda.Event
            self._events = [event(enable_timing=True) for _ in range(3)]  # type: ignore[no-untyped-call]

    def begin(self) -> None:
        self._record(0)

    def middle(self) -> None:
        self._record(1)

    def end(self) -> None:
        self._record(2)

    def _record(self, which: int) -> None:
        if self._events:
            self._events[which].record()

    def wait(self) -> float:
        """Wait for the verdict; the seconds it took."""
        if not self._events:
            return 0.0
        self._events[1].synchronize()
        return float(self._events[0].elapsed_time(self._events[1])) / 1e3

    def draft_seconds(self) -> float:
        """The seconds from verdict to end. The end must have passed."""
        if not self._events:
            return 0.0
        return float(self._events[1].elapsed_time(self._events[2])) / 1e3


@dataclass(frozen=True, slots=True)
class _Launched:
    buffer: _Buffer
    rows: int
    marks: _Marks
    before: _Marks | None

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


def _logprobs(logprobs: Logprobs) -> tuple[Tensor, ...]:
    return logprobs.chosen, logprobs.top_ids, logprobs.top


def _tensors(batch: Batch) -> list[Tensor]:
    """Every tensor of a batch, in a fixed order."""
    own = [getattr(batch, field.name) for field in dataclasses.fields(batch)]
    sampling = dataclasses.fields(batch.sampling)
    return [x for x in own if isinstance(x, Tensor)] + [
        getattr(batch.sampling, field.name) for field in sampling
    ]
