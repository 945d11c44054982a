"""Attention of a window on a CPU, compiled by numba: see `host_kernels` for the conventions.

The cache is float32, keys in tiles of `TILE` positions turned so that a vector holds one number
of several keys; a tile is a page, and a text's tiles lie where its page table says. Tiles stay in
the first-level cache while all queries of a key head meet them.
"""

from __future__ import annotations

import numpy as np
from numba import carray, cfunc, njit, types

from paceline.ops.host_kernels import (
    COMPILED,
    INT,
    REAL,
    as_f32,
    as_f64,
    as_i64,
    exp_row,
    load_row,
    normalize_row,
    store_row,
)
from paceline.ops.host_team import share, take
from paceline.ops.host_tiles import LANES, ROWS, VECTORS, narrow_product, wide_product

TILE = 64


@njit(**COMPILED, inline="always")
def _turn(head, turn, size):
    """Multiply the pairs of head by the complex numbers of turn, both interleaved."""
    for i in range(0, size, 2):
        a, b = head[i], head[i + 1]
        head[i] = a * turn[i] - b * turn[i + 1]
        head[i + 1] = a * turn[i + 1] + b * turn[i]


@njit(**COMPILED, inline="always")
def _times(a, a_stride, b, b_stride, c, c_stride, rows, depth, columns, more):
    """c [rows, columns] = (c if more else 0) + a [rows, depth] · b [depth, columns], addresses of
    float32 numbers; rows is a multiple of `ROWS`, columns of `LANES`."""
    for row in range(0, rows, ROWS):
        left, to, column = a + 4 * row * a_stride, c + 4 * row * c_stride, 0
        while column + LANES * VECTORS <= columns:
            wide_product(
                left, a_stride, b + 4 * column, b_stride, to + 4 * column, c_stride, depth, more
            )  # fmt: skip
            column += LANES * VECTORS
        while column < columns:
            narrow_product(
                left, a_stride, b + 4 * column, b_stride, to + 4 * column, c_stride, depth, more
            )  # fmt: skip
            column += LANES


@njit(**COMPILED, inline="always")
def _weigh(row, whole, top, first, last, end):
    """Softmax of row[first:last] but for its divisor, which is returned, in place; 0 in the rest
    of row[:end]. NaN anywhere makes the divisor NaN. top: work space [LANES]."""
    check, n = np.float32(0.0), last - first
    part = row[first:last]
    # The largest lane by lane: the compiler does not reorder a maximum that may meet NaN.
    for j in range(LANES):
        top[j] = part[0]
    for j in range(0, n - n % LANES, LANES):
        for i in range(LANES):
            top[i] = max(top[i], part[j + i])
    for j in range(n - n % LANES, n):
        top[0] = max(top[0], part[j])
    most = top[0]
    for i in range(LANES):
        most = max(most, top[i])
    for j in range(n):
        check += part[j] * np.float32(0.0)
        part[j] -= most
    exp_row(part, whole, n)
    total = check
    for j in range(n):
        total += part[j]
    for j in range(first):
        row[j] = np.float32(0.0)
    for j in range(last, end):
        row[j] = np.float32(0.0)
    return total


