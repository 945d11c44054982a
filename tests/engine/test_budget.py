"""Memory: what an opening will take is known before it, and what is free decides how long texts
may be. Free memory is faked; a CUDA device's sizes are reckoned, none is made."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from helpers import tiny_checkpoint

from paceline import CheckpointError, ConfigError, Engine, EngineConfig
from paceline.drafters import Drafter, create
from paceline.engine import budget
from paceline.engine.budget import STEP, Budget, plan_memory
from paceline.engine.slots import Slots, slots_bytes
from paceline.models.config import ModelConfig
from paceline.models.memory import total
from paceline.models.opening import decoder_memory, open_decoder
from paceline.types import Limits, MemoryPart, Rows

GIB = 2**30
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("budget")
    return tiny_checkpoint(folder, seed=0, max_position_embeddings=8192)


def sized(
    target: Path, monkeypatch: pytest.MonkeyPatch, free: int, drafter: str = "none", **options: Any
) -> Budget:
    """The plan where so much is free; on a CUDA device unless `options` say otherwise."""
    monkeypatch.setattr(budget, "free_bytes", lambda device: free)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    config = EngineConfig(target=str(target), **{"device": "cuda", **options})
    made = create(drafter, path=str(target), dtype=config.dtype)
    return plan_memory(config, ModelConfig.from_folder(target), made)


def message(target: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        sized(target, monkeypatch, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_with_room_the_length_is_the_models_own(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sized(target, monkeypatch, 80 * GIB).limits.max_length == 8192
    assert sized(target, monkeypatch, 80 * GIB, device="cpu").limits.max_length == 4096
    assert sized(target, monkeypatch, 80 * GIB, max_length=300).limits.max_length == 300


@pytest.mark.parametrize("drafter", ["none", "model", "ngram+model"])
@pytest.mark.parametrize("share", [0.9, 0.5])
def test_the_longest_that_fits(
    drafter: str, share: float, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = sized(target, monkeypatch, 80 * GIB, drafter, slots=64, max_length=4096).parts
    fixed = sum(part.size for part in half if part.fixed)
    free = fixed + int((total(half) - fixed) / share) + 9
    found = sized(target, monkeypatch, free, drafter, slots=64, memory=share)
    length = found.limits.max_length
    assert length == 4096

    def rest(length: int) -> int:
        plan = sized(target, monkeypatch, 80 * GIB, drafter, slots=64, max_length=length)
        return total(plan.parts) - fixed

    assert rest(length) <= share * (free - fixed) < rest(length + STEP)


def test_a_length_that_was_asked_for_may_take_everything(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need = total(sized(target, monkeypatch, 80 * GIB, max_length=2048).parts)
    assert sized(target, monkeypatch, need, max_length=2048).limits.max_length == 2048
    text = message(target, monkeypatch, free=need - 1, max_length=2048)
    assert "a shorter max_length, fewer slots, smaller models" in text


def test_the_error_lists_every_part(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = message(target, monkeypatch, free=GIB // 8, drafter="model", slots=8, dtype="float32")
    parts = ("target weights", "draft weights", "target cache", "draft cache", "slots")
    for name in (*parts, "work space"):
        assert re.search(rf"{name} \d+\.\d\d", text), name
    assert "with 8 slots of 256 positions does not fit: it needs 0." in text
    assert "cuda has 0.12 GiB free; use memory above 0.9, fewer slots, dtype bfloat16, " in text


def test_on_a_cpu_too(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "free_bytes", lambda device: 1000)

    def never(*_: object) -> None:
        raise AssertionError("weights were opened before it was known that they fit")

    monkeypatch.setattr("paceline.engine.build.open_decoder", never)
    with pytest.raises(CheckpointError, match=r"cpu has 0\.00 GiB free; use a shorter max_length"):
        Engine(target, draft=target)


def test_a_drafter_says_what_it_takes(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Large(Drafter):
        name: ClassVar[str] = "large"

        def memory(self, limits: Limits) -> tuple[MemoryPart, ...]:
            return (MemoryPart("a table", limits.slots * 2**50),)

        def propose(self, rows: Rows, k: int, draw: object) -> Any:
            raise AssertionError

    with pytest.raises(CheckpointError, match=r"a table 5242880\.00"):
        Engine(target, drafter=Large())


@pytest.mark.parametrize("rule", ["match", "block"])
def test_slots_take_what_was_reckoned(rule: str) -> None:
    stores_q = rule == "block"
    limits = Limits(5, 100, 3, 259, 9, 64, CPU)
    slots = Slots(limits, stores_q, torch.float32)
    arrays = [value for value in vars(slots).values() if isinstance(value, torch.Tensor)]
    taken = sum(array.numel() * array.element_size() for array in arrays)
    assert abs(slots_bytes(limits, stores_q, torch.float32) - taken) <= 5 * 64


def test_a_cache_takes_what_was_reckoned(target: Path) -> None:
    limits = Limits(2, 256, 1, 259, 8, 64, CPU)
    _, cache = decoder_memory("draft", str(target), "bfloat16", limits, steady=False)
    spec = open_decoder(str(target), "bfloat16", CPU, 256, steady=False).spec
    table = 256 * spec.head_dim // 2 * 8
    cells = 2 * spec.layers * spec.kv_heads * spec.head_dim * 512 * spec.dtype.itemsize
    assert cache.size == cells + table


@pytest.mark.parametrize("value", [0, -0.1, 1.5, "half", True])
def test_memory_is_a_share(value: Any) -> None:
    with pytest.raises(ConfigError, match="memory must be"):
        EngineConfig(target="x", memory=value)


def test_an_engine_tells_its_sizes(target: Path) -> None:
    with Engine(target, draft=target, max_length=200, slots=2, threads=1) as engine:
        assert engine.limits.max_length == 200
        assert engine.limits.slots == 3
        assert set(engine.memory) >= {"target weights", "draft cache", "work space"}
