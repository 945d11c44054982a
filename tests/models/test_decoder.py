"""The decoder's logits against transformers, float32 within 1e-4, for all four families."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from helpers import FAMILIES, VARIANTS, VOCAB_SIZE, tiny_checkpoint, tiny_model
from torch import Tensor

from paceline.kv.pools import KVPool
from paceline.models.decoder import Decoder
from paceline.models.opening import open_decoder
from paceline.models.source import find
from paceline.ops.attention import BLOCK
from paceline.types import Window

CPU = torch.device("cpu")
LONGEST, TEXTS = 512, 4
PAGES = torch.randperm(TEXTS * LONGEST // BLOCK, generator=torch.Generator().manual_seed(1))
PAGES = PAGES.view(TEXTS, -1)
LENGTH = 90


def open_tiny(folder: Path, variant: str, dtype: str = "float32") -> tuple[Decoder, KVPool]:
    family, overrides = VARIANTS[variant]
    tiny_checkpoint(folder, family, tokenizer=False, **overrides)
    decoder = open_decoder(find(folder), dtype, CPU, LONGEST)
    return decoder, KVPool(decoder.spec, PAGES.numel(), BLOCK, CPU)


def text(length: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB_SIZE, (length,), generator=torch.Generator().manual_seed(seed))


def window(rows: Sequence[tuple[Tensor, int, int]]) -> Window:
    """Each row: the ids of one window, its first position, and its text's number."""
    position = torch.stack([torch.arange(len(ids)) + start for ids, start, _ in rows])
    pages = PAGES[[number for *_, number in rows]]
    return Window(
        ids=torch.stack([ids for ids, *_ in rows]),
        position=position,
        address=pages.gather(1, position // BLOCK) * BLOCK + position % BLOCK,
        valid=torch.ones_like(position, dtype=torch.bool),
        bounds=tuple(start + len(ids) for ids, start, _ in rows),
        pages=pages,
        page_size=BLOCK,
    )


def run(decoder: Decoder, pool: KVPool, ids: Tensor, chunks: Sequence[int]) -> Tensor:
    """Logits [L, V] of `ids` fed in `chunks` as text 2."""
    logits, start = [], 0
    with torch.inference_mode():
        for size in chunks:
            hidden, _ = decoder.forward(window([(ids[start : start + size], start, 2)]), pool)
            logits.append(decoder.head(hidden))
            start += size
    assert start == len(ids)
    return torch.cat(logits)


def reference(variant: str, ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    family, overrides = VARIANTS[variant]
    with torch.inference_mode():
        logits: Tensor = tiny_model(family, dtype=dtype, **overrides)(ids[None]).logits[0]
    return logits.float()


@pytest.mark.parametrize("chunks", [[LENGTH], [1] * 5 + [3, 20, 1, 1, 33, 4, 7, 16]])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits(variant: str, chunks: list[int], tmp_path: Path) -> None:
    decoder, pool = open_tiny(tmp_path, variant)
    ids = text(LENGTH)
    logits = run(decoder, pool, ids, chunks)
    assert logits.dtype is torch.float32
    assert logits.std() > 0.5  # not flat: a wrong layer would show
    torch.testing.assert_close(logits, reference(variant, ids), rtol=0, atol=1e-4)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name.count("-")])
def test_logits_up_to_the_longest_position(variant: str, tmp_path: Path) -> None:
    decoder, pool = open_tiny(tmp_path, variant)
    ids = text(LONGEST)
    logits = run(decoder, pool, ids, [256, 251, 5])
    torch.testing.assert_close(logits, reference(variant, ids), rtol=0, atol=1e-4)


