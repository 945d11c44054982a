"""From a draft to the window that the target sees, and from a verdict to what is committed.

Pure: shapes depend on B and W alone. A node that is not valid keeps a place in every tensor and
writes its keys and values to scratch, so a rejection needs no rollback.
"""

from __future__ import annotations

import torch
from torch import Tensor

from paceline.speculation.choose import Judgement
from paceline.types import Draft, Rows, Verdict, Window


def addresses(pages: Tensor, page_size: int, position: Tensor, valid: Tensor) -> Tensor:
    """Where the keys of each node lie in every cache [B, W]; in scratch for one that is not valid.

    pages [B, P] int64; position [B, W] int64, valid [B, W].
    """
    width = position.shape[1]
    node = torch.arange(width, device=position.device)
    if width > page_size:
        node = node % page_size
    number = position // page_size
    moved = pages.gather(1, number) - number  # pages that it lies further on than its position
    return torch.where(valid, torch.add(position, moved, alpha=page_size), node)


def assemble(rows: Rows, draft: Draft, active: Tensor) -> Window:
    """The verify window of a chain: the root (last committed token), then the draft.

    draft.tokens [B, K]; active [B] bool, rows that may write. Returns a Window of W = K + 1.
    """
    root = rows.length - 1  # [B]
    last = rows.tokens[rows.index, root].unsqueeze(1)
    ids = torch.cat((last, draft.tokens), 1)  # [B, W]
    node = torch.arange(ids.shape[1], device=ids.device)
    valid = (node <= draft.count.unsqueeze(1)).logical_and_(active.unsqueeze(1))
    position = root.unsqueeze(1) + node
    # Nodes past the slot's end cannot be valid, but their rotary row must exist.
    position.clamp_(max=rows.tokens.shape[1] - 1)
    return _window(rows, ids, position, valid)


def _window(rows: Rows, ids: Tensor, position: Tensor, valid: Tensor) -> Window:
    address = addresses(rows.pages, rows.page_size, position, valid)
    return Window(ids, position, address, valid, rows.bounds, rows.pages, rows.page_size)


def tail(rows: Rows, width: int) -> Window:
    """The last `width` committed tokens of every row as a window, short rows padded in front.

    Feeding tokens a model has already seen writes the same keys again; so a model drafter is
    brought up to date by a chunk of fixed width, however many of its tokens are new.
    """
    node = torch.arange(width, device=rows.length.device)
    place = rows.length.unsqueeze(1) - width + node  # [B, width]
    valid = place >= 0
    position = place.clamp(min=0)
    ids = rows.tokens[rows.index.unsqueeze(1), position]
    return _window(rows, ids, position, valid)


def ahead(rows: Rows, k: int) -> Window:
    """Places for k tokens past the committed text, as one window whose ids are not known yet.

    A drafter takes it node by node with `step`. ids are zeros [B, k].
    """
    node = torch.arange(k, device=rows.length.device)
    place = rows.length.unsqueeze(1) + node  # [B, k]
    limit = rows.tokens.shape[1] - 1
    valid = place <= limit
    position = place.clamp(max=limit)
    return _window(rows, torch.zeros_like(place), position, valid)


def step(window: Window, node: int, ids: Tensor) -> Window:
    """Node `node` of `ahead`'s window alone, holding ids [B]."""
    here = slice(node, node + 1)
    return Window(
        ids.unsqueeze(1),
        window.position[:, here],
        window.address[:, here],
        window.valid[:, here],
        window.bounds,
        window.pages,
        window.page_size,
    )


def cut(tokens: Tensor, n: Tensor, stop_ids: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
    """Truncate at the end of the sequence and at the limit.

    tokens [B, W]; n [B] tokens the rule gave; stop_ids [B, M] padded with -1; room [B] tokens
    that may still be written. Returns n [B] after the cut, and ended [B] bool.
    """
    node = torch.arange(tokens.shape[1], device=tokens.device)
    stops = (tokens.unsqueeze(2) == stop_ids.unsqueeze(1)).any(2)  # [B, W]
    # The first stop within what the rule gave; W where there is none.
    first = torch.where(stops, node, tokens.shape[1]).amin(1)
    kept = torch.minimum(torch.minimum(n, first + 1), room)
    ended = (first < kept) | (kept >= room)
    return kept, ended


def settle(
    judged: Judgement,
    draft: Draft,
    active: Tensor,
    length: Tensor,
    limit: Tensor,
    stop_ids: Tensor,
) -> Verdict:
    """The verdict on a chain: what was judged, cut, and nothing for rows that are idle or failed.

    active [B] bool; length, limit [B] int64: tokens that are committed, and that may be; stop_ids
    as in `cut`. A row fails if a node that would stand is broken.
    """
    tokens = judged.tokens
    n, ended = cut(tokens, judged.accepted + 1, stop_ids, limit - length)
    node = torch.arange(tokens.shape[1], device=tokens.device)
    failed = (judged.broken & (node < n.unsqueeze(1))).any(1)  # [B]
    n = torch.where(failed | ~active, 0, n)
    ended = ended | failed
    accepted, evaluated = torch.minimum(judged.accepted, n), torch.minimum(judged.evaluated, n)
    columns = (n, draft.count, draft.source, accepted, evaluated, ended, failed, length + n)
    return Verdict(
        tokens=tokens,
        n=n,
        path=node.expand_as(tokens),
        drafted=draft.count,
        source=draft.source,
        accepted=accepted,
        evaluated=evaluated,
        ended=ended,
        failed=failed,
        report=torch.cat((tokens, torch.stack(columns, 1)), 1),
    )
