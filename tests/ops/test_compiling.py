"""Kernels compiled ahead are the ones that are launched later, and a rehearsal launches none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


def test_what_a_rehearsal_met_is_compiled(tmp_path: Path) -> None:
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("TRITON_INTERPRET", None)
    script = Path(__file__).with_name("compile_ahead.py")
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["compiled"] == 3  # `enter`, and products of up to 16 and up to 32 rows
    assert told["late"] == []
    assert told["all"][told["before"] :] == ["enter", "few_rows"] * 2
