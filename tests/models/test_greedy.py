"""Greedy text through the public engine, token by token against transformers' generate."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from helpers import EOS, FAMILIES, VARIANTS, VOCAB_SIZE, tiny_checkpoint, tiny_model

import paceline

FIXED = {"threads": 1, "adaptive": False}

NEW_TOKENS = 40
# Two paths of float32 differ by some 1e-6 in the logits. A text whose two best tokens are never
# nearer than this says the same on every machine.
MARGIN = 1e-4


def prompt(seed: int, length: int = 21) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = torch.randint(256, (length,), generator=generator).tolist()
    return ids


@cache
def expected(variant: str, seed: int) -> tuple[int, ...]:
    """What transformers writes, after seeing that no two tokens were near a tie."""
    family, overrides = VARIANTS[variant]
    ids = torch.tensor([prompt(seed)])
    with torch.inference_mode():
        out = tiny_model(family, **overrides).generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
        )
    best = torch.stack([scores[0].topk(2).values for scores in out.scores])
    assert (best[:, 0] - best[:, 1]).min() > MARGIN, "a near tie: choose another prompt"
    return tuple(out.sequences[0, ids.shape[1] :].tolist())


def params(tokens: int = NEW_TOKENS) -> paceline.SamplingParams:
    return paceline.SamplingParams(max_tokens=tokens)


@pytest.mark.parametrize("variant", VARIANTS)
def test_plain_text_is_that_of_generate(variant: str, tmp_path: Path) -> None:
    family, overrides = VARIANTS[variant]
    tiny_checkpoint(tmp_path, family, max_shard_size="20KB", **overrides)
    with paceline.Engine(tmp_path, dtype="float32", k=0, threads=1, prefill_chunk=8) as engine:
        for seed in (1, 2):
            (completion,) = engine.generate([prompt(seed)], params())
            assert completion.token_ids == expected(variant, seed)


@pytest.mark.parametrize("variant", VARIANTS)
def test_speculative_text_is_that_of_generate(variant: str, tmp_path: Path) -> None:
    """With a draft model that is right nearly always, and one that never is."""
    family, overrides = VARIANTS[variant]
    target = tiny_checkpoint(tmp_path / "target", family, **overrides)
    other = tiny_checkpoint(tmp_path / "other", family, seed=1, **overrides)
    for draft, agrees in ((target, True), (other, False)):
        with paceline.Engine(target, draft=draft, dtype="float32", k=4, **FIXED) as engine:
            for seed in (1, 2):
                (completion,) = engine.generate([prompt(seed)], params())
                assert completion.token_ids == expected(variant, seed)
                rate = completion.stats.acceptance_rate
                assert rate is not None
                assert rate > 0.99 if agrees else rate < 0.5


@pytest.mark.parametrize("family", FAMILIES)
def test_several_texts_at_once(family: str, tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, family, **VARIANTS[family][1])
    with paceline.Engine(
        tmp_path, drafter="ngram", dtype="float32", k=3, threads=1, slots=2
    ) as engine:
        completions = engine.generate([prompt(seed) for seed in (1, 2, 3)], params())
    texts = [completion.token_ids for completion in completions]
    assert texts == [expected(family, seed) for seed in (1, 2, 3)]


@pytest.mark.parametrize("k", [0, 1, 5])
@pytest.mark.parametrize("family", FAMILIES)
def test_both_stop_at_the_same_token(family: str, k: int, tmp_path: Path) -> None:
    whole = expected(family, 1)
    ending = next(token for i, token in enumerate(whole) if i > 8 and token not in whole[:i])
    cut = whole[: whole.index(ending) + 1]
    overrides = VARIANTS[family][1] | {"eos_token_id": [EOS, ending]}
    tiny_checkpoint(tmp_path, family, **overrides)
    with paceline.Engine(tmp_path, draft=tmp_path, dtype="float32", k=k, **FIXED) as engine:
        (completion,) = engine.generate([prompt(1)], params())
    assert completion.token_ids == cut
    assert completion.finish == "stop"
    assert all(token < VOCAB_SIZE for token in cut)
