"""What lies between the matrix products of a layer, compiled for the host's processor by numba.

On a CPU a window of a few rows costs little arithmetic and many calls: torch needs some twenty of
them where these kernels need three. Each has a torch reference with the same result up to
rounding (`norm`, `rotary` with `attention`, `activation`); `host.load_kernels` says where they run.

Every row's numbers are added up in an order that depends on its own position alone, so a row
comes out the same in a window of any width. Rows of 16 bits are bfloat16, rounded to nearest
even; arithmetic and cache are float32. Pointers are passed as integers: the caller answers for
shapes and contiguity. Attention is in `host_attention`.
"""

from __future__ import annotations

import numpy as np
from numba import carray, cfunc, njit, types
from numba.extending import intrinsic

from paceline.ops.host_team import share, take

# No "nnan" or "ninf": what is not finite must reach the logits, where the round looks for it.
_FAST = {"reassoc", "contract", "nsz"}
# With Python's own error model a division is a branch, and a loop with one is not made of vectors.
COMPILED = {"cache": True, "fastmath": _FAST, "error_model": "numpy"}


def _pointer(kind):
    """An intrinsic that takes an address (int64) for a pointer to `kind`."""

    @intrinsic
    def cast(context, address):
        def code(target, builder, signature, arguments):
            return builder.inttoptr(arguments[0], target.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.int64), code

    return cast


as_f32, as_f64 = _pointer(types.float32), _pointer(types.float64)
as_u16 = _pointer(types.uint16)
as_i64, as_i8 = _pointer(types.int64), _pointer(types.int8)


@njit(**COMPILED, inline="always")
def _widen(source, target, size):
    """bfloat16 to float32. target is written through its integer view."""
    bits = target.view(np.uint32)
    for i in range(size):
        bits[i] = np.uint32(source[i]) << np.uint32(16)


