"""Prefill: write the caches for committed text, in chunks, and never sample.

It covers all of a prompt but its last token, which is the root of the first window.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from paceline.engine.catch_up import Span
from paceline.engine.round import Machine
from paceline.ops.upload import upload
from paceline.speculation.window import addresses
from paceline.types import Rows, TargetOut, Window


def read_chunk(machine: Machine, slot: int, start: int, stop: int, shown: bool = True) -> None:
    """Run committed positions start to stop (exclusive) of `slot` through the target. shown: and
    show them to the drafter."""
    window, rows = _chunk(machine, slot, start, stop)
    features = machine.drafter.needs.features if shown else ()
    _, kept = machine.target.forward(window, machine.pool, features)
    if shown:
        # No logits: nothing is drawn here.
        out = TargetOut(torch.empty(0, device=window.ids.device), kept)
        machine.drafter.observe(window, out, None, rows)


def show_chunk(machine: Machine, slot: int, start: int, stop: int) -> None:
    """Show a drafter with `catch_up="tokens"` committed positions that it has not seen."""
    window, rows = _chunk(machine, slot, start, stop)
    machine.drafter.observe(window, None, None, rows)


def show_side_by_side(machine: Machine, spans: Sequence[Span]) -> None:
    """The same of several texts in one pass."""
    device = machine.slots.limits.device
    slot, start, count = (
        upload(values, device)
        for values in zip(*((slot, b, e - b) for slot, b, e in spans), strict=True)
    )
    width, bounds = max(e - b for _, b, e in spans), tuple(e for _, _, e in spans)
    window = committed(machine, slot, start, count, width, bounds)
    machine.drafter.observe(window, None, None, read_rows(machine, slot, window))


def _chunk(machine: Machine, slot: int, start: int, stop: int) -> tuple[Window, Rows]:
    """Committed positions start to stop (exclusive) of `slot`, as one window."""
    slots = machine.slots
    index = slots.numbers[slot : slot + 1]
    # Numbers that travel as launch arguments: the host waits for nothing.
    begin, count = torch.full_like(index, start), torch.full_like(index, stop - start)
    window = committed(machine, index, begin, count, stop - start, (stop,))
    return window, read_rows(machine, index, window)


def committed(
    machine: Machine,
    index: Tensor,
    start: Tensor,
    count: Tensor,
    width: int,
    bounds: tuple[int, ...] | None = None,
) -> Window:
    """Committed positions start to start + count of the slots `index`, and behind them nodes that
    are not valid, up to `width`. index, start, count [B] int64; bounds: see `Window`, by default
    as long as a text may be."""
    slots = machine.slots
    limits = slots.limits
    node = torch.arange(width, device=index.device).unsqueeze(0)  # [1, W]
    position = (start.unsqueeze(1) + node).clamp_(max=limits.max_length - 1)  # [B, W]
    valid = node < count.unsqueeze(1)
    pages = slots.pages.index_select(0, index)
    return Window(
        ids=slots.tokens[index.unsqueeze(1), position],
        position=position,
        address=addresses(pages, limits.page_size, position, valid),
        valid=valid,
        bounds=bounds or (limits.max_length,) * index.shape[0],
        pages=pages,
        page_size=limits.page_size,
    )


def read_rows(machine: Machine, index: Tensor, window: Window) -> Rows:
    """What a drafter that is shown `window`, of the slots `index` [B], may read besides."""
    slots, width = machine.slots, window.ids.shape[1]
    return Rows(
        index=index,
        tokens=slots.tokens,
        length=slots.length.index_select(0, index),
        bounds=window.bounds,
        pages=window.pages,
        page_size=window.page_size,
        committed=width,
        fresh=width,
    )


def warm_up(machine: Machine, chunk: int) -> None:
    """Read made-up prompts of every size class up to `chunk` tokens into the scratch page, so that
    the first request finds every kernel compiled and loaded."""
    longest = min(chunk, machine.slots.limits.max_length - 1)
    size = 1
    while size < longest:
        read_chunk(machine, 0, 0, size)
        size *= 2
    read_chunk(machine, 0, 0, longest)
