"""A recorded round as the host meets it: where its verdict lands, and when.

Knows nothing of graphs; on a device without streams of its own everything is there at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from paceline.engine.report import Report
from paceline.types import Logprobs


class Landing:
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


class Marks:
    """Three points in the device's time: a round's begin, its verdict, its end."""

    def __init__(self, device: torch.device) -> None:
        self._events: list[torch.cuda.Event] = []
        if device.type == "cuda":
            event = torch.cuda.Event
            self._events = [event(enable_timing=True) for _ in range(3)]  # type: ignore[no-untyped-call]  # torch's

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


def _logprobs(logprobs: Logprobs) -> tuple[Tensor, ...]:
    return logprobs.chosen, logprobs.top_ids, logprobs.top
