"""Run by test_compiling.py in a process without triton's interpreter and without a GPU: which
kernels a round that is recorded wants that the runs before the recording did not. Nothing is
launched. Takes a drafter; prints JSON."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from helpers import tiny_checkpoint
from tests.ops.no_gpu import Driver
from triton.runtime import driver

import paceline.engine.build as build
import paceline.engine.slots as slots
import paceline.models.decoder as decoder
from paceline import Engine
from paceline.engine.capture import CapturedRounds, every_plan, run_once, widths
from paceline.engine.readings import CapturedReadings, every_pass, rehearse
from paceline.ops.bookkeeping import Bookkeeping
from paceline.ops.choose import FusedChooser
from paceline.ops.compiling import _Zeros
from paceline.ops.layer import _DeviceOps

K = 5


def opened(drafter: str) -> Engine:
    """With the operations that a GPU has."""
    modules: tuple[Any, ...] = (build, slots, decoder)
    modules[0].make_chooser = lambda device: FusedChooser()
    modules[1].make_bookkeeping = Bookkeeping
    modules[2].make_ops = lambda dtype, device, steady=True: _DeviceOps(dtype, steady)
    modules[2].kept = lambda dtype, device: None
    folder, shape = Path(tempfile.mkdtemp()), {"head_dim": 16, "num_hidden_layers": 1}
    target = tiny_checkpoint(folder / "target", "qwen3", seed=0, **shape)
    draft = tiny_checkpoint(folder / "draft", seed=1, **shape) if "model" in drafter else None
    return Engine(target, draft=draft, drafter=drafter, k=K, slots=4, threads=1, max_length=300,
                  dtype="bfloat16", adaptive=False)  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    driver.set_active(Driver())
    met: set[tuple[str, str]] = set()
    machine = opened(sys.argv[1])._loop.machine
    # True: do not launch it.
    triton.knobs.runtime.jit_cache_hook = lambda **kernel: (
        not met.add((kernel["fn"].name, str(kernel["key"])))
    )
    with torch.inference_mode(), _Zeros():  # type: ignore[no-untyped-call]
        for plan in every_plan(machine, widths(K)).values():
            run_once(machine, plan, K)
        places = torch.zeros(3, 16, dtype=torch.int64)
        for rows, width in every_pass(machine):
            rehearse(machine, width, places[:, :rows])
        before = set(met)
        CapturedRounds(machine, widths(K))  # off a GPU it runs what a graph would hold
        CapturedReadings(machine)
    late = sorted(name for name, _ in met - before)
    print(json.dumps({"met": len(before), "late": late}))


main()
