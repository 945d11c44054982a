"""The one dense loop of attention on a CPU, written in vectors: four rows times a tile.

Compilers do not keep a block of sums in registers across a loop, which is what makes it two to
three times faster than plain loops. Every sum runs over the depth in order, with one rounding a
step, so a row's numbers depend on that row alone. Knows nothing of what the numbers mean.
"""

# mypy: ignore-errors
# Intrinsics are written in numba's and LLVM's types.

from __future__ import annotations

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

ROWS = 4  # that share each load from the tile
LANES = 16
# Vectors a row whose sums stay in registers at once.
VECTORS = 4 if llvm.get_host_cpu_features().get("avx512f") else 1

_FLOAT, _WORD = ir.FloatType(), ir.IntType(64)
_VECTOR = ir.VectorType(_FLOAT, LANES)


def _at(builder, address, index, kind):
    """The address of float number `index` from `address` on, as a pointer to `kind`."""
    place = builder.add(address, builder.shl(index, ir.Constant(_WORD, 2)))
    return builder.inttoptr(place, kind.as_pointer())


def _product(vectors):
    """An intrinsic: c [4, 16·vectors] = (c if more else 0) + a [4, depth] · b [depth, 16·vectors].

    Addresses of float32; the strides are numbers from one row to the next.
    """

    @intrinsic
    def product(typing, a, a_stride, b, b_stride, c, c_stride, depth, more):
        def code(context, builder, signature, arguments):
            a, a_stride, b, b_stride, c, c_stride, depth, more = arguments
            zero = ir.Constant(_VECTOR, [0.0] * LANES)
            kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
            fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES}f32")
            goes_on = builder.icmp_signed("!=", more, ir.Constant(_WORD, 0))
            sums, places = {}, {}
            for row in range(ROWS):
                start = builder.mul(c_stride, ir.Constant(_WORD, row))
                for v in range(vectors):
                    column = builder.add(start, ir.Constant(_WORD, LANES * v))
                    place = places[row, v] = _at(builder, c, column, _VECTOR)
                    before = builder.load(place, align=4)
                    sums[row, v] = cgutils.alloca_once(builder, _VECTOR)
                    builder.store(builder.select(goes_on, before, zero), sums[row, v])
            with cgutils.for_range(builder, depth) as loop:
                start = builder.mul(loop.index, b_stride)
                tile = [
                    builder.load(
                        _at(builder, b, builder.add(start, ir.Constant(_WORD, LANES * v)), _VECTOR),
                        align=4,
                    )
                    for v in range(vectors)
                ]
                for row in range(ROWS):
                    start = builder.mul(a_stride, ir.Constant(_WORD, row))
                    place = _at(builder, a, builder.add(start, loop.index), _FLOAT)
                    one = builder.insert_element(
                        ir.Constant(_VECTOR, ir.Undefined),
                        builder.load(place, align=4),
                        ir.Constant(ir.IntType(32), 0),
                    )
                    lanes = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
                    every = builder.shuffle_vector(one, one, lanes)
                    for v in range(vectors):
                        total = builder.load(sums[row, v])
                        builder.store(builder.call(fma, [every, tile[v], total]), sums[row, v])
            for key, place in places.items():
                builder.store(builder.load(sums[key]), place, align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 8), code

    return product


wide_product, narrow_product = _product(VECTORS), _product(1)
