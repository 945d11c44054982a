"""Rounds recorded by the engine's own means and replayed alone, with the slots filled by hand.

A replay commits tokens like any round; the lengths are put back between replays, outside of what
is timed, so that every replay does the same work.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from gpu_common import Bench, Watch, admit, median, prompts
from torch import Tensor

from paceline import Engine
from paceline.engine.capture import Recording
from paceline.engine.round import Plan, run_round
from paceline.speculation.choose import Terms
from paceline.types import SamplingFlags, Verdict

FLAGS = SamplingFlags()  # greedy, the least stage


def record(bench: Bench, work: Any, two: bool) -> Recording:
    """The engine's recording of work(between), in a memory pool of its own."""
    pool = torch.cuda.graph_pool_handle() if bench.cuda else None
    return Recording(work, two, bench.device, pool)


@dataclass(slots=True)
class State:
    """What a round changes of the slots and the next one reads."""

    engine: Engine
    kept: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        slots = self.engine._loop.machine.slots
        arrays = (slots.length, slots.active, slots.draft_count)
        self.kept = [(array, array.clone()) for array in arrays]

    def restore(self) -> None:
        """Put it back; three small copies."""
        for array, value in self.kept:
            array.copy_(value)


def fill(bench: Bench, engine: Engine, rows: int, context: int) -> None:
    """Put `rows` running requests of `context` tokens into slots 1 to `rows`."""
    k = engine.config.k
    for slot, ids in enumerate(prompts(bench, rows, context), 1):
        admit(engine, slot, ids, k)


def randomize_caches(engine: Engine) -> None:
    """Ordinary numbers in all keys and values, as no prompt was read."""
    machine = engine._loop.machine
    pools = [machine.pool, getattr(machine.drafter, "_pool", None)]
    for pool in filter(None, pools):
        for layer in pool.layers:
            layer.keys.normal_()
            layer.values.normal_()


class RecordedRound:
    """One round of `rows` rows over k draft tokens, as the engine would record it."""

    def __init__(self, bench: Bench, engine: Engine, rows: int, context: int, k: int) -> None:
        """Slots 1 to `rows` must be filled. Leaves the slots as they were."""
        machine = engine._loop.machine
        slots, self._device = machine.slots, bench.device
        self.engine, self.state = engine, State(engine)
        slots.k_limit[1 : rows + 1] = k
        index = torch.arange(1, rows + 1, device=bench.device)
        longest = slots.limits.max_length
        bound = min(context + 2 * k + 2, longest) if bench.cuda else longest
        self.plan = Plan(slots.batch(index), (bound,) * rows, FLAGS, k, k)
        self.n: Tensor | None = None
        self.report: Tensor | None = None

        def work(between: Any) -> None:
            def outbox(verdict: Verdict) -> None:
                self.report, self.n = verdict.report, verdict.n
                between()

            run_round(machine, self.plan, outbox)

        run_round(machine, self.plan, lambda verdict: None)  # compiles
        self.state.restore()
        self.recording = record(bench, work, bool(k))
        self.state.restore()

    def times(self, repeats: int) -> tuple[float, float]:
        """Median seconds of the first graph and of the second."""
        for _ in range(2):
            self.recording.first()
            self.recording.second()
            self.state.restore()
        watch = Watch(self._device)
        for _ in range(repeats):
            watch.mark()
            self.recording.first()
            watch.mark()
            self.recording.second()
            watch.mark()
            self.state.restore()
        gaps = watch.seconds()
        return median(gaps[0::3]), median(gaps[1::3])

    def running(self, rounds: int) -> list[float]:
        """Run so many rounds one after another, host reads none between. Seconds from each
        verdict to the next one: rounds − 1 numbers."""
        watch = Watch(self._device)
        for _ in range(rounds):
            self.recording.first()
            watch.mark()
            self.recording.second()
        return watch.seconds()


def accept_seconds(bench: Bench, made: RecordedRound, repeats: int, times: int = 8) -> float:
    """Median seconds of judging and committing alone, `times` of them in one graph."""
    machine, plan = made.engine._loop.machine, made.plan
    slots, batch = machine.slots, plan.batch
    draft, window = slots.open_window(batch, plan.bounds, plan.k)
    shape = (*window.ids.shape, slots.limits.vocab_size)
    logits = torch.randn(shape, device=bench.device)
    terms = Terms(machine.rule, batch.sampling, plan.flags, batch.seed)

    def once() -> Verdict:
        judged = machine.chooser.judge(terms, logits, draft, window.position, None)
        return slots.settle(batch, draft, judged, False)

    def work(between: Any) -> None:
        for _ in range(times):
            once()
        between()

    once()
    recording = record(bench, work, False)
    made.state.restore()
    watch = Watch(bench.device)
    for _ in range(repeats):
        watch.mark()
        recording.first()
        watch.mark()
        made.state.restore()
    return median(watch.seconds()[0::2]) / times
