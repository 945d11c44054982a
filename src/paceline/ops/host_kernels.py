"""What lies between the matrix products of a layer, compiled for the host's processor by numba.

On a CPU a window of a few rows costs little arithmetic and many calls: torch needs some twenty of
them where these kernels need three. Each has a torch reference with the same result up to
rounding (`norm`, `rotary` with `attention`, `activation`) and is chosen by `host.Host`.

Every row's numbers are added up in an order that depends on its own position alone, so a row
comes out the same in a window of any width. Rows of 16 bits are bfloat16, rounded to nearest
even; arithmetic and cache are float32. Pointers are passed as integers: the caller answers for
shapes and contiguity.
"""

from __future__ import annotations

import numpy as np
from numba import carray, cfunc, njit, types
from numba.extending import intrinsic

_TILE = 64  # keys that stay in the first-level cache while all queries meet them
# No "nnan" or "ninf": what is not finite must reach the logits, where the round looks for it.
_FAST = {"reassoc", "contract", "nsz"}


def _pointer(kind):
    """An intrinsic that takes an address (int64) for a pointer to `kind`."""

    @intrinsic
    def cast(context, address):
        def code(target, builder, signature, arguments):
            return builder.inttoptr(arguments[0], target.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.int64), code

    return cast


_f32, _u16 = _pointer(types.float32), _pointer(types.uint16)
_i64, _i8 = _pointer(types.int64), _pointer(types.int8)


@njit(fastmath=_FAST, cache=True, inline="always")
def _widen(source, target, size):
    """bfloat16 to float32. target is written through its integer view."""
    bits = target.view(np.uint32)
    for i in range(size):
        bits[i] = np.uint32(source[i]) << np.uint32(16)


