"""Rounds recorded by the engine's own means and replayed alone, with the slots filled by hand.

A replay commits tokens like any round; the lengths are put back between replays, outside of what
is timed, so that every replay does the same work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from gpu_common import Bench, Watch, admit, median, prompts
from torch import Tensor

from paceline import Engine
from paceline.engine.capture import Recording
from paceline.engine.round import Plan, draft_after, run_round, verify_and_commit
from paceline.speculation.choose import Terms
from paceline.types import SamplingFlags, TargetOut, Verdict, Window

FLAGS = SamplingFlags()  # greedy, the least stage


def record(bench: Bench, *works: Callable[[], object]) -> list[Recording]:
    """The engine's recordings of `works`, in one memory pool of their own."""
    pool = torch.cuda.graph_pool_handle() if bench.cuda else None
    return [Recording(_silent(work), bench.device, pool) for work in works]


def _silent(work: Callable[[], object]) -> Callable[[], None]:
    def done() -> None:
        work()

    return done


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
        slots.k_limit[1 : rows + 1] = k
        slots.draft_count[1 : rows + 1] = k  # windows are full, whatever their tokens
        self.engine, self.state = engine, State(engine)
        index = torch.arange(1, rows + 1, device=bench.device)
        longest = slots.limits.max_length
        bound = min(context + 2 * k + 2, longest) if bench.cuda else longest
        self.plan = Plan(slots.batch(index), (bound,) * rows, FLAGS, k, k)
        self._seen: tuple[Window, TargetOut, Verdict]

        def verify() -> None:
            self._seen = verify_and_commit(machine, self.plan)

        works: list[Callable[[], object]] = [verify]
        if k:  # a graph of nothing is better not recorded
            works.append(lambda: draft_after(machine, self.plan, *self._seen))
        run_round(machine, self.plan, lambda verdict: None)  # compiles
        self.state.restore()
        self._recordings = record(bench, *works)
        self.state.restore()

    @property
    def n(self) -> Tensor:
        """Tokens that each row committed in the last replay."""
        return self._seen[2].n

    def first(self) -> None:
        """Replay the round up to its verdict."""
        self._recordings[0].replay()

    def second(self) -> None:
        """Replay the drafting behind it."""
        for recording in self._recordings[1:]:
            recording.replay()

    def times(self, repeats: int) -> tuple[float, float]:
        """Median seconds of the first graph and of the second."""
        for _ in range(2):
            self.first()
            self.second()
            self.state.restore()
        watch = Watch(self._device)
        for _ in range(repeats):
            watch.mark()
            self.first()
            watch.mark()
            self.second()
            watch.mark()
            self.state.restore()
        gaps = watch.seconds()
        return median(gaps[0::3]), median(gaps[1::3])

    def running(self, rounds: int) -> list[float]:
        """Run so many rounds one after another, host reads none between. Seconds from each
        verdict to the next one: rounds − 1 numbers."""
        watch = Watch(self._device)
        for _ in range(rounds):
            self.first()
            watch.mark()
            self.second()
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

    once()
    (recording,) = record(bench, lambda: [once() for _ in range(times)])
    made.state.restore()
    watch = Watch(bench.device)
    for _ in range(repeats):
        watch.mark()
        recording.replay()
        watch.mark()
        made.state.restore()
    return median(watch.seconds()[0::2]) / times
