"""Prefill: write the caches for committed text, in chunks, and never sample.

It covers all of a prompt but its last token, which is the root of the first window.
"""

from __future__ import annotations

import torch

from paceline.engine.round import Machine
from paceline.speculation.window import addresses
from paceline.types import Rows, TargetOut, Window


def prefill_chunk(machine: Machine, slot: int, start: int, stop: int, shown: bool = True) -> None:
    """Run committed positions start to stop (exclusive) of `slot` through the target. shown: and
    show them to the drafter."""
    window, rows = _committed(machine, slot, start, stop)
    features = machine.drafter.needs.features if shown else ()
    _, kept = machine.target.forward(window, machine.pool, features)
    if shown:
        # No logits: nothing is drawn here.
        out = TargetOut(torch.empty(0, device=window.ids.device), kept)
        machine.drafter.observe(window, out, None, rows)


def catch_up_chunk(machine: Machine, slot: int, start: int, stop: int) -> None:
    """Show a drafter with `catch_up="tokens"` committed positions that it has not seen."""
    window, rows = _committed(machine, slot, start, stop)
    machine.drafter.observe(window, None, None, rows)


def _committed(machine: Machine, slot: int, start: int, stop: int) -> tuple[Window, Rows]:
    """Committed positions start to stop (exclusive) of `slot`, as one window."""
    slots = machine.slots
    device = slots.limits.device
    batch, size = slots.batch(slots.numbers[slot : slot + 1]), slots.limits.page_size
    position = torch.arange(start, stop, device=device).unsqueeze(0)  # [1, W]
    valid = torch.ones_like(position, dtype=torch.bool)
    window = Window(
        ids=slots.tokens[slot, start:stop].unsqueeze(0),
        position=position,
        address=addresses(batch.pages, size, position, valid),
        valid=valid,
        bounds=(stop,),
        pages=batch.pages,
        page_size=size,
    )
    return window, slots.rows(batch, window.bounds, stop - start, stop - start)


def warm_up(machine: Machine, chunk: int) -> None:
    """Read made-up prompts of every size class up to `chunk` tokens into the scratch page, so that
    the first request finds every kernel compiled and loaded."""
    longest = min(chunk, machine.slots.limits.max_length - 1)
    size = 1
    while size < longest:
        prefill_chunk(machine, 0, 0, size)
        size *= 2
    prefill_chunk(machine, 0, 0, longest)