@njit(fastmath=_FAST, cache=True, inline="always")
def _narrow(source, target, size):
    """float32 to bfloat16, to nearest even; NaN stays NaN."""
    bits = source.view(np.uint32)
    for i in range(size):
        b = bits[i]
        up = b + np.uint32(0x7FFF) + ((b >> np.uint32(16)) & np.uint32(1))
        nan = (b & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
        target[i] = np.uint16(0x7FC0) if nan else np.uint16(up >> np.uint32(16))


@njit(fastmath=_FAST, cache=True, inline="always")
def _exp(x, whole, size):
    """x[:size] = exp(x) for x <= 0, relative error below 3e-7. whole: int32 work space.

    2^t with t split into a whole part, put into the exponent, and a fraction in [-1/2, 1/2], for
    which a polynomial of degree 6 (Taylor of 2^f) is enough.
    """
    for i in range(size):
        t = max(x[i] * np.float32(1.4426950408889634), np.float32(-126.0))
        n = np.floor(t + np.float32(0.5))
        f = (t - n) * np.float32(0.6931471805599453)
        whole[i] = (np.int32(n) + np.int32(127)) << np.int32(23)
        p = np.float32(1.0 / 720.0)
        p = p * f + np.float32(1.0 / 120.0)
        p = p * f + np.float32(1.0 / 24.0)
        p = p * f + np.float32(1.0 / 6.0)
        p = p * f + np.float32(0.5)
        p = p * f + np.float32(1.0)
        x[i] = p * f + np.float32(1.0)
    scale = whole.view(np.float32)
    for i in range(size):
        x[i] *= scale[i]


@njit(fastmath=_FAST, cache=True, inline="always")
def _normalize(x, gain, size, eps):
    """x[:size] /= sqrt(mean(x²) + eps), times gain."""
    total = np.float32(0.0)
    for i in range(size):
        total += x[i] * x[i]
    scale = np.float32(1.0) / np.sqrt(total / np.float32(size) + np.float32(eps))
    for i in range(size):
        x[i] = x[i] * scale * gain[i]


@njit(fastmath=_FAST, cache=True, inline="always")
def _load(address, half, row, size):
    """Read a row of bfloat16 or float32 into row (float32)."""
    if half:
        _widen(carray(_u16(address), (size,)), row, size)
    else:
        source = carray(_f32(address), (size,))
        for i in range(size):
            row[i] = source[i]


@njit(fastmath=_FAST, cache=True, inline="always")
def _store(row, address, half, size):
    """Write row (float32) as bfloat16 or float32."""
    if half:
        _narrow(row, carray(_u16(address), (size,)), size)
    else:
        target = carray(_f32(address), (size,))
        for i in range(size):
            target[i] = row[i]


_I, _D = types.int64, types.float64


@cfunc(types.void(_I, _I, _I, _I, _I, _D, _I), cache=True, fastmath=_FAST)
def rms_norm(x, out, gain, rows, size, eps, half):
    """out = rms_norm(x) for x, out [rows, size]; gain [size] float32. See `norm.RMSNorm`."""
    gains = carray(_f32(gain), (size,))
    row = np.empty(size, np.float32)
    item = 2 if half else 4
    for r in range(rows):
        _load(x + item * r * size, half, row, size)
        _normalize(row, gains, size, eps)
        _store(row, out + item * r * size, half, size)


@cfunc(types.void(_I, _I, _I, _I, _I), cache=True, fastmath=_FAST)
def silu_mul(gate_up, out, rows, size, half):
    """out [rows, size] = silu(gate) · up for gate_up [rows, 2·size]. See `activation`."""
    item = 2 if half else 4
    gate, up = np.empty(size, np.float32), np.empty(size, np.float32)
    small, whole = np.empty(size, np.float32), np.empty(size, np.int32)
    for r in range(rows):
        _load(gate_up + item * 2 * r * size, half, gate, size)
        _load(gate_up + item * (2 * r + 1) * size, half, up, size)
        for i in range(size):
            small[i] = -abs(gate[i])
        _exp(small, whole, size)  # e^-|g|, so that nothing overflows
        for i in range(size):
            above = np.float32(1.0) if gate[i] >= 0 else small[i]
            up[i] *= gate[i] * above / (np.float32(1.0) + small[i])
        _store(up, out + item * r * size, half, size)


@cfunc(types.void(*[_I] * 9), cache=True, fastmath=_FAST)
def int8_product(x, out, weight, scale, bias, residual, rows, size_in, size_out):
    """out [rows, size_out] = x Wᵀ · scale + bias + residual, all float32 but W.

    weight [size_out, size_in] int8; scale [size_out]; bias [size_out] and residual
    [rows, size_out], or 0 for none.
    """
    xs, outs = carray(_f32(x), (rows, size_in)), carray(_f32(out), (rows, size_out))
    weights, scales = carray(_i8(weight), (size_out, size_in)), carray(_f32(scale), (size_out,))
    for o in range(size_out):
        w = weights[o]
        for r in range(rows):
            row, total = xs[r], np.float32(0.0)
            for i in range(size_in):
                total += row[i] * np.float32(w[i])
            outs[r, o] = total * scales[o]
    if bias:
        biases = carray(_f32(bias), (size_out,))
        for r in range(rows):
            for o in range(size_out):
                outs[r, o] += biases[o]
    if residual:
        added = carray(_f32(residual), (rows, size_out))
        for r in range(rows):
            for o in range(size_out):
                outs[r, o] += added[r, o]


@njit(fastmath=_FAST, cache=True, inline="always")
def _turn(head, turn, size):
    """Multiply the pairs of head by the complex numbers of turn, both interleaved."""
    for i in range(0, size, 2):
        a, b = head[i], head[i + 1]
        head[i] = a * turn[i] - b * turn[i + 1]
        head[i + 1] = a * turn[i + 1] + b * turn[i]


@njit(fastmath=_FAST, cache=True, inline="always")
def _meet(queries, tile, scores, first, count, size):
    """scores[:, first : first + _TILE] of all queries against one tile of keys [size, _TILE].

    Two queries at a time share the loads of the keys; count is even.
    """
    for i in range(0, count, 2):
        q, p = queries[i], queries[i + 1]
        row, other = scores[i, first : first + _TILE], scores[i + 1, first : first + _TILE]
        for j in range(_TILE):
            row[j] = np.float32(0.0)
            other[j] = np.float32(0.0)
        d = 0
        while d + 8 <= size:
            q0, q1, q2, q3 = q[d], q[d + 1], q[d + 2], q[d + 3]
            q4, q5, q6, q7 = q[d + 4], q[d + 5], q[d + 6], q[d + 7]
            p0, p1, p2, p3 = p[d], p[d + 1], p[d + 2], p[d + 3]
            p4, p5, p6, p7 = p[d + 4], p[d + 5], p[d + 6], p[d + 7]
            k = tile[d : d + 8]
            for j in range(_TILE):
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
            for j in range(_TILE):
                row[j] += q[d] * tile[d, j]
                other[j] += p[d] * tile[d, j]
            d += 1


@njit(fastmath=_FAST, cache=True, inline="always")
def _mix(scores, values, out, first, count, low, size):
    """out[i] += Σ scores[i, j] · values[j] over a tile's keys that query i sees, in order.

    Groups of eight begin at multiples of eight, so that the order does not depend on the window.
    """
    for i in range(count):
        o, s = out[i], scores[i]
        j, last = max(first, low[i, 0]), min(first + _TILE, low[i, 1])
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


@njit(fastmath=_FAST, cache=True, inline="always")
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
    _exp(part, whole, n)
    total = check
    for j in range(n):
        total += part[j]
    share = np.float32(1.0) / total
    for j in range(n):
        part[j] *= share


@njit(fastmath=_FAST, cache=True, inline="always")
def _head(queries, keys, values, scores, whole, mixed, low, count, longest, size):
    """Attention of count queries over one key head. See `attend`."""
    for first in range(0, longest, _TILE):
        _meet(queries, keys[first // _TILE], scores, first, count + count % 2, size)
    for i in range(count):
        _weigh(scores[i], whole, low[i, 0], low[i, 1])
        for d in range(size):
            mixed[i, d] = np.float32(0.0)
    for first in range(0, longest, _TILE):
        _mix(scores, values, mixed, first, count, low, size)


@cfunc(types.void(*[_I] * 8, _D, *[_I] * 6), cache=True, fastmath=_FAST)
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
    places, turned = carray(_i64(address), (rows,)), carray(_f32(turns), (rows, size))
    asked = carray(_f32(queries), (rows, heads, size))
    cache_k = carray(_f32(keys), (kv_heads, capacity // _TILE, size, _TILE))
    cache_v = carray(_f32(values), (kv_heads, capacity, size))
    line = np.empty(total * size, np.float32)
    split = line.reshape(total, size)
    scale = np.float32(1.0) / np.sqrt(np.float32(size))
    for r in range(rows):
        _load(qkv + item * r * total * size, half, line, total * size)
        for h in range(heads + kv_heads):
            if q_gain and h < heads:
                _normalize(split[h], carray(_f32(q_gain), (size,)), size, eps)
            if k_gain and h >= heads:
                _normalize(split[h], carray(_f32(k_gain), (size,)), size, eps)
            _turn(split[h], turned[r], size)
        for h in range(heads):
            for d in range(size):
                asked[r, h, d] = split[h, d] * scale
        for h in range(kv_heads):
            for d in range(size):
                cache_k[h, places[r] // _TILE, d, places[r] % _TILE] = split[heads + h, d]
                cache_v[h, places[r], d] = split[heads + kv_heads + h, d]


@cfunc(types.void(*[_I] * 15), cache=True, fastmath=_FAST)
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
    depths, bases = carray(_i64(position), (rows,)), carray(_i64(base), (rows // width,))
    cache_k = carray(_f32(keys), (kv_heads, capacity // _TILE, size, _TILE))
    cache_v = carray(_f32(values), (kv_heads, capacity, size))
    asked = carray(_f32(queries), (rows, heads, size))
    block = min(width, block)
    count, longest = block * groups, 0
    for r in range(rows):
        longest = max(longest, depths[r] + 1)
    # An odd count gets one query more, whose scores nobody reads.
    even = count + count % 2
    low = np.zeros((even, 2), np.int64)
    scores = np.empty((even, (longest // _TILE + 1) * _TILE), np.float32)
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
                k, v = cache_k[h, bases[b] // _TILE :], cache_v[h, bases[b] :]
                if size == 64:  # a literal size lets the compiler unroll
                    _head(met, k, v, scores, whole, mixed, low, here, farthest, 64)
                else:
                    _head(met, k, v, scores, whole, mixed, low, here, farthest, size)
                for i in range(here):
                    r, head = b * width + start + i // groups, h * groups + i % groups
                    _store(mixed[i], out + item * (r * heads + head) * size, half, size)
