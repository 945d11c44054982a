"""Temperature, top-k, top-p and min-p over the whole vocabulary, as Triton kernels.

The reference, and the meaning of every step, is `speculation.truncation`; `ops.choose` launches
these. The last token that is kept is found digit by digit in the bits of its score, as there, with
sixteen buckets a pass, so that a block of tokens is added up in registers. What the blocks find
meets in whole numbers, whose order of adding does not matter.

Arguments that several kernels share: scores [R, V] float32, log-weights with their best at 0,
R = B · width rows in the order [b, w]; sums [PASSES, R, BUCKETS] int64, zeros before the first
pass: the weight in each bucket of what agrees with the digits found so far; states
[PASSES + 1, R, 2] int64: those digits and the weight still missing, before each pass. BY_COUNT: a
token weighs 1 and top_k is sought, else its probability and top_p. A greedy row stays whole.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait, libdevice

from paceline.ops.triton_choose import _adjusted, _row, _scaled
from paceline.ops.triton_noise import log

_INF = tl.constexpr(float("inf"))
_DIGIT = tl.constexpr(4)  # bits a pass
_BUCKETS = tl.constexpr(16)
_SIZE = tl.constexpr(31)  # bits of a score without its sign, which is always set
_FIXED = tl.constexpr(2.0**32)  # probability of the best token

BUCKETS, PASSES = _BUCKETS.value, -(-_SIZE.value // _DIGIT.value)
_PASSES = tl.constexpr(PASSES)


@triton.jit(do_not_specialize=["offset", "width", "vocab", "ahead"])
def heated(
    logits, scores, tops, temperature, place, bias_ids, bias_values, stop_ids, min_position,
    width, vocab, logits_b, logits_w, place_b, place_w, offset, ahead,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr, BIAS: tl.constexpr, STOPS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Scores of one block of one row; tops as `triton_choose.maxima` leaves them. Grid
    (blocks, R). The other arguments are those of that module."""
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
    column = tl.arange(0, BLOCKS)
    top = tl.max(tl.load(tops + row * blocks + column, mask=column < blocks, other=-_INF), axis=0)
    heat = tl.load(temperature + b).to(tl.float32)
    score = _scaled(x, top, tl.where(heat > 0, heat, 1.0))
    token = block * BLOCK + tl.arange(0, BLOCK)
    tl.store(scores + row.to(tl.int64) * vocab + token, score, mask=token < vocab)


@triton.jit
def _wanted(top_k, top_p, temperature, b, vocab, BY_COUNT: tl.constexpr):
    """(Whether row b is cut at all, what is sought: tokens, or a share of the probability.)"""
    draws = tl.load(temperature + b).to(tl.float32) > 0
    if BY_COUNT:
        k = tl.load(top_k + b).to(tl.int64)
        return draws & (k > 0) & (k < vocab), k
    else:
        p = tl.load(top_p + b).to(tl.float64)
        return draws & (p < 1), p


@triton.jit
def _ranks(own, start, vocab, BLOCK: tl.constexpr):
    """Scores of tokens start .. start + BLOCK − 1 of a row, and their bits, which order as the
    tokens are kept; behind the vocabulary −inf, and bits that agree with none."""
    token = start + tl.arange(0, BLOCK)
    score = tl.load(own + token, mask=token < vocab, other=-_INF)
    rank = score.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return score, tl.where(token < vocab, rank, -1)


@triton.jit
def _mass(score, NATIVE: tl.constexpr):
    """The probability of a score in whole numbers, the exponential rounded as torch's is."""
    e = libdevice.exp(score) if NATIVE else tl.exp(score)
    return tl.floor(e.to(tl.float64) * _FIXED).to(tl.int64)


