"""What lies between the matrix products of a layer, compiled for the host's processor by numba.

On a CPU a window of a few rows costs little arithmetic and many calls: torch needs some twenty of
them where these kernels need three. Each has a torch reference with the same result up to
rounding (`norm`, `rotary` with `attention`, `activation`) and is chosen by `host.Host`.

Every row's numbers are added up in an order that depends on its own position alone, so a row
comes out the same in a window of any width. Rows of 16 bits are bfloat16, rounded to nearest
even; arithmetic and cache are float32. Pointers are passed as integers: the caller answers for
shapes and contiguity. Attention is in `host_attention`.
"""

from __future__ import annotations

import numpy as np
from numba import carray, cfunc, njit, types
from numba.extending import intrinsic

# No "nnan" or "ninf": what is not finite must reach the logits, where the round looks for it.
FAST = {"reassoc", "contract", "nsz"}


def _pointer(kind):
    """An intrinsic that takes an address (int64) for a pointer to `kind`."""

    @intrinsic
    def cast(context, address):
        def code(target, builder, signature, arguments):
            return builder.inttoptr(arguments[0], target.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.int64), code

    return cast


as_f32, as_u16 = _pointer(types.float32), _pointer(types.uint16)
as_i64, as_i8 = _pointer(types.int64), _pointer(types.int8)


@njit(fastmath=FAST, cache=True, inline="always")
def _widen(source, target, size):
    """bfloat16 to float32. target is written through its integer view."""
    bits = target.view(np.uint32)
    for i in range(size):
        bits[i] = np.uint32(source[i]) << np.uint32(16)


@njit(fastmath=FAST, cache=True, inline="always")
def _narrow(source, target, size):
    """float32 to bfloat16, to nearest even; NaN stays NaN."""
    bits = source.view(np.uint32)
    for i in range(size):
        b = bits[i]
        up = b + np.uint32(0x7FFF) + ((b >> np.uint32(16)) & np.uint32(1))
        nan = (b & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
        target[i] = np.uint16(0x7FC0) if nan else np.uint16(up >> np.uint32(16))


@njit(fastmath=FAST, cache=True, inline="always")
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


@njit(fastmath=FAST, cache=True, inline="always")
def normalize_row(x, gain, size, eps):
    """x[:size] /= sqrt(mean(x²) + eps), times gain."""
    total = np.float32(0.0)
    for i in range(size):
        total += x[i] * x[i]
    scale = np.float32(1.0) / np.sqrt(total / np.float32(size) + np.float32(eps))
    for i in range(size):
        x[i] = x[i] * scale * gain[i]


@njit(fastmath=FAST, cache=True, inline="always")
def load_row(address, half, row, size):
    """Read a row of bfloat16 or float32 into row (float32)."""
    if half:
        _widen(carray(as_u16(address), (size,)), row, size)
    else:
        source = carray(as_f32(address), (size,))
        for i in range(size):
            row[i] = source[i]


@njit(fastmath=FAST, cache=True, inline="always")
def store_row(row, address, half, size):
    """Write row (float32) as bfloat16 or float32."""
    if half:
        _narrow(row, carray(as_u16(address), (size,)), size)
    else:
        target = carray(as_f32(address), (size,))
        for i in range(size):
            target[i] = row[i]


INT, REAL = types.int64, types.float64


@cfunc(types.void(INT, INT, INT, INT, INT, REAL, INT), cache=True, fastmath=FAST)
def rms_norm(x, out, gain, rows, size, eps, half):
    """out = rms_norm(x) for x, out [rows, size]; gain [size] float32. See `norm.RMSNorm`."""
    gains = carray(as_f32(gain), (size,))
    row = np.empty(size, np.float32)
    item = 2 if half else 4
    for r in range(rows):
        load_row(x + item * r * size, half, row, size)
        normalize_row(row, gains, size, eps)
        store_row(row, out + item * r * size, half, size)


@cfunc(types.void(INT, INT, INT, INT, INT), cache=True, fastmath=FAST)
def silu_mul(gate_up, out, rows, size, half):
    """out [rows, size] = silu(gate) · up for gate_up [rows, 2·size]. See `activation`."""
    item = 2 if half else 4
    gate, up = np.empty(size, np.float32), np.empty(size, np.float32)
    small, whole = np.empty(size, np.float32), np.empty(size, np.int32)
    for r in range(rows):
        load_row(gate_up + item * 2 * r * size, half, gate, size)
        load_row(gate_up + item * (2 * r + 1) * size, half, up, size)
        for i in range(size):
            small[i] = -abs(gate[i])
        exp_row(small, whole, size)  # e^-|g|, so that nothing overflows
        for i in range(size):
            above = np.float32(1.0) if gate[i] >= 0 else small[i]
            up[i] *= gate[i] * above / (np.float32(1.0) + small[i])
        store_row(up, out + item * r * size, half, size)


@cfunc(types.void(*[INT] * 9), cache=True, fastmath=FAST)
def int8_product(x, out, weight, scale, bias, residual, rows, size_in, size_out):
    """out [rows, size_out] = x Wᵀ · scale + bias + residual, all float32 but W.

    weight [size_out, size_in] int8; scale [size_out]; bias [size_out] and residual
    [rows, size_out], or 0 for none.
    """
    xs, outs = carray(as_f32(x), (rows, size_in)), carray(as_f32(out), (rows, size_out))
    weights, scales = carray(as_i8(weight), (size_out, size_in)), carray(as_f32(scale), (size_out,))
    for o in range(size_out):
        w = weights[o]
        for r in range(rows):
            row, total = xs[r], np.float32(0.0)
            for i in range(size_in):
                total += row[i] * np.float32(w[i])
            outs[r, o] = total * scales[o]
    if bias:
        biases = carray(as_f32(bias), (size_out,))
        for r in range(rows):
            for o in range(size_out):
                outs[r, o] += biases[o]
    if residual:
        added = carray(as_f32(residual), (rows, size_out))
        for r in range(rows):
            for o in range(size_out):
                outs[r, o] += added[r, o]
