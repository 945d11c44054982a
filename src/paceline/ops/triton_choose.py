"""Drawing and accepting, fused over the vocabulary, as Triton kernels for the rule `match`.

`scan` reads the logits once: each program makes one block's noise in registers and keeps its best
token. `judge` and `propose` find the best of the blocks, a handful of numbers a row; `judge` also
accepts. Nothing of the size of the logits is stored. The reference, and the meaning of every
step, is `speculation.choose`; `ops.choose` says when these kernels may stand for it.

The same bits from one pass. The reference draws argmax((x − m) / T + g) with m the row's maximum,
which a block does not know. It ranks its tokens with its own maximum instead, and `_best` computes
the reference's number for every block's winner. In float32 the two rankings of tokens that can
win at all (x − m ≥ −26.2 T, since g lies in [−3.2, 22.9]) differ by less than 304 · 2^-24; a block
whose best two are nearer than _TIE = 512 · 2^-24 says so, and is then ranked again with m: about
one draw in thirty thousand.

Arguments that several kernels share: logits [B, width, V] float32 with strides logits_b, logits_w;
the token of row [b, w], row number b · width + w, is drawn at position
place[b, w] + offset + w · ahead. BIAS, STOPS: entries a row in those lists, 0 where the stage is
off. PDL: programmatic dependent launch. NATIVE: not in the interpreter.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from paceline.ops.triton_noise import gumbel, key, log

_TIE = tl.constexpr(2.0**-15)
_INF = tl.constexpr(float("inf"))

# A block's winner is one int32: the token, and above it two flags.
_NEAR = tl.constexpr(1 << 29)
_BAD = tl.constexpr(1 << 30)
_TOKEN = tl.constexpr((1 << 29) - 1)

# What the logits still have to go through: nothing (no row draws), noise alone (they are scores
# already), or temperature and noise.
GREEDY, SCORES, HEATED = (tl.constexpr(mode) for mode in range(3))


@triton.jit
def _listed(ids, values, start, BLOCK: tl.constexpr, SIZE: tl.constexpr):
    """How many entries of a list must be read to meet all that concern the block: mostly none.

    values: None, or what the entries add; 0 is padding.
    """
    entry = tl.arange(0, triton.next_power_of_2(SIZE))
    token = tl.load(ids + entry, mask=entry < SIZE, other=-1)
    here = (token >= start) & (token < start + BLOCK)
    if values is not None:
        here = here & (tl.load(values + entry, mask=entry < SIZE, other=0.0) != 0.0)
    return tl.max(tl.where(here, entry + 1, 0), axis=0)


@triton.jit
def _adjusted(
    own, vocab, b, start, drawn_at, lists,
    BLOCK: tl.constexpr, BIAS: tl.constexpr, STOPS: tl.constexpr,
):  # fmt: skip
    """Logits of tokens start .. start + BLOCK − 1 after bias and minimum length, float32.

    own: the row's logits; lists: (bias_ids, bias_values, stop_ids, min_position). Past the
    vocabulary −inf.
    """
    bias_ids, bias_values, stop_ids, min_position = lists
    token = start + tl.arange(0, BLOCK)
    x = tl.load(own + token, mask=token < vocab, other=-_INF)
    if BIAS > 0:
        for i in range(_listed(bias_ids + b * BIAS, bias_values + b * BIAS, start, BLOCK, BIAS)):
            value = tl.load(bias_values + b * BIAS + i).to(tl.float32)
            x += tl.where(token == tl.load(bias_ids + b * BIAS + i), value, 0.0)
    if STOPS > 0:
        if drawn_at < tl.load(min_position + b):
            for i in range(_listed(stop_ids + b * STOPS, None, start, BLOCK, STOPS)):
                x += tl.where(token == tl.load(stop_ids + b * STOPS + i), -_INF, 0.0)
    return x


@triton.jit
def _scaled(x, top, heat):
    """(x − top) / T as the reference rounds it; −inf where nothing is left."""
    return tl.div_rn(x - tl.where(top == -_INF, 0.0, top), heat)


@triton.jit
def _row(logits, place, b, w, offset, strides):
    """Where the logits of row [b, w] begin, and the position of the token drawn from them.

    strides: (logits_b, logits_w, place_b, place_w, ahead).
    """
    logits_b, logits_w, place_b, place_w, ahead = strides
    own = logits + b.to(tl.int64) * logits_b + w * logits_w
    return own, tl.load(place + b * place_b + w * place_w) + offset + w * ahead


@triton.jit(do_not_specialize=["offset"])
def maxima(
    logits, tops, place, bias_ids, bias_values, stop_ids, min_position,
    width, vocab, logits_b, logits_w, place_b, place_w, offset, ahead,
    BLOCK: tl.constexpr, BIAS: tl.constexpr, STOPS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """tops [R, blocks] float32: each block's greatest adjusted logit. Grid (blocks, R)."""
    block, row = tl.program_id(0), tl.program_id(1)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    b, w = row // width, row % width
    strides = (logits_b, logits_w, place_b, place_w, ahead)
    own, drawn_at = _row(logits, place, b, w, offset, strides)
    lists = (bias_ids, bias_values, stop_ids, min_position)
    x = _adjusted(own, vocab, b, block * BLOCK, drawn_at, lists, BLOCK, BIAS, STOPS)
    tl.store(tops + row * tl.num_programs(0) + block, tl.max(x, axis=0))


