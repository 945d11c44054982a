"""Attention of a window over a paged cache as one Triton kernel: head norms, rotation, the write
of the window's keys and values, and the attention itself, split over the cache's length.

A node's result is the same to the bit in any window, place and batch. Positions are cut into tiles
and chunks at absolute places, chunk c belongs to stream c mod STREAMS, a stream's tiles are summed
in their order and the streams in theirs; what a node does not see adds exactly nothing. Sums over
positions are matrix products, whose order does not follow from how a tile lies in registers.

With programmatic dependent launch (PDL) the plan is read, and old cells are asked for, while the
kernel in front still runs. So between what writes a plan and this kernel a kernel must be launched
plainly: a forward pass plans first, and its embedding is launched so.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from paceline.ops.triton_streams import combine, first_chunk, give, leave

# Nodes whose keys are made at once. The same for every window: sums over a head stay the same.
_NODES: tl.constexpr = tl.constexpr(16)


@triton.jit
def _prefetch(pointer, size):
    """Ask the second cache for `size` bytes, which with the address is a multiple of 16."""
    tl.inline_asm_elementwise(
        """{
        .reg .pred p;
        .reg .b32 t;
        mov.u32 t, %tid.x;
        setp.eq.u32 p, t, 0;
        setp.gt.and.s32 p, $2, 0, p;
        @p cp.async.bulk.prefetch.L2.global [$1], $2;
        mov.u32 $0, 0;
        }""",
        "=r,l,r", [pointer, size], dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def _angles(turns, place, held, D: tl.constexpr, DP: tl.constexpr):
    """[N, DP] float32: the turns of the N places, cosine and sine side by side."""
    d = tl.arange(0, DP)
    mask = held[:, None] & (d < D)[None, :]
    return tl.load(turns + place[:, None] * D + d[None, :], mask=mask, other=0.0)


@triton.jit
def _turn(
    x, turn, gain, eps, N: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, NORMED: tl.constexpr
):  # fmt: skip
    """[N, DP] float32: N heads x, normed and turned."""
    x = x.to(tl.float32)
    if NORMED:
        d = tl.arange(0, DP)
        length = tl.sqrt(tl.sum(x * x, 1) / D + eps)
        x = x / length[:, None] * tl.load(gain + d, mask=d < D, other=0.0)[None, :]
    across, up = tl.split(tl.reshape(turn, [N, DP // 2, 2]))
    even, odd = tl.split(tl.reshape(x, [N, DP // 2, 2]))
    return tl.reshape(tl.join(even * across - odd * up, even * up + odd * across), [N, DP])


@triton.jit
def _enter(
    qkv, keys, values, turn, goal, mine, node, gain, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    NORMED: tl.constexpr,
):  # fmt: skip
    """Write keys and values of 16 nodes at cells `goal`, those that are `mine`. qkv: at the key
    head of node 0.

    What is not finite is told by the key alone, which is then nowhere finite: scores are masked
    before they count, while a value that a row does not see is multiplied by 0.
    """
    d = tl.arange(0, DP)
    mask = mine[:, None] & (d < D)[None, :]
    at = qkv + node[:, None] * ((HEADS + 2 * KV_HEADS) * D) + d[None, :]
    key = tl.load(at, mask=mask, other=0.0)
    value = tl.load(at + KV_HEADS * D, mask=mask, other=0.0).to(tl.float32)
    key = _turn(key, turn, gain, eps, _NODES, D, DP, NORMED)
    key = key.to(keys.dtype.element_ty).to(tl.float32)
    good = (tl.abs(key) < float("inf")) & (tl.abs(value) < float("inf"))
    good = tl.min(good.to(tl.int32), 1)[:, None] != 0
    key, value = tl.where(good, key, float("nan")), tl.where(good, value, 0.0)
    cell = goal[:, None] * D + d[None, :]
    tl.store(keys + cell, key.to(keys.dtype.element_ty), mask=mask)
    tl.store(values + cell, value.to(values.dtype.element_ty), mask=mask)


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
    query, place, keys, values, pages, page, page_size, own, stop, begin, end, scale,
    M: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
    STREAMS: tl.constexpr, SLIDING: tl.constexpr, ONE_PAGE: tl.constexpr, STAGES: tl.constexpr,
    HALF: tl.constexpr,
):  # fmt: skip
    """What rows [M] see of one stream's cached positions: chunks own, own + STREAMS, … before
    `stop`, and of them positions begin to end - 1. page: that of position 0. Returns (top, total,
    mixed), see `_see`."""
    top = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M, 16], tl.float32)
    mixed = tl.zeros([M, DP], tl.float32)
    d = tl.arange(0, DP)
    SUB: tl.constexpr = CHUNK // TILE
    # Every chunk but the last is whole.
    last = tl.maximum(stop - 1 - own, 0) // STREAMS
    tail = tl.minimum(tl.cdiv(end - (own + last * STREAMS) * CHUNK, TILE), SUB)
    base = page * page_size
    for step in tl.range(0, tl.where(own < stop, last * SUB + tail, 0), num_stages=STAGES):
        start = (own + step // SUB * STREAMS) * CHUNK + step % SUB * TILE
        if not ONE_PAGE:
            count = start // page_size
            base = (tl.load(pages + count) - count) * page_size
        # One address, the rest small numbers: arithmetic on 64 bits is dear.
        skip = (base + start) * D
        column = tl.arange(0, TILE)
        held = column < end - start
        if SLIDING:
            held = held & (column >= begin - start)
        mask = held[:, None] & (d < D)[None, :]
        cell = column[:, None] * D + d[None, :]
        key = tl.load(keys + skip + cell, mask=mask, other=0.0)
        value = tl.load(values + skip + cell, mask=mask, other=0.0)
        here = place - start
        # A row that is not valid may lie behind the last that is.
        seen = held[None, :] & (column[None, :] <= here[:, None])
        if SLIDING:
            seen = seen & (column[None, :] > here[:, None] - SLIDING)
        top, total, mixed = _see(query, key, value, seen, top, total, mixed, scale, HALF)
    return top, total, mixed


@triton.jit
def _reach(places, live, root, SLIDING: tl.constexpr, TREE: tl.constexpr):
    """Of one window: the cached positions that some node sees, begin to end - 1 (none where no
    node is valid). root: position of node 0."""
    end = tl.max(tl.where(live, places, -1), 0) + 1
    if TREE:
        end = root * tl.max(live.to(tl.int32), 0)
    begin = end * 0
    if SLIDING:
        begin = tl.maximum(tl.min(tl.where(live, places, 1 << 30), 0) - (SLIDING - 1), 0)
        begin = tl.minimum(begin, end)
    return begin, end


@triton.jit(do_not_specialize=["width", "tiles", "page_count", "capacity", "stride"])
def attend_window(
    qkv, keys, values, out, turns, q_gain, k_gain,
    position, address, valid, pages, ancestors, partial, tops, totals, counters,
    width, stride, tiles, page_count, page_size, capacity, eps, scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    M: tl.constexpr, R: tl.constexpr, NODES: tl.constexpr, TILE: tl.constexpr,
    CHUNK: tl.constexpr, CHUNK_PAGES: tl.constexpr, STREAMS: tl.constexpr, PP: tl.constexpr,
    SLIDING: tl.constexpr, NORMED: tl.constexpr, TREE: tl.constexpr, ONE_PAGE: tl.constexpr,
    PDL: tl.constexpr, EARLY: tl.constexpr, STAGES: tl.constexpr, HALF: tl.constexpr,
    PREFETCH: tl.constexpr,
):  # fmt: skip
    """A program is (stream, key head and tile of M query rows, row of the batch).

    qkv [B·W, (Hq + 2·Hkv)·D]; keys, values [Hkv, capacity, D]; out [B·W, Hq·D]; turns [L, D/2, 2]
    float32; gains [D] float32; position, address, valid [B, W], rows `stride` apart; pages
    [B, page_count]; ancestors [B, W, W]. Query row r is node r // G with query head r % G of its
    key head; M of them make a tile, R of which at most are real. Programs leave partial [.., D],
    tops and totals [B, Hkv, PARTS, W·G, 4] and count themselves at counters [B, Hkv·tiles], which
    is 0 between launches. scale: of scores, times the binary logarithm of e.

    Rows see positions up to their own, at most SLIDING of them unless that is 0. With TREE they
    see the positions before the root's, and of the window what `ancestors` says, which is a
    stream of its own, the last. Nothing at a position past the last valid node's is read.
    """
    GROUPS: tl.constexpr = HEADS // KV_HEADS
    PARTS: tl.constexpr = STREAMS + 1 if TREE else STREAMS
    WIDE: tl.constexpr = HEADS + 2 * KV_HEADS
    stream, row = tl.program_id(0), tl.program_id(2)
    head, tile = tl.program_id(1) // tiles, tl.program_id(1) % tiles
    if PDL and EARLY:
        gdc_launch_dependents()
    # What the plan holds: every load that waits for no other, at once.
    position += row * stride
    address += row * stride
    valid += row * stride
    pages += row * page_count
    node = tl.arange(0, NODES)
    r = tile * M + tl.arange(0, M)
    real = r < width * GROUPS
    root = tl.load(position).to(tl.int32)
    page = tl.load(pages)
    places = tl.load(position + node, mask=node < width, other=0).to(tl.int32)
    live = tl.load(valid + node, mask=node < width, other=0) != 0
    goal = tl.load(address + node, mask=node < width, other=0)
    place = tl.load(position + r // GROUPS, mask=real, other=0).to(tl.int32)
    begin, end = _reach(places, live, root, SLIDING, TREE)

    # Chunks that are seen, the first of this program's, and how many programs arrive.
    first, stop = begin // CHUNK, tl.cdiv(end, CHUNK)
    own = first_chunk(stream, first, STREAMS)
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
    if PREFETCH:
        # The program's first chunk, page by page, as far as the window does not write.
        for part in tl.static_range(CHUNK_PAGES):
            start = own * CHUNK + part * (CHUNK // CHUNK_PAGES)
            size = tl.minimum(tl.minimum(root, end) - start, CHUNK // CHUNK_PAGES)
            if not ONE_PAGE:
                page = tl.load(pages + start // page_size, mask=size > 0, other=0)
                start = start % page_size
            size = tl.minimum(size, page_size - start)
            size *= D * keys.dtype.element_ty.primitive_bitwidth // 8
            _prefetch(keys + (page * page_size + start) * D, size)
            _prefetch(values + (page * page_size + start) * D, size)
    turn = _angles(turns, place, real, D, DP)
    # New keys and values are written by who reads them, and before.
    mine = live & ((places // CHUNK) % STREAMS == stream)
    if TREE:
        mine = live & in_window
    if NODES == _NODES:
        key_turn = _angles(turns, places, mine, D, DP)
    if PDL:
        gdc_wait()

    d = tl.arange(0, DP)
    index = row * width + r // GROUPS
    lane = (head * GROUPS + r % GROUPS) * D
    source = index.to(tl.int64) * (WIDE * D) + lane
    query = tl.load(
        qkv + source[:, None] + d[None, :], mask=real[:, None] & (d < D)[None, :], other=0.0
    )
    if tl.max(mine.to(tl.int32), 0) != 0:
        first_key = qkv + ((row * width).to(tl.int64) * WIDE + HEADS + head) * D
        if NODES == _NODES:
            _enter(
                first_key, keys, values, key_turn, goal, mine, node, k_gain, eps,
                HEADS, KV_HEADS, D, DP, NORMED,
            )  # fmt: skip
        else:
            for start in range(0, width, _NODES):
                some = start + tl.arange(0, _NODES)
                held = tl.load(valid + some, mask=some < width, other=0) != 0
                spot = tl.load(position + some, mask=held, other=0).to(tl.int32)
                if not TREE:
                    held = held & ((spot // CHUNK) % STREAMS == stream)
                cell = tl.load(address + some, mask=held, other=0)
                spun = _angles(turns, spot, held, D, DP)
                _enter(
                    first_key, keys, values, spun, cell, held, some, k_gain, eps,
                    HEADS, KV_HEADS, D, DP, NORMED,
                )  # fmt: skip
        tl.debug_barrier()
    query = _turn(query, turn, q_gain, eps, M, D, DP, NORMED).to(keys.dtype.element_ty)

    top, total, mixed = _look_back(
        query, place, keys, values, pages, page, page_size, own, stop, begin, end, scale,
        M, D, DP, TILE, CHUNK, STREAMS, SLIDING, ONE_PAGE, STAGES, HALF,
    )  # fmt: skip
    if TREE:
        if in_window:
            at = goal[:, None] * D + d[None, :]
            mask = live[:, None] & (d < D)[None, :]
            key = tl.load(keys + at, mask=mask, other=0.0)
            value = tl.load(values + at, mask=mask, other=0.0)
            seen = real[:, None] & live[None, :]
            pair = index[:, None].to(tl.int64) * width + node[None, :]
            seen = seen & (tl.load(ancestors + pair, mask=seen, other=0) != 0)
            if SLIDING:
                seen = seen & (places[None, :] > place[:, None] - SLIDING)
            top, total, mixed = _see(query, key, value, seen, top, total, mixed, scale, HALF)

    if PDL and not EARLY:
        gdc_launch_dependents()
    count = tl.max(total, 1)  # every column is the same
    if arrivals == 1:
        give(out, index.to(tl.int64) * (HEADS * D) + lane, real, count, mixed, D, DP)
    else:
        rows = width * GROUPS
        base = (row * KV_HEADS + head).to(tl.int64) * PARTS * rows
        counter = counters + row * tl.num_programs(1) + tl.program_id(1)
        before = leave(
            partial, tops, totals, counter, base, stream, r, real, rows, top, count, mixed, M, D, DP
        )
        if before == arrivals - 1:
            tl.store(counter, 0)
            q = tile * M + tl.arange(0, R)
            to = (row * width + q // GROUPS).to(tl.int64) * (HEADS * D)
            to += (head * GROUPS + q % GROUPS) * D
            combine(
                out, to, tops, totals, partial, base, q, q < rows, rows, first, stop,
                R, D, DP, STREAMS, PP, SLIDING, TREE,
            )  # fmt: skip
