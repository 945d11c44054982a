"""How committed text is read into the caches: at once, or as passes recorded at the opening.

A recorded pass has one row and a fixed width, padded behind the text; whose text it reads and from
where lies on the device, so a prompt takes no work of the host's but a few launches. Its kernels
sum in an order that no width changes, so a cell is the same to the bit in whatever pieces a prompt
is read. Far into a long text, where attention is most of the work, long chunks are read at once
instead, through the vendor's kernels.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from paceline.engine.capture import Recording, drafting, recorder
from paceline.engine.catch_up import SIDE, TOGETHER, Span, cut
from paceline.engine.paces import Paces
from paceline.engine.prefill import (
    committed,
    read_chunk,
    read_rows,
    show_chunk,
    show_side_by_side,
)
from paceline.engine.round import Machine
from paceline.ops.upload import put
from paceline.types import Rows, TargetOut, Window

log = logging.getLogger(__name__)

WIDTHS = (16, 64, 128, 256)  # tokens of a recorded pass
REACH = 4096  # positions up to which texts are read in recorded passes alone
_LONG = 2 * WIDTHS[-1]  # tokens from which on a chunk behind them is read at once

Progress = Callable[[int, int], None]


class Readings(Protocol):
    """A way to read committed positions start to stop (exclusive) of a slot. widths: of the passes
    that are recorded; none where nothing is, and a chunk is one pass."""

    widths: tuple[int, ...]

    def read(self, slot: int, start: int, stop: int, shown: bool) -> None:
        """Through the target. shown: and show them to the drafter."""
        ...

    def catch_up(self, spans: Sequence[Span]) -> None:
        """Show a drafter with `catch_up="tokens"` what it has not seen, of slots that differ."""
        ...


class EagerReadings:
    """Reads every chunk when it is asked for; on a GPU in the pieces that would be recorded, so
    that the same kernels read them and text is the same to the bit whether recorded or not."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        on_gpu = machine.slots.limits.device.type == "cuda"
        self.widths = passes(machine.slots.limits.max_length) if on_gpu else ()

    def read(self, slot: int, start: int, stop: int, shown: bool) -> None:
        for begin, end, _ in pieces(start, stop, self.widths):
            read_chunk(self._machine, slot, begin, end, shown)

    def catch_up(self, spans: Sequence[Span]) -> None:
        for group in cut(spans):
            if len(group) > 1:
                show_side_by_side(self._machine, group)
                continue
            slot, start, stop = group[0]
            for begin, end, _ in pieces(start, stop, self.widths):
                show_chunk(self._machine, slot, begin, end)


class CapturedReadings:
    """See `Readings`. `place` holds slot, start and count of each row of the pass that is replayed
    next."""

    def __init__(self, machine: Machine, progress: Progress | None = None) -> None:
        """Record every pass there can be. progress(done, all) is called on the way."""
        self._machine, self._eager = machine, EagerReadings(machine)
        limits = machine.slots.limits
        self._place = torch.zeros(3, TOGETHER, dtype=torch.int64, device=limits.device)
        self._target: dict[int, Recording] = {}
        self._drafter: dict[int, Recording] = {}
        self._together: dict[int, Recording] = {}  # by rows
        began = time.perf_counter()
        self.widths = passes(limits.max_length)
        every, record = every_pass(machine), recorder(limits.device)
        with torch.inference_mode():
            for done, (rows, width) in enumerate(every, 1):
                if limits.device.type == "cuda":  # elsewhere recording runs it
                    rehearse(machine, width, self._place[:, :rows])
                if progress is not None:
                    progress(done, 2 * len(every))
            for done, (rows, width) in enumerate(every, 1 + len(every)):
                self._record(width, self._place[:, :rows], record)
                if progress is not None:
                    progress(done, 2 * len(every))
        log.info("recorded %d reading passes in %.1f s", len(every), time.perf_counter() - began)

    def _record(
        self, width: int, place: Tensor, record: Callable[[Callable[[], None]], Recording]
    ) -> None:
        machine, rows = self._machine, place.shape[1]
        kind = machine.drafter.needs.catch_up
        seen: list[tuple[Window, TargetOut, Rows]] = []

        def target() -> None:
            seen[:] = [_target_pass(machine, width, place)]

        def drafter() -> None:
            if kind == "observe":
                window, out, read = seen[0]
                machine.drafter.observe(window, out, None, read)
            else:
                _drafter_pass(machine, width, place)

        if rows == 1:
            self._target[width] = record(target)
        with drafting(machine.drafter):
            if rows > 1:
                self._together[rows] = record(drafter)
            elif kind != "none":  # a drafter without a state of its own has nothing to see
                self._drafter[width] = record(drafter)

    def read(self, slot: int, start: int, stop: int, shown: bool) -> None:
        for begin, end, width in pieces(start, stop, self.widths):
            if not width:
                self._eager.read(slot, begin, end, shown)
                continue
            self._set([Span(slot, begin, end)])
            self._target[width].replay()
            if shown and width in self._drafter:
                self._drafter[width].replay()

    def catch_up(self, spans: Sequence[Span]) -> None:
        for group in cut(spans):
            if len(group) > 1:
                rows = next(rows for rows in sorted(self._together) if rows >= len(group))
                # What is left over is slot 0, of which nothing is read.
                self._set([*group, *(rows - len(group)) * [Span(0, 0, 0)]])
                self._together[rows].replay()
                continue
            slot, start, stop = group[0]
            for begin, end, width in pieces(start, stop, self.widths):
                if width:
                    self._set([Span(slot, begin, end)])
                    self._drafter[width].replay()
                else:
                    self._eager.catch_up([Span(slot, begin, end)])

    def _set(self, spans: Sequence[Span]) -> None:
        given = zip(*((slot, start, stop - start) for slot, start, stop in spans), strict=True)
        for into, values in zip(self._place, given, strict=True):
            if len(values) == 1:  # travels as a launch argument
                into[:1].fill_(values[0])
            else:
                put(into, values)