@njit(**COMPILED, inline="always")
def _head(queries, keys, values, pages, scores, whole, top, mixed, low, rows, count, size):
    """Attention of count queries, padded to `rows`, over one key head: mixed [rows, size].

    queries [rows, size]; keys [all pages, size, TILE]; values [all pages, TILE, size]; pages: those
    of the text, in the order of its positions; scores [rows, …];
    low [count, 2]: first key a query sees and the one after its last. What a query does not see
    has weight 0, and values are finite: adding such a tile changes nothing.
    """
    begin, end = low[0, 0], 0
    for i in range(count):
        begin, end = min(begin, low[i, 0]), max(end, low[i, 1])
    begin, end = begin // TILE * TILE, (end + TILE - 1) // TILE * TILE
    stride, into = scores.shape[1], mixed.ctypes.data
    for first in range(begin, end, TILE):
        _times(
            queries.ctypes.data, size, keys[pages[first // TILE]].ctypes.data, TILE,
            scores[:, first:].ctypes.data, stride, rows, size, TILE, 0,
        )  # fmt: skip
    whole_columns = size - size % LANES
    divisors = top[LANES:]
    for i in range(count):
        divisors[i] = _weigh(scores[i], whole, top, low[i, 0], low[i, 1], end)
    for first in range(begin, end, TILE):
        _times(
            scores[:, first:].ctypes.data, stride, values[pages[first // TILE]].ctypes.data, size,
            into, size, rows, TILE, whole_columns, first - begin,
        )  # fmt: skip
    for i in range(count):
        for d in range(whole_columns, size):
            mixed[i, d] = np.float32(0.0)
        if whole_columns < size:
            for j in range(low[i, 0], low[i, 1]):
                value = values[pages[j // TILE], j % TILE]
                for d in range(whole_columns, size):
                    mixed[i, d] += scores[i, j] * value[d]
        scale = np.float32(1.0) / divisors[i]
        for d in range(size):
            mixed[i, d] *= scale


# Rows that a thread takes at a time, and how many make a second thread worth waking.
_ROWS, _SHARED_ROWS = 16, 64


@cfunc(types.void(INT), **COMPILED)
def enter_share(data):
    """One thread's part of `enter`."""
    a = carray(as_i64(data), (16,))
    qkv, q_gain, k_gain, eps = a[1], a[7], a[8], carray(as_f64(data), (16,))[9]
    rows, heads, kv_heads, size, capacity, half = a[10], a[11], a[12], a[13], a[14], a[15]
    item = 2 if half else 4
    total = heads + 2 * kv_heads
    places, turned = carray(as_i64(a[6]), (rows,)), carray(as_f32(a[3]), (rows, size))
    asked = carray(as_f32(a[2]), (rows, heads, size))
    cache_k = carray(as_f32(a[4]), (kv_heads, capacity // TILE, size, TILE))
    cache_v = carray(as_f32(a[5]), (kv_heads, capacity, size))
    line = np.empty(total * size, np.float32)
    split = line.reshape(total, size)
    scale = np.float32(1.0) / np.sqrt(np.float32(size))
    while True:
        first = take(data) * _ROWS
        if first >= rows:
            break
        for r in range(first, min(first + _ROWS, rows)):
            load_row(qkv + item * r * total * size, half, line, total * size)
            for h in range(heads + kv_heads):
                if q_gain and h < heads:
                    normalize_row(split[h], carray(as_f32(q_gain), (size,)), size, eps)
                if k_gain and h >= heads:
                    normalize_row(split[h], carray(as_f32(k_gain), (size,)), size, eps)
                _turn(split[h], turned[r], size)
            for h in range(heads):
                for d in range(size):
                    asked[r, h, d] = split[h, d] * scale
            for h in range(kv_heads):
                key, value = split[heads + h], split[heads + kv_heads + h]
                told = np.float32(0.0)
                for d in range(size):
                    told += value[d] * np.float32(0.0)
                if told != 0:
                    for d in range(size):
                        key[d], value[d] = told, np.float32(0.0)
                for d in range(size):
                    cache_k[h, places[r] // TILE, d, places[r] % TILE] = key[d]
                    cache_v[h, places[r], d] = value[d]


@cfunc(types.void(*[INT] * 11, REAL, *[INT] * 6), **COMPILED)
def enter(
    team, work, threads, qkv, queries, turns, keys, values, address, q_gain, k_gain, eps,
    rows, heads, kv_heads, size, capacity, half,
):  # fmt: skip
    """What comes before attention: normalizes and turns the heads, scales the queries, and writes
    keys and values at `address`.

    qkv [rows, (heads + 2·kv_heads)·size]; queries [rows, heads, size] float32, written; turns
    [rows, size/2] complex64; keys [kv_heads, capacity / 64, size, 64] (tiles of 64 positions,
    turned for vector loads), values [kv_heads, capacity, size] float32; address [rows] int64;
    q_gain, k_gain [size] float32 or 0 for no head norm. capacity is a multiple of 64. team,
    threads: see `host_team.share`; work: `enter_share`.

    What is not finite is told by the key alone: the values of positions that a query does not see
    are multiplied by 0, and a rejected draft token must not reach the rows before it that way.
    """
    a = np.empty(16, np.int64)
    a[0], a[1], a[2], a[3], a[4], a[5] = 0, qkv, queries, turns, keys, values
    a[6], a[7], a[8], a[10], a[11] = address, q_gain, k_gain, rows, heads
    a[12], a[13], a[14], a[15] = kv_heads, size, capacity, half
    a.view(np.float64)[9] = eps
    share(team, work, a.ctypes.data, threads if rows >= _SHARED_ROWS else 1)
    a[0] = 0  # alive until here: an address alone does not keep it


# Scores from which on a second thread is worth waking: it reads its share of the cache, too.
_SHARED = 1024
# What `attend` hands to the threads: a counter of tasks, then its own arguments.
_ARGUMENTS = 17


@cfunc(types.void(INT), **COMPILED)
def attend_share(data):
    """One thread's part of `attend`: a task is one key head for one block of a text's rows."""
    a = carray(as_i64(data), (_ARGUMENTS,))
    queries, out, rows, width, heads, kv_heads = a[1], a[2], a[7], a[8], a[9], a[10]
    size, capacity, window, half, block, columns = a[11], a[12], a[13], a[14], a[15], a[16]
    item, groups = 2 if half else 4, heads // kv_heads
    depths, pages = carray(as_i64(a[5]), (rows,)), carray(as_i64(a[6]), (rows // width, columns))
    cache_k = carray(as_f32(a[3]), (kv_heads, capacity // TILE, size, TILE))
    cache_v = carray(as_f32(a[4]), (kv_heads, capacity // TILE, TILE, size))
    asked = carray(as_f32(queries), (rows, heads, size))
    count, longest = block * groups, 0
    for r in range(rows):
        longest = max(longest, depths[r] + 1)
    # The last rows of the products are padding, which nobody reads.
    padded = (count + ROWS - 1) // ROWS * ROWS
    low = np.zeros((count, 2), np.int64)
    scores = np.empty((padded, (longest // TILE + 1) * TILE), np.float32)
    whole, top = np.empty(longest, np.int32), np.empty(LANES + count, np.float32)
    met, mixed = np.zeros((padded, size), np.float32), np.empty((padded, size), np.float32)
    blocks = (width + block - 1) // block
    tasks = rows // width * blocks * kv_heads
    while True:
        task = tasks - 1 - take(data)  # the longest first
        if task < 0:
            break
        h, b = task % kv_heads, task // kv_heads // blocks
        first = task // kv_heads % blocks * block
        here = min(block, width - first) * groups
        for i in range(here):
            r, head = b * width + first + i // groups, h * groups + i % groups
            low[i, 1] = depths[r] + 1
            low[i, 0] = max(0, depths[r] + 1 - window) if window else 0
            for d in range(size):
                met[i, d] = asked[r, head, d]
        even = (here + ROWS - 1) // ROWS * ROWS
        _head(
            met, cache_k[h], cache_v[h], pages[b], scores, whole, top, mixed, low, even, here, size
        )
        for i in range(here):
            r, head = b * width + first + i // groups, h * groups + i % groups
            store_row(mixed[i], out + item * (r * heads + head) * size, half, size)


@cfunc(types.void(*[INT] * 19), **COMPILED)
def attend(
    team, work, threads, queries, out, keys, values, position, pages, columns, rows, width, heads,
    kv_heads, size, capacity, window, half, block,
):  # fmt: skip
    """Attention of rows over their texts: each sees positions up to its own.

    queries [rows, heads, size] float32, scaled; out [rows, heads·size]; keys and values as `enter`
    writes them; position [rows] int64; pages [rows / width, columns] int64, of 64 positions each:
    where each text lies; window: keys a query sees, 0 for all; block: rows of a wide window
    that are served together; team, threads: see `host_team.share`; work: `attend_share`.
    """
    depths, longest = carray(as_i64(position), (rows,)), 0
    for r in range(rows):
        longest = max(longest, depths[r] + 1)
    block = min(width, block)
    tasks = rows // width * ((width + block - 1) // block) * kv_heads
    if tasks == 1 or rows * heads * longest < _SHARED:
        threads = 1
    a = np.empty(_ARGUMENTS, np.int64)
    a[0], a[1], a[2], a[3], a[4], a[5], a[6] = 0, queries, out, keys, values, position, pages
    a[7], a[8], a[9], a[10], a[11], a[12] = rows, width, heads, kv_heads, size, capacity
    a[13], a[14], a[15], a[16] = window, half, block, columns
    share(team, work, a.ctypes.data, threads)
    a[0] = 0  # alive until here: an address alone does not keep it
