"""How a planned round is run: at once, or (capture.py) as graphs recorded when the engine opened.

The loop plans a round, launches it, and later settles it; it does not know which form it has.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from paceline.engine.report import Report
from paceline.engine.round import Machine, Plan, draft_next, run_round
from paceline.types import Verdict


@dataclass(frozen=True, slots=True)
class Outcome:
    """A round that the host has read. verify_seconds: up to the verdict; draft_seconds: of the
    drafting last known to have ended, this round's own or the one before it."""

    report: Report
    verify_seconds: float
    draft_seconds: float


class Pending(Protocol):
    """A round that was launched."""

    def wait(self) -> Outcome:
        """Block until its tokens are committed; the drafting behind them may still run."""
        ...


class Rounds(Protocol):
    """A way to run rounds."""

    def launch(self, plan: Plan) -> Pending:
        """Begin a round; rounds run in the order they were launched in."""
        ...

    def ahead(self, plan: Plan) -> int:
        """Rounds that may be launched before `plan`'s has been waited for."""
        ...

    def width(self, k: int) -> int:
        """The draft tokens that a round verifies which is asked for k: k, or some more."""
        ...

    def begin(self, plan: Callable[[], Plan]) -> bool:
        """A prompt has been read: the chance to draft for its first round. Whether it was taken.
        plan: makes the plan, which may be for nothing."""
        ...


@dataclass(frozen=True, slots=True)
class _Done:
    outcome: Outcome

    def wait(self) -> Outcome:
        return self.outcome


class EagerRounds:
    """Runs every round when it is launched."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def launch(self, plan: Plan) -> Pending:
        began = time.perf_counter()
        seen: list[tuple[Report, float]] = []

        def outbox(verdict: Verdict) -> None:
            report = Report.read(verdict.report, verdict.logprobs)
            seen.append((report, time.perf_counter()))

        run_round(self._machine, plan, outbox)
        report, settled = seen[0]
        return _Done(Outcome(report, settled - began, time.perf_counter() - settled))

    def ahead(self, plan: Plan) -> int:
        return 0

    def width(self, k: int) -> int:
        return k

    def begin(self, plan: Callable[[], Plan]) -> bool:
        made = plan()
        self._machine.slots.refresh(made.batch)
        draft_next(self._machine, made, committed=1)
        return True
