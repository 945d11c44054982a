"""A round's small steps around the models, each as one launch: the window from the slots, the
verdict into the slots, the places of a model's draft, the draft that waits.

What each computes is defined by `speculation.window` and `engine.slots`; `ops.bookkeeping` makes
the arguments. One program a row of the round. Names ending in _b are the strides of rows.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

_COLUMNS: tl.constexpr = tl.constexpr(512)  # of a page table, copied at once


@triton.jit
def _address(pages, page_size, position, valid, node):
    """Where the keys of `position` lie in every cache; in scratch where it is not valid."""
    page = tl.load(pages + position // page_size)
    return tl.where(valid, page * page_size + position % page_size, node % page_size)


@triton.jit
def open_window(
    tokens, length, active, draft_tokens, draft_count, draft_source, tables, index, pages,
    ids, position, address, valid, count, source,
    slot_length, most, columns, page_size, width,
    NODES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """`Slots.refresh`, `Slots.draft` and `assemble`: the first seven are arrays over slots, the
    next two over rows."""
    b, node = tl.program_id(0), tl.arange(0, NODES)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    slot = tl.load(index + b)
    table = tables + slot * columns
    for first in range(0, columns, _COLUMNS):
        column = first + tl.arange(0, _COLUMNS)
        some = tl.load(table + column, mask=column < columns)
        tl.store(pages + b * columns + column, some, mask=column < columns)
    root = tl.load(length + slot) - 1
    last = tl.load(tokens + slot * slot_length + tl.where(root < 0, slot_length - 1, root))
    behind = (node > 0) & (node < width)
    token = tl.load(draft_tokens + slot * most + node - 1, mask=behind, other=0)
    drafted = tl.minimum(tl.load(draft_count + slot), width - 1)
    tl.store(draft_count + slot, 0)  # it is taken
    real = (node <= drafted) & (tl.load(active + slot) != 0)
    place = tl.minimum(root + node, slot_length - 1)
    to = _address(table, page_size, tl.maximum(place, 0), real, node)
    at = b * width + node
    tl.store(ids + at, tl.where(node == 0, last, token), mask=node < width)
    tl.store(position + at, place, mask=node < width)
    tl.store(address + at, to, mask=node < width)
    tl.store(valid + at, real, mask=node < width)
    tl.store(count + b, drafted)
    tl.store(source + b, tl.load(draft_source + slot))


@triton.jit
def settle(
    tokens, length, active, counts, index, limit, stop_ids,
    judged, accepted, evaluated, broken, draft_count, draft_source, report, flags,
    slot_length, vocab, width, rows, count_b, source_b,
    STOPS: tl.constexpr, NODES: tl.constexpr, PENALTIES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """`window.settle` and `Slots.commit`: the first four are arrays over slots.

    report [B, width + 8] int64, see `types.Verdict`; flags [2, B] bool: ended, failed.
    """
    b, node = tl.program_id(0), tl.arange(0, NODES)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    live = node < width
    slot = tl.load(index + b)
    before = tl.load(length + slot)
    running = tl.load(active + slot) != 0
    token = tl.load(judged + b * width + node, mask=live, other=-2)
    bad = tl.load(broken + b * width + node, mask=live, other=0) != 0
    room = tl.load(limit + b) - before

    entry = tl.arange(0, triton.next_power_of_2(STOPS))
    stops = tl.load(stop_ids + b * STOPS + entry, mask=entry < STOPS, other=-1)
    hit = tl.max((token[:, None] == stops[None, :]).to(tl.int32), axis=1)
    first = tl.min(tl.where(hit > 0, node, width), axis=0)
    right = tl.load(accepted + b)
    kept = tl.minimum(tl.minimum(right + 1, first + 1), room)
    failed = tl.max((bad & (node < kept)).to(tl.int32), axis=0) > 0
    ended = (first < kept) | (kept >= room) | failed
    n = tl.where(failed | (running == 0), 0, kept)

    taken = node < n
    tl.store(tokens + slot * slot_length + before + node, token, mask=taken)
    if PENALTIES:
        tl.atomic_add(counts + slot * vocab + token, tl.where(taken, 1, 0), mask=taken)
    tl.store(length + slot, before + n)
    tl.store(active + slot, running & (ended == 0))
    tl.store(flags + b, ended)
    tl.store(flags + rows + b, failed)
    out = report + b * (width + 8)
    tl.store(out + node, token, mask=live)
    out += width
    tl.store(out, n)
    tl.store(out + 1, tl.load(draft_count + b * count_b))
    tl.store(out + 2, tl.load(draft_source + b * source_b))
    tl.store(out + 3, tl.minimum(right, n))
    tl.store(out + 4, tl.minimum(tl.load(evaluated + b), n))
    tl.store(out + 5, ended.to(tl.int64))
    tl.store(out + 6, failed.to(tl.int64))
    tl.store(out + 7, before + n)


@triton.jit
def places(
    tokens, length, index, pages,
    tail_ids, tail_position, tail_address, tail_valid,
    ahead_ids, ahead_position, ahead_address, ahead_valid,
    slot_length, columns, page_size, width, k, rows,
    NODES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """`window.tail` and `window.ahead`; length over rows. The second's arrays are [k, B]."""
    b, node = tl.program_id(0), tl.arange(0, NODES)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    slot, end = tl.load(index + b), tl.load(length + b)

    place = end - width + node
    real, place = place >= 0, tl.minimum(tl.maximum(place, 0), slot_length - 1)
    mask, at = node < width, b * width + node
    table = pages + b * columns
    to = _address(table, page_size, place, real, node)
    token = tl.load(tokens + slot * slot_length + place, mask=mask, other=0)
    tl.store(tail_ids + at, token, mask=mask)
    tl.store(tail_position + at, place, mask=mask)
    tl.store(tail_address + at, to, mask=mask)
    tl.store(tail_valid + at, real, mask=mask)

    place = end + node
    real, place = place < slot_length, tl.minimum(place, slot_length - 1)
    mask, at = node < k, node * rows + b
    to = _address(table, page_size, place, real, node)
    tl.store(ahead_ids + at, tl.zeros_like(place), mask=mask)
    tl.store(ahead_position + at, place, mask=mask)
    tl.store(ahead_address + at, to, mask=mask)
    tl.store(ahead_valid + at, real, mask=mask)


@triton.jit
def keep_draft(
    draft_tokens, draft_count, draft_source, length, index, limit, k_limit, new, count, source,
    most, k, new_b, new_k, count_b, source_b,
    NODES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """`Slots.keep_draft` without scores: the first four are arrays over slots."""
    b, node = tl.program_id(0), tl.arange(0, NODES)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    slot = tl.load(index + b)
    token = tl.load(new + b * new_b + node * new_k, mask=node < k, other=0)
    tl.store(draft_tokens + slot * most + node, token, mask=node < k)
    room = tl.load(limit + b) - tl.load(length + slot) - 1
    kept = tl.minimum(tl.load(count + b * count_b), tl.load(k_limit + b))
    tl.store(draft_count + slot, tl.minimum(kept, tl.maximum(room, 0)))
    tl.store(draft_source + slot, tl.load(source + b * source_b))
