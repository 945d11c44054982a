"""Matrix products of few rows with constant weights, as Triton kernels: bound by reading weights.

What stands before and after a product is fused in: the RMS norm of its input, the bias, the
residual, the gated activation. `few_rows` runs on the matrix units, and every sum over the inner
dimension runs in a fixed order, so a row's result is the same to the bit whatever stands in the
other rows and however many there are. `one_row` is the quicker form for a draft's single rows,
which needs no such promise: its weights are under way before the kernel before it has ended.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def _ask(w, column, n, k, COLUMNS: tl.constexpr):
    """Have the first COLUMNS columns of some rows of w [n, k] brought into the second cache."""
    LINE: tl.constexpr = 128 // (w.dtype.element_ty.primitive_bitwidth // 8)  # of 128 bytes
    line = tl.arange(0, COLUMNS // LINE) * LINE
    row = tl.minimum(column, n - 1).to(tl.int64) * k
    at = (w + row[:, None] + tl.minimum(line, k - 1)[None, :]).to(tl.int64)
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [at],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _total(x, ROWS: tl.constexpr, WIDE: tl.constexpr):
    """x [ROWS, WIDE] summed over WIDE, a power of two, neighbours first. `tl.sum` adds in whatever
    order the compiler's layout suggests, and that changes with the tile of the product."""
    for level in tl.static_range(WIDE.bit_length() - 1):
        left, right = tl.split(tl.reshape(x, (ROWS, WIDE >> (level + 1), 2)))
        x = left + right
    return tl.reshape(x, (ROWS,))


