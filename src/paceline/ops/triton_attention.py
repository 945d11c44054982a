"""Attention of a window over a paged cache as one Triton kernel: head norms, rotation, the write
of the window's keys and values, and the attention itself, split over the cache's length.

A node's result is the same to the bit in any window, place and batch. Positions are cut into tiles
and chunks at absolute places, chunk c belongs to stream c mod STREAMS, a stream's tiles are summed
in their order and the streams in theirs; what a node does not see adds exactly nothing. Sums over
positions are matrix products, whose order does not follow from how a tile lies in registers.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

# Nodes whose keys are made at once. The same for every window: sums over a head stay the same.
_NODES: tl.constexpr = tl.constexpr(16)


@triton.jit
def _heads(
    source, offset, held, place, gain, turns, eps,
    N: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, NORMED: tl.constexpr,
):  # fmt: skip
    """[N, DP] float32: N heads at source + offset, normed and turned to their places."""
    d = tl.arange(0, DP)
    mask = held[:, None] & (d < D)[None, :]
    x = tl.load(source + offset[:, None] + d[None, :], mask=mask, other=0.0).to(tl.float32)
    if NORMED:
        length = tl.sqrt(tl.sum(x * x, 1) / D + eps)
        x = x / length[:, None] * tl.load(gain + d, mask=d < D, other=0.0)[None, :]
    turn = tl.load(turns + place[:, None] * D + d[None, :], mask=mask, other=0.0)
    across, up = tl.split(tl.reshape(turn, [N, DP // 2, 2]))
    even, odd = tl.split(tl.reshape(x, [N, DP // 2, 2]))
    return tl.reshape(tl.join(even * across - odd * up, even * up + odd * across), [N, DP])


@triton.jit
def _enter(
    qkv, keys, values, position, address, valid, gain, turns, width, stream, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    CHUNK: tl.constexpr, STREAMS: tl.constexpr, NORMED: tl.constexpr, TREE: tl.constexpr,
):  # fmt: skip
    """Write the window's keys and values that fall into the stream's chunks (with TREE: all), so
    that a program reads back only what it wrote itself. qkv: at the key head of node 0.

    What is not finite is told by the key alone, which is then nowhere finite: scores are masked
    before they count, while a value that a row does not see is multiplied by 0.
    """
    d = tl.arange(0, DP)
    for start in range(0, width, _NODES):
        node = start + tl.arange(0, _NODES)
        mine = tl.load(valid + node, mask=node < width, other=0) != 0
        place = tl.load(position + node, mask=mine, other=0)
        if not TREE:
            mine = mine & ((place.to(tl.int32) // CHUNK) % STREAMS == stream)
        goal = tl.load(address + node, mask=mine, other=0)[:, None] * D + d[None, :]
        mask = mine[:, None] & (d < D)[None, :]
        offset = node.to(tl.int64) * ((HEADS + 2 * KV_HEADS) * D)
        key = _heads(qkv, offset, mine, place, gain, turns, eps, _NODES, D, DP, NORMED)
        key = key.to(keys.dtype.element_ty).to(tl.float32)
        offset += KV_HEADS * D
        value = tl.load(qkv + offset[:, None] + d[None, :], mask=mask, other=0.0).to(tl.float32)
        good = (tl.abs(key) < float("inf")) & (tl.abs(value) < float("inf"))
        good = tl.min(good.to(tl.int32), 1)[:, None] != 0
        key, value = tl.where(good, key, float("nan")), tl.where(good, value, 0.0)
        tl.store(keys + goal, key.to(keys.dtype.element_ty), mask=mask)
        tl.store(values + goal, value.to(values.dtype.element_ty), mask=mask)
    tl.debug_barrier()


@triton.jit
def _see(query, key, value, seen, top, total, mixed, scale, HALF: tl.constexpr):
    """One tile more of the running softmax: top [M], total [M, 16], mixed [M, DP].

    HALF: the products take the cache's 16-bit numbers as they are.
    """
    DOT: tl.constexpr = value.dtype if HALF else tl.float32
    scores = tl.dot(query.to(DOT), tl.trans(key.to(DOT)), input_precision="ieee") * scale
    scores = tl.where(seen, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    # Where nothing was seen yet both are minus infinity, and their difference is not a number.
    base = tl.where(new_top == float("-inf"), 0.0, new_top)
    weight = tl.exp2(scores - base[:, None]).to(value.dtype).to(DOT)
    fade = tl.exp2(top - base)[:, None]
    ones = tl.full([key.shape[0], 16], 1.0, DOT)
    total = tl.dot(weight, ones, total * fade, input_precision="ieee")
    mixed = tl.dot(weight, value.to(DOT), mixed * fade, input_precision="ieee")
    return new_top, total, mixed


@triton.jit
def _look_back(
    query, place, keys, values, pages, page_size, own, stop, begin, end, scale,
    M: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
    STREAMS: tl.constexpr, SLIDING: tl.constexpr, ONE_PAGE: tl.constexpr, STAGES: tl.constexpr,
    HALF: tl.constexpr,
):  # fmt: skip
    """What rows [M] see of one stream's cached positions: chunks own, own + STREAMS, … before
    `stop`, and of them positions begin to end - 1. Returns (top, total, mixed), see `_see`."""
    top = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M, 16], tl.float32)
    mixed = tl.zeros([M, DP], tl.float32)
    d = tl.arange(0, DP)
    SUB: tl.constexpr = CHUNK // TILE
    # Every chunk but the last is whole.
    last = tl.maximum(stop - 1 - own, 0) // STREAMS
    tail = tl.minimum(tl.cdiv(end - (own + last * STREAMS) * CHUNK, TILE), SUB)
    base = tl.zeros([], tl.int64)
    if ONE_PAGE:
        base = tl.load(pages) * page_size
    for step in tl.range(0, tl.where(own < stop, last * SUB + tail, 0), num_stages=STAGES):
        start = (own + step // SUB * STREAMS) * CHUNK + step % SUB * TILE
        if not ONE_PAGE:
            page = start // page_size
            base = (tl.load(pages + page) - page) * page_size
        column = start + tl.arange(0, TILE)
        mask = ((column >= begin) & (column < end))[:, None] & (d < D)[None, :]
        cell = (base + column)[:, None] * D + d[None, :]
        key = tl.load(keys + cell, mask=mask, other=0.0)
        value = tl.load(values + cell, mask=mask, other=0.0)
        seen = (column < end)[None, :] & (column[None, :] <= place[:, None])
        if SLIDING:
            seen = seen & (column[None, :] > place[:, None] - SLIDING)
        top, total, mixed = _see(query, key, value, seen, top, total, mixed, scale, HALF)
    return top, total, mixed


@triton.jit
def _chunk(stream, first, STREAMS: tl.constexpr):
    """The first chunk from `first` on that is the stream's."""
    return first + (stream + STREAMS - first % STREAMS) % STREAMS


