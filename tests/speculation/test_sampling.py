"""Logits to distribution, against plain loops and against transformers' processors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.speculation import oracle
from tests.speculation.rows import ALL, F64, params
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from paceline.speculation.sampling import (
    History,
    distribution,
    draw,
    failed,
    probabilities,
    top_logprobs,
)
from paceline.types import SamplingFlags

F32 = torch.float32
V = 11


def settings_of(name: str) -> Any:
    """One row's sampling parameters."""
    return st.fixed_dictionaries(
        {
            "temperature": st.sampled_from([0.0, 0.3, 1.0, 1.7]),
            "top_k": st.sampled_from([0, 1, 3, V + 5]),
            "top_p": st.sampled_from([1.0, 0.95, 0.6, 0.01]),
            "min_p": st.sampled_from([0.0, 0.05, 0.4]),
            "repetition": st.sampled_from([1.0, 1.3, 0.8]),
            "presence": st.sampled_from([0.0, 0.7, -0.5]),
            "frequency": st.sampled_from([0.0, 0.4]),
            "bias": st.dictionaries(
                st.integers(0, V - 1), st.sampled_from([-100.0, 2.0]), max_size=3
            ),
            "stop_ids": st.lists(st.integers(0, V - 1), max_size=2, unique=True),
            "min_position": st.sampled_from([0, 12, 100]),
        }
    )  # fmt: skip


def seen(texts: list[list[int]], v: int = V) -> Tensor:
    """Token counts [B, V]."""
    return torch.stack([torch.bincount(torch.tensor([*t, 0]), minlength=v) for t in texts]).sub_(
        torch.nn.functional.one_hot(torch.tensor(0), v)
    )


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(settings_of("row"), min_size=1, max_size=4),
    seed=st.integers(0, 2**31),
    w=st.integers(1, 6),
)
def test_window_equals_stepping_through_the_text(
    rows: list[dict[str, Any]], seed: int, w: int
) -> None:
    """Node j's distribution is that of a text to which draft tokens 1..j were appended."""
    g = torch.Generator().manual_seed(seed)
    b = len(rows)
    logits = torch.randn(b, w, V, generator=g, dtype=F64) * 3
    prompts = [torch.randint(V, (4,), generator=g).tolist() for _ in rows]
    outputs = [torch.randint(V, (5,), generator=g).tolist() for _ in rows]
    window = torch.randint(V, (b, w), generator=g)
    window[:, 0] = torch.tensor([o[-1] for o in outputs])  # the root, counted already
    position = torch.tensor([9 + j for j in range(w)]).expand(b, w)
    history = History(seen(prompts) > 0, seen(outputs).int(), window)
    before = logits.clone()
    scores = distribution(logits, params(rows), ALL, position, history)
    assert torch.equal(logits, before), "the logits are the caller's"
    got = probabilities(scores)
    for i, row in enumerate(rows):
        for j in range(w):
            output = outputs[i] + window[i, 1 : j + 1].tolist()
            want = oracle.distribution(
                logits[i, j].tolist(), prompts[i], output, position=9 + j, **row
            )
            if sum(want) != sum(want):
                continue
            torch.testing.assert_close(got[i, j], torch.tensor(want, dtype=F64))
            assert (scores[i, j] == -torch.inf).tolist() == [x == 0 for x in want]


@settings(max_examples=60, deadline=None)
@given(
    temperature=st.floats(0.1, 3.0),
    top_k=st.integers(0, 40),
    top_p=st.floats(0.05, 1.0),
    min_p=st.floats(0.0, 0.5),
    repetition=st.floats(0.5, 2.0),
    seed=st.integers(0, 2**31),
)
def test_equals_transformers(
    temperature: float, top_k: int, top_p: float, min_p: float, repetition: float, seed: int
) -> None:
    v, g = 32, torch.Generator().manual_seed(seed)
    logits = torch.randn(2, v, generator=g, dtype=F64) * 3
    ids = torch.randint(v, (2, 10), generator=g)
    warpers: list[Any] = [RepetitionPenaltyLogitsProcessor(repetition)]
    warpers.append(TemperatureLogitsWarper(temperature))
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    warpers += [MinPLogitsWarper(min_p)] if min_p else []
    want = LogitsProcessorList(warpers)(ids, logits.clone())
    rows = [
        {
            "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
            "repetition": repetition,
        }
    ] * 2  # fmt: skip
    history = History(seen(ids[:, :5].tolist(), v) > 0, seen(ids[:, 5:].tolist(), v), ids[:, -1:])
    got = distribution(
        logits.unsqueeze(1), params(rows), ALL, torch.full((2, 1), 10), history
    ).squeeze(1)
    torch.testing.assert_close(got.softmax(-1), want.softmax(-1))
    assert torch.equal(got == -torch.inf, want == -torch.inf)