@triton.jit(do_not_specialize=["rows"])
def few_rows(
    x,
    w,
    y,
    squares,
    bias,
    residual,
    gain,
    scaled,
    parts,
    rows,
    n,
    k,
    eps,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    STAGES: tl.constexpr,
    TILES: tl.constexpr,
    GATED: tl.constexpr,
    BIAS: tl.constexpr,
    ADD: tl.constexpr,
    NEXT: tl.constexpr,
    EVEN: tl.constexpr,
    PDL: tl.constexpr,
    AHEAD: tl.constexpr,
    EVICT: tl.constexpr,
):
    """y [rows, n] = f(x [rows, k] wᵀ · scale + bias) (+ residual), a tile [BM, BN] a program.

    The norm's gain is already in x. TILES > 0: scale is 1 / sqrt(mean square + eps) with the sum
    of squares given as parts, squares [rows, TILES]; else 1. w [n, k], or with GATED [2·n, k],
    whose first n rows are the gate: y = silu(gate) · up. ADD: residual [rows, n] is added.
    NEXT: for the norm that follows, scaled [rows, n] = y · gain and parts [rows, programs], each
    program's sum of squares, are written too. EVEN: k is a multiple of BK and n of BN. PDL:
    programmatic dependent launch, given away only when the weights are read: programs of the next
    kernel that came earlier would crowd on the multiprocessors that happen to be free. While this
    program waits for the kernel before it, its first AHEAD columns of weights are asked for.
    EVICT: how the second cache shall treat the weights, which are read once a step.
    """
    # Tiles of the same weights are neighbours, so that they meet them in the second cache.
    first = tl.program_id(1) * BN
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    column = first + tl.arange(0, BN)
    inner = tl.arange(0, BK)
    here = row < rows
    in_n = column < n
    if PDL:
        if AHEAD > 0:
            _ask(w, column, n, k, AHEAD)
            if GATED:
                _ask(w + n.to(tl.int64) * k, column, n, k, AHEAD)
        gdc_wait()
    if TILES > 0:
        WIDE: tl.constexpr = triton.next_power_of_2(TILES)
        tile = tl.arange(0, WIDE)
        at = row[:, None] * TILES + tile[None, :]
        sums = tl.load(squares + at, mask=here[:, None] & (tile < TILES)[None, :], other=0.0)
    # Rows past the last column read the last one: what they give is never stored.
    at_w = w + tl.minimum(column, n - 1).to(tl.int64)[:, None] * k + inner[None, :]
    at_x = x + row[:, None] * k + inner[None, :]
    acc = tl.zeros((BN, BM), tl.float32)
    up = tl.zeros((BN, BM), tl.float32)
    second = n.to(tl.int64) * k
    for start in tl.range(0, k, BK, num_stages=STAGES):
        left = inner < k - start
        if EVEN:
            a = tl.load(at_x + start, mask=here[:, None], other=0.0)
            b = tl.load(at_w + start, eviction_policy=EVICT)
        else:
            a = tl.load(at_x + start, mask=here[:, None] & left[None, :], other=0.0)
            b = tl.load(at_w + start, mask=left[None, :], other=0.0, eviction_policy=EVICT)
        # Weights are the left operand: its side of the matrix unit has 64 places to fill.
        acc = tl.dot(b, tl.trans(a), acc, input_precision="ieee")
        if GATED:
            if EVEN:
                c = tl.load(at_w + second + start, eviction_policy=EVICT)
            else:
                c = tl.load(
                    at_w + second + start, mask=left[None, :], other=0.0, eviction_policy=EVICT
                )
            up = tl.dot(c, tl.trans(a), up, input_precision="ieee")
    if PDL:
        gdc_launch_dependents()
    acc = tl.trans(acc)
    up = tl.trans(up)
    if TILES > 0:
        scale = tl.rsqrt(_total(sums, BM, WIDE) / k + eps)[:, None]
        acc *= scale
        up *= scale
    if BIAS:
        acc += tl.load(bias + column, mask=in_n, other=0.0).to(tl.float32)[None, :]
        if GATED:
            up += tl.load(bias + n + column, mask=in_n, other=0.0).to(tl.float32)[None, :]
    if GATED:
        acc = acc / (1.0 + tl.exp(-acc)) * up
    at_y = row[:, None].to(tl.int64) * n + column[None, :]
    kept = here[:, None] & in_n[None, :]
    if ADD:
        acc += tl.load(residual + at_y, mask=kept, other=0.0).to(tl.float32)
    out = acc.to(y.dtype.element_ty)
    tl.store(y + at_y, out, mask=kept)
    if NEXT:
        wide = tl.where(kept, out.to(tl.float32), 0.0)
        g = tl.load(gain + column, mask=in_n, other=0.0).to(tl.float32)
        tl.store(scaled + at_y, (wide * g[None, :]).to(scaled.dtype.element_ty), mask=kept)
        at = row * tl.num_programs(1) + tl.program_id(1)
        tl.store(parts + at, tl.sum(wide * wide, 1), mask=here)