@njit(**COMPILED, inline="always")
def _narrow(source, target, size):
    """float32 to bfloat16, to nearest even; NaN stays NaN."""
    bits = source.view(np.uint32)
    for i in range(size):
        b = bits[i]
        up = b + np.uint32(0x7FFF) + ((b >> np.uint32(16)) & np.uint32(1))
        nan = (b & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
        target[i] = np.uint16(0x7FC0) if nan else np.uint16(up >> np.uint32(16))


@njit(**COMPILED, inline="always")
def exp_row(x, whole, size):
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


@njit(**COMPILED, inline="always")
def normalize_row(x, gain, size, eps):
    """x[:size] /= sqrt(mean(x²) + eps), times gain."""
    total = np.float32(0.0)
    for i in range(size):
        total += x[i] * x[i]
    scale = np.float32(1.0) / np.sqrt(total / np.float32(size) + np.float32(eps))
    for i in range(size):
        x[i] = x[i] * scale * gain[i]


@njit(**COMPILED, inline="always")
def load_row(address, half, row, size):
    """Read a row of bfloat16 or float32 into row (float32)."""
    if half:
        _widen(carray(as_u16(address), (size,)), row, size)
    else:
        source = carray(as_f32(address), (size,))
        for i in range(size):
            row[i] = source[i]


@njit(**COMPILED, inline="always")
def store_row(row, address, half, size):
    """Write row (float32) as bfloat16 or float32."""
    if half:
        _narrow(row, carray(as_u16(address), (size,)), size)
    else:
        target = carray(as_f32(address), (size,))
        for i in range(size):
            target[i] = row[i]


INT, REAL = types.int64, types.float64


# Rows that a thread takes at a time from a wide window, outputs from an int8 product, and the
# numbers read from which on a second thread is worth waking.
_ROWS, _OUTPUTS = 8, 256
_SHARED_ROWS, _SHARED_INT8 = 1 << 15, 1 << 19


@cfunc(types.void(INT), **COMPILED)
def rms_norm_share(data):
    """One thread's part of `rms_norm`."""
    a = carray(as_i64(data), (8,))
    x, out, rows, size, half = a[1], a[2], a[4], a[5], a[7]
    eps, gains = carray(as_f64(data), (8,))[6], carray(as_f32(a[3]), (size,))
    row = np.empty(size, np.float32)
    item = 2 if half else 4
    while True:
        first = take(data) * _ROWS
        if first >= rows:
            break
        for r in range(first, min(first + _ROWS, rows)):
            load_row(x + item * r * size, half, row, size)
            normalize_row(row, gains, size, eps)
            store_row(row, out + item * r * size, half, size)


@cfunc(types.void(*[INT] * 8, REAL, INT), **COMPILED)
def rms_norm(team, work, threads, x, out, gain, rows, size, eps, half):
    """out = rms_norm(x) for x, out [rows, size]; gain [size] float32. See `norm.RMSNorm`.

    team, threads: see `host_team.share`; work: `rms_norm_share`.
    """
    a = np.empty(8, np.int64)
    a[0], a[1], a[2], a[3], a[4], a[5], a[7] = 0, x, out, gain, rows, size, half
    a.view(np.float64)[6] = eps
    share(team, work, a.ctypes.data, threads if rows * size >= _SHARED_ROWS else 1)
    a[0] = 0  # alive until here: an address alone does not keep it


@cfunc(types.void(INT), **COMPILED)
def silu_mul_share(data):
    """One thread's part of `silu_mul`."""
    a = carray(as_i64(data), (6,))
    gate_up, out, rows, size, half = a[1], a[2], a[3], a[4], a[5]
    item = 2 if half else 4
    gate, up = np.empty(size, np.float32), np.empty(size, np.float32)
    small, whole = np.empty(size, np.float32), np.empty(size, np.int32)
    while True:
        first = take(data) * _ROWS
        if first >= rows:
            break
        for r in range(first, min(first + _ROWS, rows)):
            load_row(gate_up + item * 2 * r * size, half, gate, size)
            load_row(gate_up + item * (2 * r + 1) * size, half, up, size)
            for i in range(size):
                small[i] = -abs(gate[i])
            exp_row(small, whole, size)  # e^-|g|, so that nothing overflows
            for i in range(size):
                above = np.float32(1.0) if gate[i] >= 0 else small[i]
                up[i] *= gate[i] * above / (np.float32(1.0) + small[i])
            store_row(up, out + item * r * size, half, size)


@cfunc(types.void(*[INT] * 8), **COMPILED)
def silu_mul(team, work, threads, gate_up, out, rows, size, half):
    """out [rows, size] = silu(gate) · up for gate_up [rows, 2·size]. See `activation`.

    team, threads: see `host_team.share`; work: `silu_mul_share`.
    """
    a = np.empty(6, np.int64)
    a[0], a[1], a[2], a[3], a[4], a[5] = 0, gate_up, out, rows, size, half
    share(team, work, a.ctypes.data, threads if rows * size >= _SHARED_ROWS else 1)
    a[0] = 0  # alive until here: an address alone does not keep it


@cfunc(types.void(INT), **COMPILED)
def int8_share(data):
    """One thread's part of `int8_product`."""
    a = carray(as_i64(data), (10,))
    rows, size_in, size_out = a[7], a[8], a[9]
    xs, outs = carray(as_f32(a[1]), (rows, size_in)), carray(as_f32(a[2]), (rows, size_out))
    weights = carray(as_i8(a[3]), (size_out, size_in))
    scales, biases = carray(as_f32(a[4]), (size_out,)), carray(as_f32(a[5]), (size_out,))
    added = carray(as_f32(a[6]), (rows, size_out))
    while True:
        first = take(data) * _OUTPUTS
        if first >= size_out:
            break
        last = min(first + _OUTPUTS, size_out)
        for o in range(first, last):
            w = weights[o]
            for r in range(rows):
                row, total = xs[r], np.float32(0.0)
                for i in range(size_in):
                    total += row[i] * np.float32(w[i])
                outs[r, o] = total * scales[o]
        if a[5]:
            for r in range(rows):
                for o in range(first, last):
                    outs[r, o] += biases[o]
        if a[6]:
            for r in range(rows):
                for o in range(first, last):
                    outs[r, o] += added[r, o]


@cfunc(types.void(*[INT] * 12), **COMPILED)
def int8_product(
    team, work, threads, x, out, weight, scale, bias, residual, rows, size_in, size_out
):  # fmt: skip
    """out [rows, size_out] = x Wᵀ · scale + bias + residual, all float32 but W.

    weight [size_out, size_in] int8; scale [size_out]; bias [size_out] and residual
    [rows, size_out], or 0 for none; team, threads: see `host_team.share`; work: `int8_share`.
    """
    a = np.empty(10, np.int64)
    a[0], a[1], a[2], a[3], a[4], a[5] = 0, x, out, weight, scale, bias
    a[6], a[7], a[8], a[9] = residual, rows, size_in, size_out
    share(team, work, a.ctypes.data, threads if size_in * size_out >= _SHARED_INT8 else 1)
    a[0] = 0  # alive until here: an address alone does not keep it


# Outputs that a thread takes at a time from a product with bfloat16 weights, and the rows whose
# numbers lie in the second cache meanwhile.
_SPAN, _BATCH = 64, 32
_SHARED_HALF = 1 << 19  # multiplications from which on a second thread is worth waking


@cfunc(types.void(INT), **COMPILED)
def half_share(data):
    """One thread's part of `half_product`: for some outputs, all rows. A weight is read from memory
    once for 32 rows and widened once; four outputs at a time share what is read of a row."""
    a = carray(as_i64(data), (10,))
    x, out, residual, rows, size, outputs, half = a[1], a[2], a[5], a[6], a[7], a[8], a[9]
    weights = carray(as_u16(a[3]), (outputs, size))
    biases = carray(as_f32(a[4]), (outputs,))
    item = 2 if half else 4
    xs, sums = np.empty((_BATCH, size), np.float32), np.empty((_BATCH, _SPAN), np.float32)
    w, added = np.empty((4, size), np.float32), np.empty(_SPAN, np.float32)
    while True:
        first = take(data) * _SPAN
        if first >= outputs:
            break
        count = min(_SPAN, outputs - first)
        for begin in range(0, rows, _BATCH):
            batch = min(_BATCH, rows - begin)
            for r in range(batch):
                load_row(x + item * (begin + r) * size, half, xs[r], size)
            for o in range(0, count, 4):
                for n in range(4):
                    _widen(weights[first + min(o + n, count - 1)], w[n], size)
                w0, w1, w2, w3 = w[0], w[1], w[2], w[3]
                for r in range(batch):
                    row = xs[r]
                    t0 = t1 = t2 = t3 = np.float32(0.0)
                    for i in range(size):
                        t0 += row[i] * w0[i]
                        t1 += row[i] * w1[i]
                        t2 += row[i] * w2[i]
                        t3 += row[i] * w3[i]
                    # _SPAN is a multiple of four: what is beyond `count` is never stored.
                    sums[r, o], sums[r, o + 1] = t0, t1
                    sums[r, o + 2], sums[r, o + 3] = t2, t3
            for r in range(batch):
                place = item * ((begin + r) * outputs + first)
                if a[4]:
                    for o in range(count):
                        sums[r, o] += biases[first + o]
                if residual:
                    load_row(residual + place, half, added, count)
                    for o in range(count):
                        sums[r, o] += added[o]
                store_row(sums[r], out + place, half, count)


@cfunc(types.void(*[INT] * 12), **COMPILED)
def half_product(team, work, threads, x, out, weight, bias, residual, rows, size, outputs, half):
    """out [rows, outputs] = x Wᵀ + bias + residual, added up in float32 and rounded once.

    x, residual (or 0) and out bfloat16 (half) or float32; weight [outputs, size] bfloat16; bias
    [outputs] float32 or 0; team, threads: see `host_team.share`; work: `half_share`.
    """
    a = np.empty(10, np.int64)
    a[0], a[1], a[2], a[3], a[4], a[5] = 0, x, out, weight, bias, residual
    a[6], a[7], a[8], a[9] = rows, size, outputs, half
    worth = min(rows, _BATCH) * size * outputs >= _SHARED_HALF
    share(team, work, a.ctypes.data, threads if worth else 1)
    a[0] = 0  # alive until here: an address alone does not keep it
