"""Attention of a window on a CPU, compiled by numba: see `host_kernels` for the conventions.

The cache is float32, keys in tiles of `TILE` positions turned so that a vector holds one number
of several keys. Tiles stay in the first-level cache while all queries of a key head meet them.
"""

from __future__ import annotations

import numpy as np
from numba import carray, cfunc, njit, types

from paceline.ops.host_kernels import (
    FAST,
    INT,
    REAL,
    as_f32,
    as_i64,
    exp_row,
    load_row,
    normalize_row,
    store_row,
)

TILE = 64


@njit(fastmath=FAST, cache=True, inline="always")
def _turn(head, turn, size):
    """Multiply the pairs of head by the complex numbers of turn, both interleaved."""
    for i in range(0, size, 2):
        a, b = head[i], head[i + 1]
        head[i] = a * turn[i] - b * turn[i + 1]
        head[i + 1] = a * turn[i + 1] + b * turn[i]


@njit(fastmath=FAST, cache=True, inline="always")
def _meet(queries, tile, scores, first, count, size):
    """scores[:, first : first + TILE] of all queries against one tile of keys [size, TILE].

    Two queries at a time share the loads of the keys; count is even.
    """
    for i in range(0, count, 2):
        q, p = queries[i], queries[i + 1]
        row, other = scores[i, first : first + TILE], scores[i + 1, first : first + TILE]
        for j in range(TILE):
            row[j] = np.float32(0.0)
            other[j] = np.float32(0.0)
        d = 0
        while d + 8 <= size:
            q0, q1, q2, q3 = q[d], q[d + 1], q[d + 2], q[d + 3]
            q4, q5, q6, q7 = q[d + 4], q[d + 5], q[d + 6], q[d + 7]
            p0, p1, p2, p3 = p[d], p[d + 1], p[d + 2], p[d + 3]
            p4, p5, p6, p7 = p[d + 4], p[d + 5], p[d + 6], p[d + 7]
            k = tile[d : d + 8]
            for j in range(TILE):
                k0, k1, k2, k3 = k[0, j], k[1, j], k[2, j], k[3, j]
                k4, k5, k6, k7 = k[4, j], k[5, j], k[6, j], k[7, j]
                row[j] += (q0 * k0 + q1 * k1 + q2 * k2 + q3 * k3) + (
                    q4 * k4 + q5 * k5 + q6 * k6 + q7 * k7
                )
                other[j] += (p0 * k0 + p1 * k1 + p2 * k2 + p3 * k3) + (
                    p4 * k4 + p5 * k5 + p6 * k6 + p7 * k7
                )
            d += 8
        while d < size:
            for j in range(TILE):
                row[j] += q[d] * tile[d, j]
                other[j] += p[d] * tile[d, j]
            d += 1


@njit(fastmath=FAST, cache=True, inline="always")
def _mix(scores, values, out, first, count, low, size):
    """out[i] += Σ scores[i, j] · values[j] over a tile's keys that query i sees, in order.

    Groups of eight begin at multiples of eight, so that the order does not depend on the window.
    """
    for i in range(count):
        o, s = out[i], scores[i]
        j, last = max(first, low[i, 0]), min(first + TILE, low[i, 1])
        while j < last:
            if j % 8 == 0 and j + 8 <= last:
                v = values[j : j + 8]
                for d in range(size):
                    o[d] += (
                        s[j] * v[0, d] + s[j + 1] * v[1, d] + s[j + 2] * v[2, d]
                        + s[j + 3] * v[3, d]
                    ) + (
                        s[j + 4] * v[4, d] + s[j + 5] * v[5, d] + s[j + 6] * v[6, d]
                        + s[j + 7] * v[7, d]
                    )  # fmt: skip
                j += 8
            else:
                v1 = values[j]
                for d in range(size):
                    o[d] += s[j] * v1[d]
                j += 1


@njit(fastmath=FAST, cache=True, inline="always")
def _weigh(row, whole, first, last):
    """Softmax of row[first:last] in place. NaN anywhere makes all of it NaN."""
    top, check = row[first], np.float32(0.0)
    for j in range(first, last):
        top = max(top, row[j])
        check += row[j] * np.float32(0.0)
    n = last - first
    part = row[first:last]
    for j in range(n):
        part[j] -= top
    exp_row(part, whole, n)
    total = check
    for j in range(n):
        total += part[j]
    share = np.float32(1.0) / total
    for j in range(n):
        part[j] *= share


