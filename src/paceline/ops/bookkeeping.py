"""The round's small steps on a GPU, one launch each; on other devices torch's forms serve.

What they compute is defined by `speculation.window` and `engine.slots`, whose functions they
replace; this file makes the tensors they write and launches them.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from paceline.ops.power import power_of_two
from paceline.speculation.choose import Judgement
from paceline.speculation.window import ahead, tail
from paceline.types import REPORT, Draft, Rows, Verdict, Window

log = logging.getLogger(__name__)

_MOST_NODES = 256


class SlotArrays(Protocol):
    """What the kernels read and write of the slots: see `engine.slots.Slots`."""

    tokens: Tensor
    length: Tensor
    active: Tensor
    pages: Tensor
    counts: Tensor
    draft_tokens: Tensor
    draft_count: Tensor
    draft_source: Tensor


class Bookkeeping:
    """The kernels. Raises ImportError without triton."""

    def __init__(self, device: torch.device, pdl: bool = False) -> None:
        """pdl: programmatic dependent launch."""
        from paceline.ops import triton_bookkeeping

        self._kernels: Any = triton_bookkeeping
        self._node = torch.arange(_MOST_NODES, device=device)
        self._launch = {"PDL": pdl, "num_warps": 1, **({"launch_pdl": True} if pdl else {})}

    def open_window(
        self,
        slots: SlotArrays,
        index: Tensor,
        pages: Tensor,
        page_size: int,
        bounds: tuple[int, ...],
        k: int,
    ) -> tuple[Draft, Window]:
        """The waiting draft without scores, its first k tokens, and the window that verifies it.
        Writes the rows' page tables as they are now into `pages` [B, P]."""
        batch, width = index.shape[0], k + 1
        ids, position, address = index.new_empty(3, batch, width).unbind()
        count, source = index.new_empty(2, batch).unbind()
        valid = torch.empty(batch, width, dtype=torch.bool, device=index.device)
        self._kernels.open_window[(batch,)](
            tokens=slots.tokens,
            length=slots.length,
            active=slots.active,
            draft_tokens=slots.draft_tokens,
            draft_count=slots.draft_count,
            draft_source=slots.draft_source,
            tables=slots.pages,
            index=index,
            pages=pages,
            ids=ids,
            position=position,
            address=address,
            valid=valid,
            count=count,
            source=source,
            slot_length=slots.tokens.shape[1],
            most=slots.draft_tokens.shape[1],
            columns=pages.shape[1],
            page_size=page_size,
            width=width,
            NODES=power_of_two(width),
            **self._launch,
        )
        window = Window(ids, position, address, valid, bounds, pages, page_size)
        return Draft(ids[:, 1:], count, source), window

    def settle(
        self,
        slots: SlotArrays,
        index: Tensor,
        limit: Tensor,
        stop_ids: Tensor,
        draft: Draft,
        judged: Judgement,
        penalties: bool,
    ) -> Verdict:
        """`window.settle`, committed to the slots."""
        batch, width = judged.tokens.shape
        report = index.new_empty(batch, width + len(REPORT))
        flags = torch.empty(2, batch, dtype=torch.bool, device=index.device)
        self._kernels.settle[(batch,)](
            tokens=slots.tokens,
            length=slots.length,
            active=slots.active,
            counts=slots.counts,
            index=index,
            limit=limit,
            stop_ids=stop_ids,
            judged=judged.tokens,
            accepted=judged.accepted,
            evaluated=judged.evaluated,
            broken=judged.broken,
            draft_count=draft.count,
            draft_source=draft.source,
            report=report,
            flags=flags,
            slot_length=slots.tokens.shape[1],
            vocab=slots.counts.shape[1],
            width=width,
            rows=batch,
            count_b=draft.count.stride(0),
            source_b=draft.source.stride(0),
            STOPS=stop_ids.shape[1],
            NODES=power_of_two(width),
            PENALTIES=penalties,
            **self._launch,
        )
        n, drafted, source, accepted, evaluated, _, _, _ = report[:, width:].unbind(1)
        return Verdict(
            tokens=report[:, :width],
            n=n,
            path=self._node[:width].expand(batch, width),
            drafted=drafted,
            source=source,
            accepted=accepted,
            evaluated=evaluated,
            ended=flags[0],
            failed=flags[1],
            report=report,
        )

    def tail_and_ahead(self, rows: Rows, width: int, k: int) -> tuple[Window, Window]:
        """`window.tail` and `window.ahead`; every node of the latter lies in one piece."""
        batch, pages, made = rows.length.shape[0], rows.pages, rows.length.new_empty
        tails, aheads = made(3, batch, width), made(3, k, batch)
        valid = torch.empty(batch * (width + k), dtype=torch.bool, device=rows.length.device)
        tail_valid = valid[: batch * width].view(batch, width)
        ahead_valid = valid[batch * width :].view(k, batch)
        self._kernels.places[(batch,)](
            tokens=rows.tokens,
            length=rows.length,
            index=rows.index,
            pages=pages,
            tail_ids=tails[0],
            tail_position=tails[1],
            tail_address=tails[2],
            tail_valid=tail_valid,
            ahead_ids=aheads[0],
            ahead_position=aheads[1],
            ahead_address=aheads[2],
            ahead_valid=ahead_valid,
            slot_length=rows.tokens.shape[1],
            columns=pages.shape[1],
            page_size=rows.page_size,
            width=width,
            k=k,
            rows=batch,
            NODES=power_of_two(max(width, k)),
            **self._launch,
        )
        shared = rows.bounds, pages, rows.page_size
        return (
            Window(tails[0], tails[1], tails[2], tail_valid, *shared),
            Window(aheads[0].t(), aheads[1].t(), aheads[2].t(), ahead_valid.t(), *shared),
        )

    def keep_draft(
        self, slots: SlotArrays, index: Tensor, limit: Tensor, k_limit: Tensor, draft: Draft
    ) -> None:
        """`Slots.keep_draft` where no scores are stored."""
        batch, k = draft.tokens.shape
        self._kernels.keep_draft[(batch,)](
            draft_tokens=slots.draft_tokens,
            draft_count=slots.draft_count,
            draft_source=slots.draft_source,
            length=slots.length,
            index=index,
            limit=limit,
            k_limit=k_limit,
            new=draft.tokens,
            count=draft.count,
            source=draft.source,
            most=slots.draft_tokens.shape[1],
            k=k,
            new_b=draft.tokens.stride(0),
            new_k=draft.tokens.stride(1),
            count_b=draft.count.stride(0),
            source_b=draft.source.stride(0),
            NODES=power_of_two(k),
            **self._launch,
        )


@lru_cache
def make_bookkeeping(device: torch.device) -> Bookkeeping | None:
    """The kernels on a GPU with triton, else None: torch's forms serve."""
    if device.type != "cuda":
        return None
    try:
        return Bookkeeping(device)
    except ImportError as error:
        log.warning("no fused bookkeeping (%s): install triton for faster rounds", error)
        return None


def tail_and_ahead(rows: Rows, width: int, k: int) -> tuple[Window, Window]:
    """The last `width` committed tokens, and places for k more: see `tail` and `ahead`."""
    kernels = make_bookkeeping(rows.length.device)
    if kernels is None:
        return tail(rows, width), ahead(rows, k)
    return kernels.tail_and_ahead(rows, width, k)