def pieces(start: int, stop: int, widths: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """Cut committed positions start to stop (exclusive) into passes: where each begins and ends,
    and its width among `widths`; 0 for one that is read as it is, as all are that no width is
    for."""
    while start < stop:
        if not widths or (start >= REACH and stop - start >= _LONG):
            yield start, stop, 0
            return
        end = min(stop, start + widths[-1])
        yield start, end, next(width for width in widths if width >= end - start)
        start = end


def passes(longest: int) -> tuple[int, ...]:
    """Widths of recorded passes for texts of up to `longest` positions."""
    return tuple(w for w, less in zip(WIDTHS, (0, *WIDTHS), strict=False) if less < longest)


def every_pass(machine: Machine) -> list[tuple[int, int]]:
    """(Rows, width) of the passes that are recorded, the largest first: one text's, and of a
    drafter that is brought up to date from tokens those over several."""
    limits = machine.slots.limits
    found = [(1, width) for width in reversed(passes(limits.max_length))]
    if machine.drafter.needs.catch_up == "tokens":
        most = min(TOGETHER, limits.slots - 1)
        found += [(1 << i, SIDE) for i in range((most - 1).bit_length(), 0, -1)]
    return found


def time_at_once(machine: Machine, chunk: int, paces: Paces) -> None:
    """Read chunks of every size class up to `chunk` tokens that no pass is recorded for, where they
    begin, into the scratch page: so that the first finds every kernel loaded, and to tell `paces`
    how long they take. The host launches them operation by operation, a short one as long as a
    long one."""
    limits = machine.slots.limits
    longest, sizes, size = min(chunk, limits.max_length - 1 - REACH), list[int](), _LONG
    while size < longest:
        sizes.append(size)
        size *= 2
    for size in (*sizes, longest) if longest >= _LONG else ():
        seconds = 0.0
        for _ in range(2):  # the first meets everything for the first time
            wait_for(limits.device)
            began = time.perf_counter()
            read_chunk(machine, 0, REACH, REACH + size)
            wait_for(limits.device)
            seconds = time.perf_counter() - began
        paces.hear([(REACH, REACH + size, 0)], True, seconds)


def rehearse(machine: Machine, width: int, place: Tensor) -> None:
    """Run once what a pass of that width records. place: see `CapturedReadings`, an entry a row."""
    kind = machine.drafter.needs.catch_up
    if place.shape[1] > 1:
        _drafter_pass(machine, width, place)
        return
    window, out, rows = _target_pass(machine, width, place)
    if kind == "observe":
        machine.drafter.observe(window, out, None, rows)
    elif kind == "tokens":
        _drafter_pass(machine, width, place)


def _target_pass(machine: Machine, width: int, place: Tensor) -> tuple[Window, TargetOut, Rows]:
    slot, start, count = place
    window = committed(machine, slot, start, count, width)
    _, kept = machine.target.forward(window, machine.pool, machine.drafter.needs.features)
    # No logits: nothing is drawn here.
    out = TargetOut(torch.empty(0, device=place.device), kept)
    return window, out, read_rows(machine, slot, window)


def _drafter_pass(machine: Machine, width: int, place: Tensor) -> None:
    slot, start, count = place
    window = committed(machine, slot, start, count, width)
    machine.drafter.observe(window, None, None, read_rows(machine, slot, window))


def wait_for(device: torch.device) -> None:
    """Until it has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
