"""Who waits, who runs, who holds which slot. Host only: no torch, no device, no clock.

First come, first served. Slot 0 is scratch and is never given out.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from paceline.types import Request, SequenceStats


class Status(Enum):
    """Where a sequence stands."""

    WAITING = "waiting"
    PREFILL = "prefill"
    RUNNING = "running"
    DONE = "done"


@dataclass(slots=True, eq=False)
class Sequence:
    """One request's way through the engine. length counts committed tokens the host has seen."""

    request: Request
    k: int
    status: Status = Status.WAITING
    slot: int = 0
    prefilled: int = 0
    length: int = 0
    stats: SequenceStats = field(default_factory=SequenceStats)


class Scheduler:
    """Gives out slots; every change of a sequence's status is made here."""

    def __init__(self, slots: int) -> None:
        """slots: how many there are, the scratch slot included."""
        self._free = list(range(1, slots))
        self._waiting: deque[Sequence] = deque()
        self._held: dict[int, Sequence] = {}

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        self._waiting.append(sequence)

    def admit(self) -> list[Sequence]:
        """Give free slots to those who waited longest; returns the newly admitted."""
        admitted = []
        while self._free and self._waiting:
            sequence = self._waiting.popleft()
            sequence.slot = heapq.heappop(self._free)
            sequence.status, sequence.length = Status.PREFILL, len(sequence.request.prompt)
            self._held[sequence.slot] = sequence
            admitted.append(sequence)
        return admitted

    def start(self, sequence: Sequence) -> None:
        """Prefill is complete: the sequence joins the rounds."""
        assert sequence.status is Status.PREFILL
        sequence.status = Status.RUNNING

    def finish(self, sequence: Sequence) -> None:
        """The sequence is done, wherever it stood; its slot, if any, is free again."""
        if sequence.status is Status.WAITING:
            self._waiting.remove(sequence)
        elif sequence.status is not Status.DONE:
            del self._held[sequence.slot]
            heapq.heappush(self._free, sequence.slot)
        sequence.status = Status.DONE

    def _with(self, status: Status) -> list[Sequence]:
        return [
            self._held[slot] for slot in sorted(self._held) if self._held[slot].status is status
        ]

    @property
    def prefilling(self) -> list[Sequence]:
        """Sequences whose prompt is being read, by slot."""
        return self._with(Status.PREFILL)

    @property
    def running(self) -> list[Sequence]:
        """Sequences in the rounds, by slot."""
        return self._with(Status.RUNNING)

    @property
    def waiting(self) -> int:
        """How many wait for a slot."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Whether nobody waits and nobody runs."""
        return not self._waiting and not self._held
