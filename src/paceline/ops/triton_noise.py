"""`speculation.noise` in registers: the same hash to the bit, the Gumbel noise in float32.

Only the two logarithms may round otherwise than torch's. For other kernels to call.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import libdevice

from paceline.speculation import noise

_GOLDEN = tl.constexpr(noise.GOLDEN % 2**64)
_MIX_1 = tl.constexpr(noise.MIX_1 % 2**64)
_MIX_2 = tl.constexpr(noise.MIX_2 % 2**64)
_UNIT = tl.constexpr(2.0**-32)
_BELOW_ONE = tl.constexpr(1.0 - 2.0**-24)


@triton.jit
def _mix(z):
    """The finaliser of splitmix64; z uint64."""
    z = (z ^ (z >> 30)) * _MIX_1
    z = (z ^ (z >> 27)) * _MIX_2
    return z ^ (z >> 31)


@triton.jit
def key(seed, position):
    """`noise.keys` of stream TARGET: seed, position int64 -> uint64."""
    h = _mix(_mix(seed.to(tl.uint64) + _GOLDEN) + _GOLDEN)
    return _mix(h + (position + 1).to(tl.uint64) * _GOLDEN)


@triton.jit
def hashed(row_key, token):
    """The top 32 bits of splitmix64 for each token (integer) -> uint32."""
    return (_mix(row_key + (token + 1).to(tl.uint64) * _GOLDEN) >> 32).to(tl.uint32)


@triton.jit
def log(x, NATIVE: tl.constexpr):
    """The logarithm that torch calls on the device. The interpreter has not got it."""
    if NATIVE:
        return libdevice.log(x)
    else:
        return tl.log(x)


@triton.jit
def gumbel(row_key, token, NATIVE: tl.constexpr):
    """`noise.gumbel` for tokens of one row: float32."""
    u = (hashed(row_key, token).to(tl.float32) + 0.5) * _UNIT
    u = tl.minimum(u, _BELOW_ONE)
    if NATIVE:
        e = -libdevice.log1p(-u)
    else:
        w = 1.0 - u.to(tl.float64)
        e = (tl.log(w) / (w - 1.0) * u).to(tl.float32)  # −log(1 − u), the rounding of w undone
    return -log(e, NATIVE)
