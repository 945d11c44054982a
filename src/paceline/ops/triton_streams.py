"""A cached text divided among streams of the attention kernel, and their parts put together.

Positions are cut into chunks at absolute places, and chunk c belongs to stream c mod STREAMS. A
program leaves what its stream gave; the last to arrive combines the parts, in the streams' order.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def first_chunk(stream, first, STREAMS: tl.constexpr):
    """The first chunk from `first` on that is the stream's."""
    return first + (stream + STREAMS - first % STREAMS) % STREAMS


@triton.jit
def _written(stream, first, stop, STREAMS: tl.constexpr, TREE: tl.constexpr):
    """Whether a program comes with that stream's part of chunks first to stop - 1."""
    written = (first_chunk(stream, first, STREAMS) < stop) & (stream < STREAMS)
    if TREE:
        written = written | (stream == STREAMS)
    return written


@triton.jit
def give(out, place, real, total, mixed, D: tl.constexpr, DP: tl.constexpr):
    """Write mixed / total; 0 where nothing was seen."""
    d = tl.arange(0, DP)
    result = mixed / tl.where(total == 0.0, 1.0, total)[:, None]
    mask = real[:, None] & (d < D)[None, :]
    tl.store(out + place[:, None] + d[None, :], result.to(out.dtype.element_ty), mask=mask)


@triton.jit
def leave(
    partial, tops, totals, counter, at, stream, r, real, rows, top, total, mixed,
    M: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """Leave this stream's part, top and total four times each; how many programs came before."""
    d = tl.arange(0, DP)
    one = stream * rows + r
    mask = real[:, None] & (d < D)[None, :]
    tl.store(partial + at * D + (one[:, None] * D + d[None, :]), mixed, mask=mask)
    four = at * 4 + (one[:, None] * 4 + tl.arange(0, 4)[None, :])
    tl.store(tops + four, tl.broadcast_to(top[:, None], [M, 4]), mask=real[:, None])
    tl.store(totals + four, tl.broadcast_to(total[:, None], [M, 4]), mask=real[:, None])
    tl.debug_barrier()
    return tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")


@triton.jit
def combine(
    out, goal, tops, totals, partial, at, r, real, rows, first, stop,
    R: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, STREAMS: tl.constexpr, PP: tl.constexpr,
    SLIDING: tl.constexpr, TREE: tl.constexpr,
):  # fmt: skip
    """Rows r [R]: streams in their order, and the result.

    Through the second cache (.cg): other programs wrote them during this launch. All of one
    layout, tops and totals too, which lie there four times each: no load waits for another.
    """
    d = tl.arange(0, DP)
    four = (r * 4)[:, None] + (d % 4)[None, :]
    cell = (r * D)[:, None] + d[None, :]
    inside = real[:, None] & (d < D)[None, :]
    partial, tops, totals = partial + at * D, tops + at * 4, totals + at * 4
    top = tl.full([R, DP], float("-inf"), tl.float32)
    for part in tl.static_range(STREAMS + TREE):
        held = inside & _written(part, first, stop, STREAMS, TREE)
        its = tops + part * rows * 4 + four
        top = tl.maximum(top, tl.load(its, mask=held, other=float("-inf"), cache_modifier=".cg"))
    base = tl.where(top == float("-inf"), 0.0, top)
    total = tl.zeros([R, DP], tl.float32)
    mixed = tl.zeros([R, DP], tl.float32)
    parts = STREAMS + TREE
    if not SLIDING and not TREE:
        parts = tl.minimum(stop, STREAMS)
    # Several at once, so that their loads do not wait for one another, but no more than registers.
    AT_ONCE: tl.constexpr = max(1, min(PP, 8, 6144 // (R * DP)))
    for some in range(0, parts, AT_ONCE):
        gone = ()
        for more in tl.static_range(AT_ONCE):
            held = inside & _written(some + more, first, stop, STREAMS, TREE)
            skip = (some + more) * rows
            one = tl.load(
                tops + skip * 4 + four, mask=held, other=float("-inf"), cache_modifier=".cg"
            )
            count = tl.load(totals + skip * 4 + four, mask=held, other=0.0, cache_modifier=".cg")
            added = tl.load(partial + skip * D + cell, mask=held, other=0.0, cache_modifier=".cg")
            gone = gone + ((one, count, added),)  # noqa: RUF005
        for more in tl.static_range(AT_ONCE):
            weight = tl.exp2(gone[more][0] - base)
            total += gone[more][1] * weight
            mixed += gone[more][2] * weight
    result = mixed / tl.where(total == 0.0, 1.0, total)
    tl.store(out + goal[:, None] + d[None, :], result.to(out.dtype.element_ty), mask=inside)