@triton.jit
def _written(stream, first, stop, STREAMS: tl.constexpr, TREE: tl.constexpr):
    """Whether a program comes with that stream's part of chunks first to stop - 1."""
    written = (_chunk(stream, first, STREAMS) < stop) & (stream < STREAMS)
    if TREE:
        written = written | (stream == STREAMS)
    return written


@triton.jit
def _combine(
    tops, totals, partial, at, r, real, rows, first, stop,
    M: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, STREAMS: tl.constexpr, PP: tl.constexpr,
    TREE: tl.constexpr,
):  # fmt: skip
    """Streams in their order: (total [M], mixed [M, DP]).

    Through the second cache (.cg): other programs wrote them during this launch.
    """
    part, d = tl.arange(0, PP), tl.arange(0, DP)
    mask = _written(part, first, stop, STREAMS, TREE)[:, None] & real[None, :]
    every = tops + at + part[:, None] * rows + r[None, :]
    top = tl.max(tl.load(every, mask=mask, other=float("-inf"), cache_modifier=".cg"), 0)
    base = tl.where(top == float("-inf"), 0.0, top)
    total = tl.zeros([M], tl.float32)
    mixed = tl.zeros([M, DP], tl.float32)
    # Several at once, so that their loads do not wait for one another, but no more than registers.
    AT_ONCE: tl.constexpr = max(1, min(PP, 16384 // (M * DP)))
    for some in range(0, STREAMS + TREE, AT_ONCE):
        for more in tl.static_range(AT_ONCE):
            held = real & _written(some + more, first, stop, STREAMS, TREE)
            one = at + (some + more) * rows + r
            top = tl.load(tops + one, mask=held, other=float("-inf"), cache_modifier=".cg")
            count = tl.load(totals + one, mask=held, other=0.0, cache_modifier=".cg")
            added = tl.load(
                partial + one[:, None] * D + d[None, :],
                mask=held[:, None] & (d < D)[None, :], other=0.0, cache_modifier=".cg",
            )  # fmt: skip
            weight = tl.exp2(top - base)
            total += count * weight
            mixed += added * weight[:, None]
    return total, mixed


@triton.jit
def _give(out, place, real, total, mixed, D: tl.constexpr, DP: tl.constexpr):
    """Write mixed / total; 0 where nothing was seen."""
    d = tl.arange(0, DP)
    result = mixed / tl.where(total == 0.0, 1.0, total)[:, None]
    mask = real[:, None] & (d < D)[None, :]
    tl.store(out + place[:, None] + d[None, :], result.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _reach(
    position, valid, width, NODES: tl.constexpr, SLIDING: tl.constexpr, TREE: tl.constexpr
):  # fmt: skip
    """Of one window: places and validity of its nodes [NODES], and the cached positions that some
    node sees, begin to end - 1 (none where no node is valid)."""
    node = tl.arange(0, NODES)
    places = tl.load(position + node, mask=node < width, other=0).to(tl.int32)
    live = tl.load(valid + node, mask=node < width, other=0) != 0
    end = tl.max(tl.where(live, places, -1), 0) + 1
    if TREE:
        end = tl.load(position).to(tl.int32) * tl.max(live.to(tl.int32), 0)
    begin = end * 0
    if SLIDING:
        begin = tl.maximum(tl.min(tl.where(live, places, 1 << 30), 0) - (SLIDING - 1), 0)
        begin = tl.minimum(begin, end)
    return places, live, begin, end


@triton.jit
def _leave(
    out, goal, partial, tops, totals, counter, at, stream, first, stop, arrivals, r, real,
    rows, top, total, mixed,
    M: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, STREAMS: tl.constexpr, PP: tl.constexpr,
    TREE: tl.constexpr,
):  # fmt: skip
    """Leave this stream's part; the last program to come combines all and writes the result."""
    d = tl.arange(0, DP)
    one = at + stream * rows + r
    tl.store(tops + one, top, mask=real)
    tl.store(totals + one, total, mask=real)
    mask = real[:, None] & (d < D)[None, :]
    tl.store(partial + one[:, None] * D + d[None, :], mixed, mask=mask)
    tl.debug_barrier()
    if tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == arrivals - 1:
        tl.store(counter, 0)
        total, mixed = _combine(
            tops, totals, partial, at, r, real, rows, first, stop, M, D, DP, STREAMS, PP, TREE
        )
        _give(out, goal, real, total, mixed, D, DP)


@triton.jit(do_not_specialize=["width", "tiles", "page_count", "capacity", "stride"])
def attend_window(
    qkv, keys, values, out, turns, q_gain, k_gain,
    position, address, valid, pages, ancestors, partial, tops, totals, counters,
    width, stride, tiles, page_count, page_size, capacity, eps, scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    M: tl.constexpr, NODES: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
    STREAMS: tl.constexpr, PP: tl.constexpr, SLIDING: tl.constexpr, NORMED: tl.constexpr,
    TREE: tl.constexpr, ONE_PAGE: tl.constexpr, PDL: tl.constexpr, STAGES: tl.constexpr,
    HALF: tl.constexpr,
):  # fmt: skip
    """A program is (stream, key head and tile of M query rows, row of the batch).

    qkv [B·W, (Hq + 2·Hkv)·D]; keys, values [Hkv, capacity, D]; out [B·W, Hq·D]; turns [L, D/2, 2]
    float32; gains [D] float32; position, address, valid [B, W], rows `stride` apart; pages
    [B, page_count]; ancestors [B, W, W]. Query row r is node r // G with query head r % G of its
    key head; M of them make a tile. Programs leave partial [.., D], tops and totals
    [B, Hkv, PARTS, W·G] and count themselves at counters [B, Hkv·tiles], which is 0 between
    launches. scale: of scores, times the binary logarithm of e.

    Rows see positions up to their own, at most SLIDING of them unless that is 0. With TREE they
    see the positions before the root's, and of the window what `ancestors` says, which is a
    stream of its own, the last. Nothing at a position past the last valid node's is read.
    """
    GROUPS: tl.constexpr = HEADS // KV_HEADS
    PARTS: tl.constexpr = STREAMS + 1 if TREE else STREAMS
    stream, row = tl.program_id(0), tl.program_id(2)
    head, tile = tl.program_id(1) // tiles, tl.program_id(1) % tiles
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    position += row * stride
    address += row * stride
    valid += row * stride
    pages += row * page_count
    places, live, begin, end = _reach(position, valid, width, NODES, SLIDING, TREE)

    # Chunks that are seen, the first of this program's, and how many programs arrive.
    first, stop = begin // CHUNK, tl.cdiv(end, CHUNK)
    own = _chunk(stream, first, STREAMS)
    arrivals = tl.minimum(stop - first, STREAMS)
    in_window = False
    if TREE:
        arrivals += 1
        in_window = stream == STREAMS
        own = tl.where(in_window, stop, own)
        if (own >= stop) & (stream < STREAMS):
            return
    else:
        # A row without a valid node: one program writes zeros.
        if (own >= stop) & ((arrivals > 0) | (stream > 0)):
            return
        arrivals = tl.maximum(arrivals, 1)

    keys += head.to(tl.int64) * capacity * D
    values += head.to(tl.int64) * capacity * D
    mine = (places // CHUNK) % STREAMS == stream
    if TREE:
        mine = in_window & live
    if tl.max((mine & live).to(tl.int32), 0) != 0:
        first_key = (row * width).to(tl.int64) * ((HEADS + 2 * KV_HEADS) * D) + (HEADS + head) * D
        _enter(
            qkv + first_key, keys, values, position, address, valid, k_gain, turns, width, stream,
            eps, HEADS, KV_HEADS, D, DP, CHUNK, STREAMS, NORMED, TREE,
        )  # fmt: skip

    r = tile * M + tl.arange(0, M)
    real = r < width * GROUPS
    place = tl.load(position + r // GROUPS, mask=real, other=0).to(tl.int32)
    lane = (head * GROUPS + r % GROUPS) * D
    index = (row * width + r // GROUPS).to(tl.int64)
    offset = index * ((HEADS + 2 * KV_HEADS) * D) + lane
    query = _heads(qkv, offset, real, place, q_gain, turns, eps, M, D, DP, NORMED)
    query = query.to(keys.dtype.element_ty)

    top, total, mixed = _look_back(
        query, place, keys, values, pages, page_size, own, stop, begin, end, scale,
        M, D, DP, TILE, CHUNK, STREAMS, SLIDING, ONE_PAGE, STAGES, HALF,
    )  # fmt: skip
    if in_window:
        node, d = tl.arange(0, NODES), tl.arange(0, DP)
        cell = tl.load(address + node, mask=live, other=0)[:, None] * D + d[None, :]
        mask = live[:, None] & (d < D)[None, :]
        key = tl.load(keys + cell, mask=mask, other=0.0)
        value = tl.load(values + cell, mask=mask, other=0.0)
        seen = real[:, None] & live[None, :]
        pair = index[:, None] * width + node[None, :]
        seen = seen & (tl.load(ancestors + pair, mask=seen, other=0) != 0)
        if SLIDING:
            seen = seen & (places[None, :] > place[:, None] - SLIDING)
        top, total, mixed = _see(query, key, value, seen, top, total, mixed, scale, HALF)

    count = tl.max(total, 1)  # every column is the same
    goal = index * (HEADS * D) + lane
    if arrivals == 1:
        _give(out, goal, real, count, mixed, D, DP)
    else:
        rows = width * GROUPS
        _leave(
            out, goal, partial, tops, totals,
            counters + row * tl.num_programs(1) + tl.program_id(1),
            (row * KV_HEADS + head).to(tl.int64) * PARTS * rows, stream, first, stop, arrivals,
            r, real, rows, top, count, mixed, M, D, DP, STREAMS, PP, TREE,
        )  # fmt: skip
