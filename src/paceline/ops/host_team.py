"""Several threads for a compiled kernel: the very ones that torch's own operations run on.

A pool beside torch's would fight it: between operations torch's threads spin on their cores. So a
kernel hands its work to the OpenMP library that torch is linked with. Work is cut into tasks that
threads take one by one; which thread takes which changes no number. Knows no kernel.
"""

# mypy: ignore-errors
# Intrinsics are written in numba's and LLVM's types.

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_WORD, _SIZE = ir.IntType(64), ir.IntType(32)


def find_team() -> int:
    """The address of the OpenMP entry that torch uses, or 0 where there is none to be found."""
    for library in sorted(Path(torch.__file__).with_name("lib").glob("libtorch_cpu.*")):
        try:
            entry = ctypes.CDLL(str(library)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        return ctypes.cast(entry, ctypes.c_void_p).value or 0
    return 0


@intrinsic
def take(typing, counter):
    """Add one to the int64 at the address `counter`, seen by all threads; returns what it was."""

    def code(context, builder, signature, arguments):
        place = builder.inttoptr(arguments[0], _WORD.as_pointer())
        return builder.atomic_rmw("add", place, ir.Constant(_WORD, 1), "monotonic")

    return types.int64(types.int64), code


@intrinsic
def share(typing, team, function, data, threads):
    """Call the function at the address `function` with `data` (an address) on that many threads,
    and wait for all. team: see `find_team`; 0, or one thread, is a plain call.

    threads must be 1 or what torch uses: a team of another size ends threads and starts them anew.
    """

    def code(context, builder, signature, arguments):
        team, function, data, threads = arguments
        byte = ir.IntType(8).as_pointer()
        work = ir.FunctionType(ir.VoidType(), [byte]).as_pointer()
        function = builder.inttoptr(function, work)
        data = builder.inttoptr(data, byte)
        several = builder.and_(
            builder.icmp_signed(">", threads, ir.Constant(_WORD, 1)),
            builder.icmp_signed("!=", team, ir.Constant(_WORD, 0)),
        )
        with builder.if_else(several) as (many, one):
            with many:
                kind = ir.FunctionType(ir.VoidType(), [work, byte, _SIZE, _SIZE]).as_pointer()
                zero = ir.Constant(_SIZE, 0)
                builder.call(
                    builder.inttoptr(team, kind),
                    [function, data, builder.trunc(threads, _SIZE), zero],
                )
            with one:
                builder.call(function, [data])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), code