@njit(fastmath=FAST, cache=True, inline="always")
def _head(queries, keys, values, scores, whole, mixed, low, count, longest, size):
    """Attention of count queries over one key head. See `attend`."""
    for first in range(0, longest, TILE):
        _meet(queries, keys[first // TILE], scores, first, count + count % 2, size)
    for i in range(count):
        _weigh(scores[i], whole, low[i, 0], low[i, 1])
        for d in range(size):
            mixed[i, d] = np.float32(0.0)
    for first in range(0, longest, TILE):
        _mix(scores, values, mixed, first, count, low, size)


@cfunc(types.void(*[INT] * 8, REAL, *[INT] * 6), cache=True, fastmath=FAST)
def enter(
    qkv, queries, turns, keys, values, address, q_gain, k_gain, eps,
    rows, heads, kv_heads, size, capacity, half,
):  # fmt: skip
    """What comes before attention: normalizes and turns the heads, scales the queries, and writes
    keys and values at `address`.

    qkv [rows, (heads + 2·kv_heads)·size]; queries [rows, heads, size] float32, written; turns
    [rows, size/2] complex64; keys [kv_heads, capacity / 64, size, 64] (tiles of 64 positions,
    turned for vector loads), values [kv_heads, capacity, size] float32; address [rows] int64;
    q_gain, k_gain [size] float32 or 0 for no head norm. capacity is a multiple of 64.
    """
    item = 2 if half else 4
    total = heads + 2 * kv_heads
    places, turned = carray(as_i64(address), (rows,)), carray(as_f32(turns), (rows, size))
    asked = carray(as_f32(queries), (rows, heads, size))
    cache_k = carray(as_f32(keys), (kv_heads, capacity // TILE, size, TILE))
    cache_v = carray(as_f32(values), (kv_heads, capacity, size))
    line = np.empty(total * size, np.float32)
    split = line.reshape(total, size)
    scale = np.float32(1.0) / np.sqrt(np.float32(size))
    for r in range(rows):
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
            for d in range(size):
                cache_k[h, places[r] // TILE, d, places[r] % TILE] = split[heads + h, d]
                cache_v[h, places[r], d] = split[heads + kv_heads + h, d]


@cfunc(types.void(*[INT] * 15), cache=True, fastmath=FAST)
def attend(
    queries, out, keys, values, position, base, rows, width, heads, kv_heads, size, capacity,
    window, half, block,
):  # fmt: skip
    """Attention of rows over their texts: each sees positions up to its own.

    queries [rows, heads, size] float32, scaled; out [rows, heads·size]; keys and values as `enter`
    writes them; position [rows] int64; base [rows / width] int64, the address of position 0 of
    each text, a multiple of 64; window: keys a query sees, 0 for all; block: rows of a wide window
    that are served together.
    """
    item, groups = 2 if half else 4, heads // kv_heads
    depths, bases = carray(as_i64(position), (rows,)), carray(as_i64(base), (rows // width,))
    cache_k = carray(as_f32(keys), (kv_heads, capacity // TILE, size, TILE))
    cache_v = carray(as_f32(values), (kv_heads, capacity, size))
    asked = carray(as_f32(queries), (rows, heads, size))
    block = min(width, block)
    count, longest = block * groups, 0
    for r in range(rows):
        longest = max(longest, depths[r] + 1)
    # An odd count gets one query more, whose scores nobody reads.
    even = count + count % 2
    low = np.zeros((even, 2), np.int64)
    scores = np.empty((even, (longest // TILE + 1) * TILE), np.float32)
    whole = np.empty(longest, np.int32)
    met, mixed = np.zeros((even, size), np.float32), np.empty((even, size), np.float32)
    for b in range(rows // width):
        for start in range(0, width, block):
            here = min(block, width - start) * groups
            for h in range(kv_heads):
                farthest = 0
                for i in range(here):
                    r, head = b * width + start + i // groups, h * groups + i % groups
                    low[i, 1] = depths[r] + 1
                    low[i, 0] = max(0, depths[r] + 1 - window) if window else 0
                    farthest = max(farthest, low[i, 1])
                    for d in range(size):
                        met[i, d] = asked[r, head, d]
                k, v = cache_k[h, bases[b] // TILE :], cache_v[h, bases[b] :]
                if size == 64:  # a literal size lets the compiler unroll
                    _head(met, k, v, scores, whole, mixed, low, here, farthest, 64)
                else:
                    _head(met, k, v, scores, whole, mixed, low, here, farthest, size)
                for i in range(here):
                    r, head = b * width + start + i // groups, h * groups + i % groups
                    store_row(mixed[i], out + item * (r * heads + head) * size, half, size)
