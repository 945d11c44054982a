"""Memory: what an opening will take is known before it, and what is free decides how long texts
may be. Free memory is faked; a CUDA device's sizes are reckoned, none is made."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from helpers import tiny_checkpoint
from tests.engine.tools import Case, Pair, prompt, together

from paceline import (
    CheckpointError,
    ConfigError,
    Engine,
    EngineConfig,
    RequestError,
    SamplingParams,
)
from paceline.drafters import Drafter, create
from paceline.engine import budget
from paceline.engine.budget import STEP, Budget, plan_memory
from paceline.engine.capture import _tensors
from paceline.engine.slots import Slots, slots_bytes
from paceline.engine.work import row_bytes
from paceline.kv.pages import PageAllocator
from paceline.models.config import ModelConfig
from paceline.models.memory import total
from paceline.models.opening import decoder_memory, open_decoder
from paceline.models.source import find
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


def test_with_room_every_slot_has_the_longest(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for options, length in (
        ({}, 8192),
        ({"max_length": 300}, 300),
        ({"device": "cpu"}, 4096),
        ({"device": "cpu", "max_length": 300}, 300),
    ):
        limits = sized(target, monkeypatch, 80 * GIB, slots=3, **options).limits
        assert limits.max_length == length
        assert limits.pages == 1 + 3 * limits.table
        assert limits.texts == 3.0
    assert limits.positions == 3 * 320


def pool(target: Path, monkeypatch: pytest.MonkeyPatch, drafter: str, **options: Any) -> int:
    """Bytes that one page takes."""
    few, many = (
        total(sized(target, monkeypatch, 80 * GIB, drafter, cache_tokens=n, **options).parts)
        for n in (8192, 16384)
    )
    return (many - few) // 128


@pytest.mark.parametrize("drafter", ["none", "model", "ngram+model"])
@pytest.mark.parametrize("share", [0.9, 0.5])
def test_the_cache_has_its_share_of_what_is_left(
    drafter: str, share: float, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = pool(target, monkeypatch, drafter, slots=64)
    whole = sized(target, monkeypatch, 80 * GIB, drafter, slots=64)
    rest = total(whole.parts) - page * (whole.limits.pages - 1)
    for pages in (128, 129, 1000, 64 * 128, 64 * 128 + 1):
        free = rest + -int(-pages * page // share) + 2
        limits = sized(target, monkeypatch, free, drafter, slots=64, memory=share).limits
        assert limits.max_length == 8192
        assert limits.pages - 1 == min(pages, 64 * 128)
        assert limits.texts == min(pages / 128, 64.0)


def test_texts_are_shorter_where_not_one_of_the_models_own_fits(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def need(length: int) -> int:
        options = {"max_length": length, "cache_tokens": length}
        return total(sized(target, monkeypatch, 80 * GIB, slots=8, **options).parts)

    whole, part = need(8192), need(4096)
    assert sized(target, monkeypatch, whole, slots=8, memory=1.0).limits.max_length == 8192
    limits = sized(target, monkeypatch, whole - 1, slots=8, memory=1.0).limits
    assert limits.max_length == 8192 - STEP
    limits = sized(target, monkeypatch, part, slots=8, memory=1.0).limits
    assert (limits.max_length, limits.positions) == (4096, 4096)
    least = need(STEP)
    assert sized(target, monkeypatch, least, slots=8, memory=1.0).limits.max_length == STEP
    text = message(target, monkeypatch, free=least - 1, slots=8, memory=1.0)
    assert "8 slots, texts of 256 positions and 256 in the cache does not fit" in text
    assert "a shorter max_length" not in text


def test_a_length_that_was_asked_for_is_kept_or_refused(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = {"max_length": 2048, "cache_tokens": 2048, "slots": 4}
    need = total(sized(target, monkeypatch, 80 * GIB, **one).parts)
    text = message(target, monkeypatch, free=need, max_length=2048, slots=4)
    assert re.search(
        r"; memory 0\.9 leaves 0\.\d\d of it to the cache: use memory above 0\.9, ", text
    )
    assert "a shorter max_length, fewer slots, smaller models" in text
    limits = sized(target, monkeypatch, need, max_length=2048, memory=1.0, slots=4).limits
    assert (limits.max_length, limits.positions) == (2048, 2048)
    text = message(target, monkeypatch, free=need - 1, max_length=2048, memory=1.0, slots=4)
    assert "use a shorter max_length, fewer slots, smaller models" in text


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_cache_that_was_asked_for(
    device: str, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(free: int = 80 * GIB, **options: Any) -> Limits:
        return sized(target, monkeypatch, free, slots=2, device=device, **options).limits

    limits = plan(max_length=300, cache_tokens=1000)
    assert (limits.max_length, limits.positions) == (300, 1024)
    assert limits.texts == 16 / 5
    # More than the slots can use: so much more is kept for prompts that begin alike.
    assert plan(max_length=300, cache_tokens=10_000).positions == 10_048
    # Whole pages: no text is refused for the last few positions.
    assert plan(max_length=192, cache_tokens=150).positions == 192
    with pytest.raises(ConfigError) as caught:
        plan(max_length=193, cache_tokens=192)
    assert str(caught.value) == (
        "cache_tokens 192 cannot hold one text of max_length 193: give cache_tokens of at least "
        "193, or a max_length of at most 192"
    )
    # Where nobody says how long texts are, they are no longer than the cache.
    assert plan(cache_tokens=1).max_length == 64
    assert plan(cache_tokens=1000).max_length == 1024
    assert plan(cache_tokens=10**6).max_length == (4096 if device == "cpu" else 8192)
    # All of what is free may be taken, whatever the share is.
    options = {"max_length": 512, "cache_tokens": 4096}
    need = total(sized(target, monkeypatch, 80 * GIB, slots=2, device=device, **options).parts)
    assert plan(need, memory=0.1, **options).positions == 4096
    text = message(target, monkeypatch, free=need - 1, slots=2, device=device, **options)
    assert "use cache_tokens below 4096, a shorter max_length, fewer slots, smaller" in text


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What says how large an 8B model is; no weights."""
    folder = tmp_path_factory.mktemp("eight")
    sizes = {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
        "max_position_embeddings": 131072,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **sizes}))
    return folder