@pytest.mark.parametrize("variant", ["llama", "mistral-window", "qwen2-window", "qwen3-window"])
def test_rows_do_not_meet(variant: str, tmp_path: Path) -> None:
    """Two texts of different length in one window give what each gives alone."""
    decoder, pool = open_tiny(tmp_path, variant)
    texts, lengths = [text(40, seed=1), text(23, seed=2)], (37, 20)
    with torch.inference_mode():
        for number, (ids, length) in enumerate(zip(texts, lengths, strict=True), 1):
            decoder.forward(window([(ids[:length], 0, number)]), pool)
        both = [
            (ids[length:], length, number)
            for number, (ids, length) in enumerate(zip(texts, lengths, strict=True), 1)
        ]
        hidden, _ = decoder.forward(window(both), pool)
        logits = decoder.head(hidden).view(2, 3, -1)
    for row, ids in enumerate(texts):
        torch.testing.assert_close(logits[row], reference(variant, ids)[-3:], rtol=0, atol=1e-4)


@pytest.mark.parametrize("variant", ["llama", "mistral-window", "qwen3-window"])
def test_rejected_nodes_leave_no_trace(variant: str, tmp_path: Path) -> None:
    """A window whose tail was wrong is written over by the next one: no rollback."""
    decoder, pool = open_tiny(tmp_path, variant)
    ids, wrong = text(30), text(30, seed=3)
    with torch.inference_mode():
        decoder.forward(window([(ids[:20], 0, 2)]), pool)
        guess = torch.cat([ids[20:22], wrong[:4]])
        decoder.forward(window([(guess, 20, 2)]), pool)
        hidden, _ = decoder.forward(window([(ids[22:], 22, 2)]), pool)
        logits = decoder.head(hidden)
    torch.testing.assert_close(logits, reference(variant, ids)[22:], rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_the_hidden_states(family: str, tmp_path: Path) -> None:
    decoder, pool = open_tiny(tmp_path, family)
    ids = text(20)
    with torch.inference_mode():
        hidden, features = decoder.forward(window([(ids, 0, 1)]), pool, (0, 1, 2))
        theirs = tiny_model(family, **VARIANTS[family][1]).model(
            ids[None], output_hidden_states=True
        )
    for mine, expected in zip(features[:2], theirs.hidden_states[:2], strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(features[2][0], hidden, rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_no_worse_than_theirs(family: str, tmp_path: Path) -> None:
    """Against the same bfloat16 weights in float32: no larger an error than transformers' own."""
    ids = text(LENGTH)
    exact = run(*open_tiny(tmp_path / "exact", family, "float32"), ids, [LENGTH])
    mine = run(*open_tiny(tmp_path / "half", family, "bfloat16"), ids, [LENGTH])
    theirs = reference(family, ids, torch.bfloat16)
    assert (mine - exact).abs().mean() < 1.2 * (theirs - exact).abs().mean()


@pytest.mark.parametrize("family", FAMILIES)
def test_float64_is_closer_than_float32(family: str, tmp_path: Path) -> None:
    ids = text(LENGTH)
    single = run(*open_tiny(tmp_path / "32", family, "float32"), ids, [LENGTH])
    double = run(*open_tiny(tmp_path / "64", family, "float64"), ids, [LENGTH])
    again = run(*open_tiny(tmp_path / "again", family, "float64"), ids, [40, 3, 47])
    assert double.dtype is torch.float64
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-4)
    torch.testing.assert_close(again, double, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("stored", "opened", "words"),
    [
        (torch.float32, "bfloat16", "holds float32 weights and is opened as bfloat16, which rounds "
         "them; dtype float32 keeps them, in 4 bytes a weight instead of 2"),
        (torch.float16, "bfloat16", "holds float16 weights and is opened as bfloat16, which rounds "
         "them; dtype float32 keeps them, in 4 bytes a weight instead of 2"),
        (torch.float64, "float32", "dtype float64 keeps them, in 8 bytes a weight instead of 4"),
        (torch.bfloat16, "bfloat16", ""),
        (torch.float16, "float32", ""),
        (torch.bfloat16, "float64", ""),
    ],
)  # fmt: skip
def test_weights_that_are_rounded_are_told_of(
    stored: torch.dtype, opened: str, words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny_checkpoint(tmp_path, dtype=stored, tokenizer=False)
    open_decoder(find(folder), opened, CPU, LONGEST)
    told = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(told) == bool(words)
    assert not words or (told[0].startswith(f"{folder} holds") and words in told[0])