def test_skipped_stages_change_nothing() -> None:
    """A batch whose rows do not use a stage has the same scores with its flag off."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, V, generator=g, dtype=F32)
    rows = params([{"temperature": t} for t in (0.0, 0.7, 1.0)])
    position = torch.arange(4).expand(3, 4)
    zero = torch.zeros(3, V)
    history = History(zero.bool(), zero.int(), torch.zeros(3, 4, dtype=torch.int64))
    full = distribution(logits, rows, ALL, position, history)
    assert torch.equal(full, distribution(logits, rows, SamplingFlags(draws=True), position))


def test_rows_and_window_width_do_not_matter() -> None:
    """Bit for bit: a row's scores are the same alone, in a batch, and in a wider window."""
    g = torch.Generator().manual_seed(1)
    rows = [
        {"temperature": 0.8, "top_p": 0.9, "repetition": 1.2, "frequency": 0.3},
        {"temperature": 1.1, "top_k": 5, "min_p": 0.1, "presence": 0.4, "bias": {3: 1.5}},
        {"temperature": 0.0},
    ]
    logits = torch.randn(3, 6, 300, generator=g, dtype=F32) * 4
    window = torch.randint(300, (3, 6), generator=g)
    counts = torch.randint(3, (3, 300), generator=g)
    position = torch.arange(6).expand(3, 6)
    full = distribution(logits, params(rows), ALL, position, History(counts > 1, counts, window))
    for i, row in enumerate(rows):
        one = slice(i, i + 1)
        for w in range(1, 7):
            history = History(counts[one] > 1, counts[one], window[one, :w])
            part = distribution(logits[one, :w], params([row]), ALL, position[one, :w], history)
            assert torch.equal(part, full[one, :w])
        history = History(counts[one] > 1, counts[one], window[one, :4])
        step = distribution(logits[one, 3:4], params([row]), ALL, position[one, 3:4], history)
        assert torch.equal(step, full[one, 3:4]), "a drafter asks for the last node alone"


