"""In which order sums run on a GPU, read from what the compiler makes for one; none is needed.

`tl.sum` adds in an order that the layout of its operand gives, and the compiler chooses layouts by
the tile. Where a row's bits must not depend on how many rows there are, either every tile has the
same layout, or the sum is written out.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from paceline.ops.device_linear import TILE, Tiles, choose_tiles, fitted

ROWS = (1, 17, 64, 96, 192, 288, 384, 576)  # at least one for each tile there is
HEAD, GATED, QKV, OUT = (128256, False), (14336, True), (6144, False), (4096, False)


def ways(n: int, gated: bool, parts: bool = False) -> list[Tiles]:
    return sorted({choose_tiles(r, n, gated, False, parts) for r in ROWS}, key=dataclasses.astuple)


@pytest.mark.parametrize("wide", [False, True])
def test_every_tile_fits_on_smaller_gpus(wide: bool) -> None:
    """Bytes a program may share: an L4's, 4090's or 5090's, an A100's, an H200's. What the
    compiler takes is a block for all stages but one."""
    size = 4 if wide else 2
    for room in (101_376, 166_912, 232_448):
        for rows in range(1, 578):
            for n, gated in (HEAD, GATED, QKV, OUT):
                chosen = choose_tiles(rows, n, gated, wide)
                tiles = fitted(chosen, gated, size, room)
                block = (tiles.rows + tiles.columns * (1 + gated)) * tiles.inner * size
                assert (tiles.depth - 1) * block <= room
                assert tiles.depth >= 2
                if room > 200_000:
                    assert tiles == chosen


def orders(asked: list[tuple[Tiles, int, dict[str, Any]]]) -> list[list[str]]:
    """Of each kernel of 4096 inner columns: tiles, n, form."""
    given = [(dataclasses.asdict(tiles), n, 4096, form) for tiles, n, form in asked]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("orders.py")],
        input=json.dumps(given), capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert not done.returncode, done.stderr[-2000:]
    found: list[list[str]] = json.loads(done.stdout)
    return found


def test_no_tile_has_an_order_of_its_own() -> None:
    normed = {"TILES": 4096 // TILE}
    asked = [
        (tiles, n, normed | {"GATED": gated})
        for n, gated in (HEAD, GATED, QKV)
        for tiles in ways(n, gated)
    ]
    follows = [(tiles, OUT[0], {"ADD": True, "NEXT": True}) for tiles in ways(*OUT, parts=True)]
    # A way that is not in use, so that the test can be seen to fail.
    other = (Tiles(128, 128, 64, 4, 8), OUT[0], {"ADD": True, "NEXT": True})
    found = orders([*asked, *follows, other])
    norms, parts = found[: len(asked)], found[len(asked) : -1]
    assert len(norms) > 6
    assert not any(norms)  # written out
    assert len(parts) > 2
    assert len(parts[0]) == 1
    assert all(each == parts[0] for each in parts)
    assert found[-1] != parts[0]
