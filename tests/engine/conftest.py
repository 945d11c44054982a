"""A tiny pair on disk, and engines that are closed after the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_checkpoint
from tests.engine.tools import Pair

from paceline import Engine


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    return Pair(
        tiny_checkpoint(folder / "target", seed=0, dtype=torch.float64),
        tiny_checkpoint(folder / "other", seed=1, dtype=torch.float64),
    )


@pytest.fixture
def opened(pair: Pair) -> Iterator[Callable[..., Engine]]:
    """Opens engines, by default on the pair's target in float64 with one thread."""
    engines: list[Engine] = []

    def open_engine(target: Path | None = None, **options: Any) -> Engine:
        options = {"dtype": "float64", "threads": 1, "max_length": 192, "adaptive": False} | options
        engines.append(Engine(target or pair.target, **options))
        return engines[-1]

    yield open_engine
    for engine in engines:
        engine.close()