@triton.jit(do_not_specialize=["offset"])
def scan(
    logits, codes, numbers, tops, temperature, min_p, seeds, place, bias_ids, bias_values,
    stop_ids, min_position,
    width, vocab, logits_b, logits_w, place_b, place_w, offset, ahead,
    MODE: tl.constexpr, MIN_P: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
    BIAS: tl.constexpr, STOPS: tl.constexpr, NATIVE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One block of one row: its winner. Grid (blocks, R).

    MIN_P: `tops` holds every block's maximum, so that the row's own is known. Writes codes
    [R, blocks] int32 and numbers [R, 3, blocks] float32: the maximum, and the winner's logit and
    noise (or its whole score, where MODE scales nothing).
    """
    block, row = tl.program_id(0), tl.program_id(1)
    blocks = tl.num_programs(0)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    b, w = row // width, row % width
    strides = (logits_b, logits_w, place_b, place_w, ahead)
    own, drawn_at = _row(logits, place, b, w, offset, strides)
    lists = (bias_ids, bias_values, stop_ids, min_position)
    x = _adjusted(own, vocab, b, block * BLOCK, drawn_at, lists, BLOCK, BIAS, STOPS)
    bad = tl.max(((x != x) | (x == _INF)).to(tl.int32), axis=0)
    top = tl.max(x, axis=0)
    if MIN_P:
        column = tl.arange(0, BLOCKS)
        every = tl.load(tops + row * blocks + column, mask=column < blocks, other=-_INF)
        top = tl.max(every, axis=0)
    score, g, heat = x, tl.zeros_like(x), 0.0
    if MODE != GREEDY:
        heat = tl.load(temperature + b).to(tl.float32)
        if heat > 0:
            token = block * BLOCK + tl.arange(0, BLOCK)
            g = gumbel(key(tl.load(seeds + b), drawn_at), token, NATIVE)
            if MODE == HEATED:
                score = _scaled(x, top, heat)
            if MIN_P:
                floor = log(tl.load(min_p + b).to(tl.float32), NATIVE)
                score = tl.where(score < floor, -_INF, score)
            score += g
    score = tl.where(score != score, _INF, score)
    best, at = tl.max(score, axis=0, return_indices=True)
    code = block * BLOCK + at
    numbers += row * 3 * blocks + block
    tl.store(numbers, top)
    if MODE == HEATED:
        if MIN_P:
            x = tl.where(score == -_INF, -_INF, x)
        else:
            rivals = tl.sum((score >= best - _TIE).to(tl.int32), axis=0)
            code += tl.where((heat > 0) & (rivals > 1) & (best > -_INF), _NEAR, 0)
        won = tl.arange(0, BLOCK) == at
        tl.store(numbers + blocks, tl.max(tl.where(won, x, -_INF), axis=0))
        tl.store(numbers + 2 * blocks, tl.sum(tl.where(won, g, 0.0), axis=0))
    else:
        tl.store(numbers + blocks, best)
    tl.store(codes + row * blocks + block, code + tl.where(bad > 0, _BAD, 0))


@triton.jit
def _best(codes, numbers, rows, live, heat, blocks, MODE: tl.constexpr, BLOCKS: tl.constexpr):
    """Of each of `rows` [N]: token, whether it is broken, whether its blocks must be ranked again,
    and the greatest logit."""
    column = tl.arange(0, BLOCKS)
    mask = live[:, None] & (column < blocks)[None, :]
    code = tl.load(codes + rows[:, None] * blocks + column[None, :], mask=mask, other=_TOKEN)
    numbers += rows[:, None] * 3 * blocks + column[None, :]
    top = tl.max(tl.load(numbers, mask=mask, other=-_INF), axis=1)
    score = tl.load(numbers + blocks, mask=mask, other=-_INF)
    if MODE == HEATED:
        if heat > 0:
            g = tl.load(numbers + 2 * blocks, mask=mask, other=0.0)
            score = _scaled(score, top[:, None], heat) + g
    score = tl.where(score != score, _INF, score)
    best = tl.max(score, axis=1)
    token = tl.min(tl.where(score == best[:, None], code & _TOKEN, _TOKEN), axis=1)
    near = tl.zeros_like(token)
    if MODE == HEATED:
        rival = mask & ((code & _NEAR) != 0) & (score >= best[:, None] - _TIE)
        near = tl.max(rival.to(tl.int32), axis=1)
    bad = tl.max((mask & ((code & _BAD) != 0)).to(tl.int32), axis=1)
    return token, (bad > 0) | (top == -_INF), near, top


@triton.jit
def _ranked_again(
    own, vocab, b, drawn_at, lists, codes, numbers, blocks, top, heat, row_key,
    BLOCK: tl.constexpr, BIAS: tl.constexpr, STOPS: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    """A row's token, blocks with near winners ranked by the reference's own numbers."""
    best, token = -_INF, 0
    for block in range(blocks):
        code = tl.load(codes + block)
        score = _scaled(tl.load(numbers + blocks + block), top, heat)
        score += tl.load(numbers + 2 * blocks + block)
        chosen = code & _TOKEN
        if (code & _NEAR) != 0:
            start = block * BLOCK
            x = _adjusted(own, vocab, b, start, drawn_at, lists, BLOCK, BIAS, STOPS)
            g = gumbel(row_key, start + tl.arange(0, BLOCK), NATIVE)
            score, at = tl.max(_scaled(x, top, heat) + g, axis=0, return_indices=True)
            chosen = start + at
        token = tl.where(score > best, chosen, token)
        best = tl.maximum(score, best)
    return token


@triton.jit
def _drawn(
    logits, codes, numbers, temperature, seeds, place, lists, b, first, count, width, blocks,
    vocab, offset, strides,
    MODE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
    BIAS: tl.constexpr, STOPS: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    """Tokens of the rows [b, first .. first + count − 1], and which are broken: [ROWS] each."""
    node = tl.arange(0, ROWS)
    rows = b * width + first + node
    heat = 0.0
    if MODE == HEATED:
        heat = tl.load(temperature + b).to(tl.float32)
    token, broken, near, top = _best(
        codes, numbers, rows, node < count, heat, blocks, MODE, BLOCKS
    )  # fmt: skip
    if MODE == HEATED:
        if tl.max(near, axis=0) > 0:
            for i in range(count):
                if tl.max(tl.where(node == i, near, 0), axis=0) > 0:
                    row = b * width + first + i
                    own, drawn_at = _row(logits, place, b, first + i, offset, strides)
                    chosen = _ranked_again(
                        own, vocab, b, drawn_at, lists, codes + row * blocks,
                        numbers + row * 3 * blocks, blocks,
                        tl.max(tl.where(node == i, top, -_INF), axis=0), heat,
                        key(tl.load(seeds + b), drawn_at), BLOCK, BIAS, STOPS, NATIVE,
                    )  # fmt: skip
                    token = tl.where(node == i, chosen, token)
    return token, broken


@triton.jit(do_not_specialize=["offset"])
def judge(
    logits, codes, numbers, temperature, seeds, place, bias_ids, bias_values, stop_ids,
    min_position, draft, draft_count, tokens, accepted, evaluated, broken,
    width, blocks, vocab, logits_b, logits_w, place_b, place_w, draft_b, count_b, offset, ahead,
    MODE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
    BIAS: tl.constexpr, STOPS: tl.constexpr, NATIVE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """`Match.verify` for the row b of the grid (B,): draft [B, K] with row stride draft_b."""
    b = tl.program_id(0)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    lists = (bias_ids, bias_values, stop_ids, min_position)
    strides = (logits_b, logits_w, place_b, place_w, ahead)
    own, bad = _drawn(
        logits, codes, numbers, temperature, seeds, place, lists, b, 0, width, width, blocks,
        vocab, offset, strides, MODE, ROWS, BLOCK, BLOCKS, BIAS, STOPS, NATIVE,
    )  # fmt: skip
    node = tl.arange(0, ROWS)
    count = tl.load(draft_count + b * count_b)
    drafted = tl.load(draft + b * draft_b + node, mask=node < width - 1, other=-1)
    agree = (own == drafted) & (node < count)
    taken = tl.min(tl.where(agree, ROWS, node), axis=0)  # the first node that does not agree
    at = b * width + node
    own = tl.where(node <= taken, own, 0)
    tl.store(tokens + at, own.to(tl.int64), mask=node < width)
    tl.store(broken + at, bad, mask=node < width)
    tl.store(accepted + b, taken.to(tl.int64))
    tl.store(evaluated + b, tl.minimum(taken + 1, count).to(tl.int64))


@triton.jit(do_not_specialize=["offset"])
def propose(
    logits, codes, numbers, temperature, seeds, place, bias_ids, bias_values, stop_ids,
    min_position, tokens,
    width, blocks, vocab, logits_b, logits_w, place_b, place_w, tokens_b, tokens_w, offset, ahead,
    MODE: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
    BIAS: tl.constexpr, STOPS: tl.constexpr, NATIVE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The draft token of one row [b, w] of the grid (R,), into tokens [B, width]."""
    row = tl.program_id(0)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    b, w = row // width, row % width
    lists = (bias_ids, bias_values, stop_ids, min_position)
    strides = (logits_b, logits_w, place_b, place_w, ahead)
    own, _ = _drawn(
        logits, codes, numbers, temperature, seeds, place, lists, b, w, 1, width, blocks,
        vocab, offset, strides, MODE, 1, BLOCK, BLOCKS, BIAS, STOPS, NATIVE,
    )  # fmt: skip
    tl.store(tokens + b * tokens_b + w * tokens_w + tl.arange(0, 1), own.to(tl.int64))