@triton.jit
def _found(sums, states, row, rows, step, sought, BY_COUNT: tl.constexpr):
    """After `step` passes: the digits of the last token kept, what is still missing before it
    among those that agree with them, and the weight of all of these."""
    bucket = tl.arange(0, _BUCKETS)
    here = tl.load(sums + ((step - 1) * rows + row) * _BUCKETS + bucket)
    state = states + ((step - 1) * rows + row) * 2
    edge, left = tl.load(state), tl.load(state + 1)
    if step == 1:
        edge = tl.zeros_like(edge)
        if BY_COUNT:
            left = sought
        else:
            share = tl.ceil(tl.sum(here, axis=0).to(tl.float64) * sought)
            left = tl.maximum(share.to(tl.int64), 1)
    at = tl.sum((tl.cumsum(here, axis=0) < left).to(tl.int64), axis=0)
    at = tl.minimum(at, _BUCKETS - 1)
    left -= tl.sum(tl.where(bucket < at, here, 0), axis=0)
    return edge * _BUCKETS + at, left, tl.sum(tl.where(bucket == at, here, 0), axis=0)


@triton.jit(do_not_specialize=["width", "vocab", "step"])
def weigh(
    scores, sums, states, temperature, top_k, top_p, width, vocab, step,
    BY_COUNT: tl.constexpr, BLOCK: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    """Pass `step`, from 0: add up one block of one row by its next digit. Grid (blocks, R)."""
    block, row, rows = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    cut, sought = _wanted(top_k, top_p, temperature, row // width, vocab, BY_COUNT)
    if cut:
        own = scores + row.to(tl.int64) * vocab
        score, rank = _ranks(own, block * BLOCK, vocab, BLOCK)
        shift = (_PASSES - 1 - step) * _DIGIT
        agrees = rank >= 0
        if step > 0:
            edge, left, _ = _found(sums, states, row, rows, step, sought, BY_COUNT)
            agrees = (rank >> shift >> _DIGIT) == edge.to(tl.int32)
            if block == 0:
                tl.store(states + (step * rows + row) * 2, edge)
                tl.store(states + (step * rows + row) * 2 + 1, left)
        if tl.max(agrees.to(tl.int32), axis=0) > 0:  # in most blocks, soon, none does
            weight = agrees.to(tl.int64)
            if not BY_COUNT:
                weight *= _mass(score, NATIVE)
            digit = (rank >> shift) & (_BUCKETS - 1)
            bucket = tl.arange(0, _BUCKETS)
            each = tl.where(digit[None, :] == bucket[:, None], weight[None, :], 0)
            total = tl.sum(each, axis=1)
            at = sums + (step * rows + row) * _BUCKETS + bucket
            tl.atomic_add(at, total, mask=total > 0, sem="relaxed")


@triton.jit(do_not_specialize=["width", "vocab"])
def cut(
    scores, sums, states, temperature, top_k, top_p, min_p, width, vocab,
    BY_COUNT: tl.constexpr, MIN_P: tl.constexpr, BLOCK: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    """Set to −inf, in one block of one row, what the passes leave out; MIN_P: and what is less
    probable than min_p times the best. Grid (blocks, R). NaN stays, for whoever looks for it."""
    block, row, rows = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    b = row // width
    truncated, sought = _wanted(top_k, top_p, temperature, b, vocab, BY_COUNT)
    floor = -_INF
    if MIN_P:
        floor = log(tl.load(min_p + b).to(tl.float32), NATIVE)
    own = scores + row.to(tl.int64) * vocab
    score, rank = _ranks(own, block * BLOCK, vocab, BLOCK)
    gone = score < floor
    if truncated:
        last, left, tied = _found(sums, states, row, rows, _PASSES, sought, BY_COUNT)
        edge = last.to(tl.int32)
        # Among equals of the last token, those that are still missing, by id.
        if BY_COUNT:
            one = tl.full((), 1, tl.int64)
        else:
            one = _mass((edge | (-(2**31))).to(tl.float32, bitcast=True), NATIVE)
        equal = rank == edge
        gone |= rank > edge
        if (one > 0) & (left + one <= tied):
            before = tl.zeros((), tl.int64)
            for i in range(block):
                _, other = _ranks(own, i * BLOCK, vocab, BLOCK)
                before += tl.sum((other == edge).to(tl.int64), axis=0)
            order = before + tl.cumsum(equal.to(tl.int64), axis=0) - 1
            gone |= equal & (order * one >= left)
    token = block * BLOCK + tl.arange(0, BLOCK)
    removed = tl.full((BLOCK,), float("-inf"), tl.float32)
    tl.store(own + token, removed, mask=gone & (score == score) & (token < vocab))
