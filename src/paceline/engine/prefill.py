"""Prefill: write the caches for committed text, in chunks, and never sample.

It covers all of a prompt but its last token, which is the root of the first window.
"""

from __future__ import annotations

import torch

from paceline.engine.round import Machine
from paceline.speculation.window import addresses
from paceline.types import TargetOut, Window


def prefill_chunk(machine: Machine, slot: int, start: int, stop: int) -> None:
    """Run committed positions start to stop (exclusive) of `slot` through target and drafter."""
    slots = machine.slots
    device = slots.limits.device
    index = torch.tensor([slot], device=device)
    batch, size = slots.batch(index), slots.limits.page_size
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
    _, features = machine.target.forward(window, machine.pool, machine.drafter.needs.features)
    # No logits: nothing is drawn here.
    rows = slots.rows(batch, window.bounds, stop - start, stop - start)
    out = TargetOut(torch.empty(0, device=device), features)
    machine.drafter.observe(window, out, None, rows)


def warm_up(machine: Machine, chunk: int) -> None:
    """Read made-up prompts of every size class up to `chunk` tokens into the scratch page, so that
    the first request finds every kernel compiled and loaded."""
    longest = min(chunk, machine.slots.limits.max_length - 1)
    size = 1
    while size < longest:
        prefill_chunk(machine, 0, 0, size)
        size *= 2
    prefill_chunk(machine, 0, 0, longest)
