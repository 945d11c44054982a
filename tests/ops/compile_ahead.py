"""Run by test_compiling.py in a process without triton's interpreter: kernels are compiled for a
GPU that is not there. Prints what was loaded, compiled and launched, as JSON."""

from __future__ import annotations

import json
import threading
from typing import Any

import torch
import triton
from tests.ops.no_gpu import Driver
from triton.compiler import compiler
from triton.runtime import driver

from paceline.ops.compiling import compiling
from paceline.ops.device_linear import Normed
from paceline.ops.norm import Residual

launched: list[str] = []
made: list[bool] = []  # of each launcher: whether this thread built it


class Launching(Driver):
    """Takes what is compiled and writes down what is launched."""

    class utils:
        @staticmethod
        def load_binary(name: str, *_: object) -> tuple[int, str, int, int, int]:
            return 1, name, 0, 0, 1024

    def launcher_cls(self, source: object, metadata: object) -> Any:
        made.append(threading.current_thread() is threading.main_thread())
        return lambda *args: launched.append(args[4])


def run(product: Normed, rows: list[int]) -> None:
    for count in rows:
        product(Residual(torch.zeros(count, 128, dtype=torch.bfloat16)))


def main() -> None:
    driver.set_active(Launching())
    here: list[list[bool]] = []  # of each kernel: whether it was cached, and loaded by this thread
    triton.knobs.compilation.listener = lambda cache_hit, **_: here.append(
        [cache_hit, threading.current_thread() is threading.main_thread()]
    )
    compiler.max_shared_mem = lambda device: 1 << 20
    gain, weight = torch.ones(128).bfloat16(), torch.zeros(64, 128).bfloat16()
    product = Normed(gain, 1e-5, weight, None, True, False)
    with torch.inference_mode(), compiling(torch.device("cpu"), 2) as rehearsal:
        for make in (torch.empty, weight.new_empty):
            assert not make(64, 64).any()
        assert not torch.empty_like(weight).any()
        run(product, [1, 20])
        before = len(launched)
    ahead = list(made)
    late: list[str] = []
    triton.knobs.runtime.jit_cache_hook = lambda **kernel: bool(late.append(kernel["repr"]))
    run(product, [5, 30])
    told = {"loaded": rehearsal.loaded, "compiled": rehearsal.compiled, "late": late,
            "before": before, "all": launched, "here": here, "made": ahead}  # fmt: skip
    print(json.dumps(told))


main()
