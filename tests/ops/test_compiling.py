"""Kernels compiled ahead are the ones that are launched later, and a rehearsal launches none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from paceline.ops.compiling import compiling

triton = pytest.importorskip("triton")

TESTS = Path(__file__).parents[1]


def told_by(script: str, folder: Path, *arguments: str) -> Any:
    """What a script beside this file prints, in a process without triton's interpreter."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(folder), "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("TRITON_INTERPRET", None)
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), *sys.path])
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name(script), *arguments],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_what_a_rehearsal_met_is_compiled(tmp_path: Path) -> None:
    told = told_by("compile_ahead.py", tmp_path)
    assert told["compiled"] == 3  # `enter`, and products of up to 16 and up to 32 rows
    assert told["late"] == []
    assert told["all"][told["before"] :] == ["enter", "few_rows"] * 2
    assert told["here"] == [[False, False]] * 3
    assert told["made"] == [True] * 3  # launchers are built meanwhile, by one thread


def test_what_lies_in_the_cache_is_loaded_by_one_thread(tmp_path: Path) -> None:
    """Many would wait for Python's lock in turns, ten times as long."""
    told_by("compile_ahead.py", tmp_path)
    told = told_by("compile_ahead.py", tmp_path)
    assert (told["loaded"], told["compiled"], told["late"]) == (3, 0, [])
    assert told["here"] == [[True, True]] * 3


@pytest.mark.parametrize("drafter", ["model", "ngram+model"])
def test_no_kernel_is_met_first_while_a_round_is_recorded(drafter: str, tmp_path: Path) -> None:
    """A GPU cannot load one then."""
    told = told_by("recorded_kernels.py", tmp_path, drafter)
    assert told["met"] > 50
    assert told["late"] == []


def test_two_rehearsals_at_once_leave_nothing_behind() -> None:
    """Or launches of the one that is over would be swallowed for good."""
    runtime, inside = triton.knobs.runtime, [threading.Event(), threading.Event()]

    def rehearse(number: int) -> None:
        inside[1 - number].wait(0.2)
        with compiling(torch.device("cpu"), 1):
            inside[number].set()
            inside[1 - number].wait(0.2)

    threads = [threading.Thread(target=rehearse, args=(number,)) for number in range(2)]
    before = runtime.jit_cache_hook
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert runtime.jit_cache_hook is before