def test_slots_that_nobody_asked_for(eight: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as leave the longest text nearly what it has with few."""

    def plan(gib: int, **options: Any) -> tuple[int, int]:
        found = sized(eight, monkeypatch, gib * GIB, **options)
        assert found.slots == found.limits.slots - 1
        return found.slots, found.limits.max_length

    assert plan(80, device="cpu") == (4, 4096)
    assert plan(80) == (16, 131072)
    few, some, many = (plan(20, slots=slots)[1] for slots in (4, 8, 16))
    assert few > some > 7 / 8 * few > many
    assert plan(20) == (8, some)
    few, some, many = (plan(22, slots=slots)[1] for slots in (4, 8, 16))
    assert many > 7 / 8 * few
    assert plan(22) == (16, many)
    # A length that was asked for is kept, and slots give way to it.
    assert plan(22, max_length=few)[0] == 4
    # A number that was asked for is taken as it is.
    assert plan(20, slots=16) == (16, plan(20, slots=16)[1])


def test_with_very_little_memory_one_text_at_a_time(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"max_length": 8192, "memory": 1.0}
    two, one = (
        total(sized(target, monkeypatch, GIB, cache_tokens=8192, slots=n, **options).parts)
        for n in (2, 1)
    )
    assert sized(target, monkeypatch, two, **options).slots == 2
    assert sized(target, monkeypatch, two - 1, **options).slots == 1
    text = message(target, monkeypatch, free=one - 1, **options)
    assert "with 1 slots, texts of 8192 positions and 8192 in the cache does not fit" in text
    assert "fewer slots" not in text


def test_the_error_lists_every_part(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = message(target, monkeypatch, free=GIB // 8, drafter="model", slots=8, dtype="float32")
    parts = ("target weights", "draft weights", "target cache", "draft cache", "slots")
    for name in (*parts, "work space"):
        assert re.search(rf"{name} \d+\.\d\d", text), name
    assert "texts of 256 positions and 256 in the cache does not fit: it needs 0." in text
    assert "cuda has 0.12 GiB free; use fewer slots, dtype bfloat16, smaller models or" in text


def test_on_a_cpu_too(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "free_bytes", lambda device: 1000)

    def never(*_: object) -> None:
        raise AssertionError("weights were opened before it was known that they fit")

    monkeypatch.setattr("paceline.engine.build.open_decoder", never)
    words = r"4 slots, texts of 4096 positions and 16384 in the cache does not fit: .* cpu has "
    words += r"0\.00 GiB free; use cache_tokens below 16384, a shorter max_length, fewer slots"
    with pytest.raises(CheckpointError, match=words):
        Engine(target, draft=target)


def test_the_log_tells_how_much_the_cache_holds(
    target: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "paceline"):
        sized(target, monkeypatch, 80 * GIB, max_length=1000, cache_tokens=2500)
    assert (
        "16 texts of up to 1000 positions, 2560 in the cache (2.5 of the longest): " in caplog.text
    )


def test_an_engine_tells_slots_that_it_decided(target: Path) -> None:
    with Engine(target, max_length=64, threads=1) as engine:
        assert (engine.config.slots, engine.config.device) == (4, "cpu")


def test_a_drafter_says_what_it_takes(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Large(Drafter):
        name: ClassVar[str] = "large"

        def memory(self, limits: Limits) -> tuple[MemoryPart, ...]:
            return (MemoryPart("a table", limits.slots * 2**50),)

        def propose(self, rows: Rows, k: int, draw: object) -> Any:
            raise AssertionError

    with pytest.raises(CheckpointError, match=r"a table 5242880\.00"):
        Engine(target, drafter=Large())


@pytest.mark.parametrize("length", [100, 131072])
@pytest.mark.parametrize("rule", ["match", "block"])
def test_slots_take_what_was_reckoned(rule: str, length: int) -> None:
    stores_q = rule == "block"
    limits = Limits(5, length, 3, 259, 9, 64, CPU)
    slots = Slots(limits, stores_q, torch.float32)
    arrays = [value for value in vars(slots).values() if isinstance(value, torch.Tensor)]
    assert abs(slots_bytes(limits, stores_q, torch.float32) - taken(arrays)) <= 5 * 64
    batch = slots.batch(torch.arange(5))
    rows = taken(_tensors(batch))
    assert rows <= 5 * row_bytes(limits) <= rows + 5 * 128


def taken(arrays: list[torch.Tensor]) -> int:
    return sum(array.numel() * array.element_size() for array in arrays)


@pytest.mark.parametrize("name", ["predicted", "replay"])
def test_what_drafters_keep_of_long_texts_was_reckoned(name: str, tmp_path: Path) -> None:
    answers = tmp_path / "answers.json"
    answers.write_text('[{"prompt": [1], "answer": [2]}]')
    limits = Limits(5, 10_000, 3, 259, 9, 64, CPU)
    drafter = create(f"replay:path={answers}" if name == "replay" else name)
    drafter.bind(None, limits)  # type: ignore[arg-type]
    arrays = [value for value in vars(drafter).values() if isinstance(value, torch.Tensor)]
    kept = taken(arrays)
    assert 5 * 10_000 * 8 < kept <= total(drafter.memory(limits)) + 512
    if name == "replay":
        assert total(drafter.memory(limits)) <= kept + 512


def test_work_space_grows_with_what_it_holds(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(length: int, drafter: str = "none", **options: Any) -> int:
        options = {"max_length": length, "cache_tokens": 131072, "slots": 64, **options}
        parts = sized(target, monkeypatch, 80 * GIB, drafter, **options).parts
        return next(part.size for part in parts if part.name == "work space")

    base = work(1024)
    # A prompt's pages are copied together, keys and values; tables are there a row.
    model = ModelConfig.from_folder(target)
    copies = 2 * (131072 - 1024) * model.kv_heads * model.head_dim * 2
    assert work(131072) >= base + copies + 64 * 8 * (131072 - 1024) // 64
    assert work(1024, k=16) > work(1024, k=8) > base > work(1024, capture=False)
    assert work(1024, adaptive=True) == base > work(1024, adaptive=False)


def test_a_search_through_long_texts_is_reckoned(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"max_length": 131072, "cache_tokens": 131072, "slots": 64}
    parts = sized(target, monkeypatch, 80 * GIB, "ngram+predicted", **options).parts
    sizes = {part.name: part.size for part in parts}
    assert sizes["n-gram search"] > 64 * 131072 * 5 * 8
    assert sizes["predictions"] > sizes["n-gram search"]


def test_a_cache_takes_what_was_reckoned(target: Path) -> None:
    limits = Limits(2, 256, 1, 259, 8, 64, CPU)
    model = ModelConfig.from_folder(target)
    _, cache = decoder_memory("draft", model, "bfloat16", limits, steady=False)
    spec = open_decoder(find(target), "bfloat16", CPU, 256, steady=False).spec
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
        assert (engine.limits.slots, engine.config.slots) == (3, 2)
        assert set(engine.memory) >= {"target weights", "draft cache", "work space"}
        stats = engine.stats()
        assert (stats.cache_tokens, stats.cache_texts, stats.pages) == (512, 2.0, 8)


# --- a small cache --------------------------------------------------------------------------


def test_in_a_small_cache_requests_queue_and_finish(
    pair: Pair, opened: Callable[..., Engine]
) -> None:
    """Two pages a text and three in all: one writes, and the others wait for it."""
    cases = [
        Case(prompt(n), SamplingParams(temperature=1.0, seed=n, max_tokens=90, ignore_eos=True))
        for n in range(5)
    ]
    wanted = together(opened(k=0, slots=5), cases)
    engine = opened(draft=pair.other, k=2, slots=5, cache_tokens=190)
    assert engine.stats().cache_tokens == 192
    assert engine.stats().cache_texts == 1.0
    with engine._driver.held() as step:
        handles = [engine.submit(case.prompt, case.params) for case in cases]
        most = 0
        while (stats := engine.stats()).finished < len(cases):
            step()
            most = max(most, stats.waiting)
            assert stats.pages_used <= 3
    assert most >= 2
    for handle, result in zip(handles, wanted, strict=True):
        assert handle.result(60).token_ids == result.token_ids
    assert engine.stats().pages_used == 0


def test_what_can_never_fit_is_refused_at_once(
    opened: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened(k=0, slots=2, max_length=None, cache_tokens=100)
    assert engine.limits.max_length == 128
    params = SamplingParams(max_tokens=200, ignore_eos=True)
    with engine._driver.held():  # by the caller's own thread
        with pytest.raises(RequestError, match="130 tokens and the context holds 128"):
            engine.submit([1] * 130, params)
        # An engine that was opened holds one text; were it not so, the scheduler would tell.
        monkeypatch.setattr(PageAllocator, "total", 1)
        with pytest.raises(RequestError, match="128 positions of the cache, which holds 64: ask "):
            engine.submit([1] * 10, params)
        with pytest.raises(RequestError, match="shorten the prompt, or open the engine with more"):
            engine.submit([1] * 70, params)
        monkeypatch.undo()
    (done,) = engine.generate([[1] * 10], params)
    assert len(done.token_ids) == 118