@triton.jit
def enter(
    source, ids, hidden, gain, scaled, parts, d,
    GATHER: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """What a normed product reads of one row: scaled = row · gain, and parts, its sums of squares
    over tiles of TILE columns.

    GATHER: the row is source[ids[program]], and is written to hidden; else source[program].
    """
    WIDE: tl.constexpr = triton.next_power_of_2(TILES)
    row = tl.program_id(0).to(tl.int64)
    at = row
    if GATHER:
        at = tl.load(ids + row)
    tile = tl.arange(0, WIDE)
    column = tile[:, None] * TILE + tl.arange(0, TILE)[None, :]
    kept = column < d
    x = tl.load(source + at * d + column, mask=kept, other=0.0)
    if GATHER:
        tl.store(hidden + row * d + column, x, mask=kept)
    wide = x.to(tl.float32)
    g = tl.load(gain + column, mask=kept, other=0.0).to(tl.float32)
    tl.store(scaled + row * d + column, (wide * g).to(scaled.dtype.element_ty), mask=kept)
    tl.store(parts + row * TILES + tile, tl.sum(wide * wide, 1), mask=tile < TILES)


@triton.jit
def one_row(
    x,
    w,
    y,
    gain,
    bias,
    residual,
    n,
    k,
    eps,
    ROWS: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    LOOPS: tl.constexpr,
    NORM: tl.constexpr,
    GATED: tl.constexpr,
    BIAS: tl.constexpr,
    ADD: tl.constexpr,
    PDL: tl.constexpr,
    EVICT: tl.constexpr,
):
    """y [ROWS, n] = f(norm(x [ROWS, k]) wᵀ + bias) (+ residual) for one row or two, BN columns a
    program. LOOPS blocks of BK cover k. PDL: programmatic dependent launch; the first block of
    weights is on its way, in registers, before the kernel before this one has ended.
    """
    column = tl.program_id(0) * BN + tl.arange(0, BN)
    inner = tl.arange(0, BK)
    line = tl.minimum(column, n - 1).to(tl.int64)[:, None] * k
    second = n.to(tl.int64) * k
    if PDL:
        gdc_launch_dependents()
    at_w = w + line + inner[None, :]
    b = tl.load(at_w, mask=(inner < k)[None, :], other=0.0, eviction_policy=EVICT)
    if GATED:
        c = tl.load(at_w + second, mask=(inner < k)[None, :], other=0.0, eviction_policy=EVICT)
    if PDL:
        gdc_wait()
    total = tl.zeros((BN,), tl.float32)
    total1 = tl.zeros((BN,), tl.float32)
    up = tl.zeros((BN,), tl.float32)
    up1 = tl.zeros((BN,), tl.float32)
    squares = 0.0
    squares1 = 0.0
    for loop in tl.static_range(LOOPS):
        at = loop * BK + inner
        inside = at < k
        if loop > 0:
            at_w = w + line + at[None, :]
            b = tl.load(at_w, mask=inside[None, :], other=0.0, eviction_policy=EVICT)
            if GATED:
                at_w += second
                c = tl.load(at_w, mask=inside[None, :], other=0.0, eviction_policy=EVICT)
        a = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        if ROWS == 2:
            a1 = tl.load(x + k + at, mask=inside, other=0.0).to(tl.float32)
        if NORM:
            g = tl.load(gain + at, mask=inside, other=0.0).to(tl.float32)
            squares += tl.sum(a * a, 0)
            a *= g
            if ROWS == 2:
                squares1 += tl.sum(a1 * a1, 0)
                a1 *= g
        wide = b.to(tl.float32)
        total += tl.sum(wide * a[None, :], 1)
        if ROWS == 2:
            total1 += tl.sum(wide * a1[None, :], 1)
        if GATED:
            wide = c.to(tl.float32)
            up += tl.sum(wide * a[None, :], 1)
            if ROWS == 2:
                up1 += tl.sum(wide * a1[None, :], 1)
    _finish(total, up, squares, y, bias, residual, column, 0, n, k, eps, NORM, GATED, BIAS, ADD)
    if ROWS == 2:
        _finish(
            total1, up1, squares1, y, bias, residual, column, n, n, k, eps, NORM, GATED, BIAS, ADD
        )


@triton.jit
def _finish(
    total, up, squares, y, bias, residual, column, offset, n, k, eps,
    NORM: tl.constexpr, GATED: tl.constexpr, BIAS: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """What stands after the sums of one row of `one_row`, and the store at y + offset."""
    in_n = column < n
    if NORM:
        scale = tl.rsqrt(squares / k + eps)
        total *= scale
        up *= scale
    if BIAS:
        total += tl.load(bias + column, mask=in_n, other=0.0).to(tl.float32)
        if GATED:
            up += tl.load(bias + n + column, mask=in_n, other=0.0).to(tl.float32)
    if GATED:
        total = total / (1.0 + tl.exp(-total)) * up
    if ADD:
        total += tl.load(residual + offset + column, mask=in_n, other=0.0).to(tl.float32)
    tl.store(y + offset + column, total.to(y.dtype.element_ty), mask=in_n)