def test_ancestors_of_a_tree() -> None:
    """Two branches: a node counts its own ancestors, not its siblings."""
    logits = torch.zeros(1, 4, V, dtype=F64)
    window = torch.tensor([[0, 5, 6, 5]])  # 1 and 2 follow the root, 3 follows 2
    ancestors = torch.tensor(
        [[[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]], dtype=torch.bool
    )
    zero = torch.zeros(1, V)
    history = History(zero.bool(), zero.int(), window, ancestors)
    flags = SamplingFlags(draws=True, penalties=True)
    rows = params([{"frequency": 1.0}])
    scores = distribution(logits, rows, flags, torch.zeros(1, 4).long(), history)[0]
    assert [[j for j in range(V) if scores[i, j] < 0] for i in range(4)] == [[], [5], [6], [5, 6]]


@pytest.mark.parametrize("dtype", [F32, F64])
def test_greedy_is_the_one_hot_of_the_first_maximum(dtype: torch.dtype) -> None:
    logits = torch.tensor([[[1.0, 3.0, 3.0, -2.0]]], dtype=dtype)
    rows, position = params([{"temperature": 0.0}]), torch.zeros(1, 1, dtype=torch.int64)
    for flags in (SamplingFlags(), SamplingFlags(draws=True), ALL):
        history = History(torch.zeros(1, 4).bool(), torch.zeros(1, 4).int(), position)
        scores = distribution(logits, rows, flags, position, history)
        assert scores[0, 0].tolist() == [-torch.inf, 0.0, -torch.inf, -torch.inf]
    bare = distribution(logits, rows, SamplingFlags(), position, one_hot=False)
    assert draw(bare, None).item() == draw(scores, None).item() == 1


def test_top_k_one_is_greedy_and_ties_go_to_the_lower_id() -> None:
    logits = torch.tensor([[[2.0, 2.0, 2.0, 1.0]]], dtype=F64)
    position = torch.zeros(1, 1, dtype=torch.int64)
    flags = SamplingFlags(draws=True, truncation=True)
    kept = {}
    for row in ({"top_k": 1}, {"top_k": 2}, {"top_p": 0.5}, {"top_p": 1e-9}, {"min_p": 0.9}):
        scores = distribution(logits, params([row]), flags, position)
        kept[str(row)] = (scores[0, 0] > -torch.inf).nonzero().flatten().tolist()
    assert list(kept.values()) == [[0], [0, 1], [0, 1], [0], [0, 1, 2]]


def test_top_p_one_keeps_the_whole_tail() -> None:
    logits = torch.linspace(30, -60, 5000).view(1, 1, -1)
    rows = params([{"temperature": 1.0, "top_p": 1.0}])
    flags = SamplingFlags(draws=True, truncation=True)
    scores = distribution(logits, rows, flags, torch.zeros(1, 1, dtype=torch.int64))
    assert scores.isfinite().all()


@pytest.mark.parametrize("dtype", [F32, F64])
def test_tiny_temperatures_stay_finite_and_pick_the_best(dtype: torch.dtype) -> None:
    logits = torch.tensor([[[50.0, 49.0, -80.0]]], dtype=dtype)
    rows, position = params([{"temperature": 1e-30}]), torch.zeros(1, 1, dtype=torch.int64)
    scores = distribution(logits, rows, SamplingFlags(draws=True), position)
    assert not failed(logits, scores).any()
    assert scores.softmax(-1)[0, 0].tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("one_hot", [True, False])
@pytest.mark.parametrize("flags", [SamplingFlags(), SamplingFlags(draws=True), ALL])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_failed_rows_are_told_and_disturb_nobody(
    one_hot: bool, flags: SamplingFlags, temperature: float
) -> None:
    g = torch.Generator().manual_seed(2)
    logits = torch.randn(5, 3, V, generator=g)
    good = logits.clone()
    logits[1, 1, 4] = torch.nan
    logits[2, 0, 0] = torch.inf
    logits[3, 2] = -torch.inf
    logits[4, :, 3] = -torch.inf  # one token forbidden is no failure
    rows = params([{"temperature": temperature}] * 5)
    position = torch.arange(3).expand(5, 3)
    zero = torch.zeros(5, V)
    history = History(zero.bool(), zero.int(), torch.zeros(5, 3, dtype=torch.int64))
    scores = distribution(logits, rows, flags, position, history, one_hot)
    want = torch.zeros(5, 3, dtype=torch.bool)
    want[1, 1] = want[2, 0] = want[3, 2] = True
    assert torch.equal(failed(logits, scores), want)
    clean = distribution(good, rows, flags, position, history, one_hot)
    assert torch.equal(scores[0], clean[0])
    tokens = draw(scores, None)
    assert (tokens >= 0).all()
    assert (tokens < V).all()


def test_masking_every_token_fails_the_row() -> None:
    logits = torch.zeros(1, 1, 3)
    position = torch.zeros(1, 1, dtype=torch.int64)
    for temperature in (0.0, 1.0):
        rows = params([{"temperature": temperature, "stop_ids": [0, 1, 2], "min_position": 5}])
        for flags in (SamplingFlags(min_tokens=True), SamplingFlags(draws=True, min_tokens=True)):
            scores = distribution(logits, rows, flags, position)
            assert failed(logits, scores).all()


def test_top_logprobs_are_the_models_own() -> None:
    g = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 3, V, generator=g, dtype=F64)
    tokens = torch.randint(V, (2, 3), generator=g)
    want = logits.log_softmax(-1)
    for n in (0, 1, 4):
        got = top_logprobs(logits, tokens, n)
        torch.testing.assert_close(got.chosen, want.gather(-1, tokens.unsqueeze(-1)).squeeze(-1))
        torch.testing.assert_close(got.top, want.topk(n).values)
        assert got.top_ids.shape == (2, 3, n)
