"""What holds under every rule: greedy text is plain text, and the law of sampled text is plain's.

Also the counts that a request and the engine report.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import product, zip_longest
from pathlib import Path

import pytest
import torch
from helpers import VOCAB_SIZE, tiny_checkpoint
from scipy.stats import chisquare
from tests.engine.tools import (
    EVERYTHING,
    Case,
    Holes,
    KnownDrafter,
    Pair,
    RandomDrafter,
    prompt,
    same,
    together,
)

from paceline import Engine, EngineConfig, Grammar, SamplingParams
from paceline.drafters.replay import ReplayDrafter, ReplayOptions
from paceline.speculation import verify
from paceline.speculation.verify import Match

RULES = ("match", "reject", "block")
GREEDY = SamplingParams(max_tokens=22, logprobs=1, ignore_eos=True)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("drafter", ["ngram:min=1", "model", "target", "mix", "random"])
def test_greedy_text_is_plain(
    rule: str, drafter: str, pair: Pair, opened: Callable[..., Engine]
) -> None:
    cases = [
        Case(prompt(1), GREEDY),
        Case(prompt(2), replace(GREEDY, repetition_penalty=1.3, presence_penalty=0.5)),
        Case(prompt(3), replace(GREEDY, logit_bias=((65, 40.0), (66, 40.0)))),
    ]
    plain = together(opened(k=0), cases)
    specs = {
        "model": f"model:path={pair.other}",
        "target": f"model:path={pair.target}",
        "mix": f"ngram:min=1+model:path={pair.other}",
    }
    made = RandomDrafter() if drafter == "random" else specs.get(drafter, drafter)
    engine = opened(drafter=made, rule=rule, k=5)
    for k in (1, 3, 5):
        for got, expected in zip(together(engine, cases, k), plain, strict=True):
            same(got, expected)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("k", [1, 4, 7])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_perfect_draft_is_accepted_whole(
    rule: str, k: int, temperature: float, pair: Pair, opened: Callable[..., Engine]
) -> None:
    """The target as its own drafter: all K of every round, but for the last, which the limit
    cuts to what there is room for."""
    params = replace(GREEDY, temperature=temperature, seed=3, max_tokens=30)
    engine = opened(draft=pair.target, rule=rule, k=k)
    (one,) = engine.generate([prompt(5)], params)
    whole, rest = divmod(30, k + 1)
    stats = one.stats
    assert len(one.token_ids) == stats.emitted == 30
    assert stats.rounds == whole + bool(rest)
    assert stats.accepted == stats.evaluated == stats.drafted == whole * k + max(0, rest - 1)
    assert one.sources[: k + 1] == ("model",) * k + ("target",)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("start", [40, 51])
def test_a_perfect_draft_over_block_borders(
    rule: str, start: int, pair: Pair, opened: Callable[..., Engine]
) -> None:
    """Every parameter on, penalties inside the draft too, and a cache of several blocks: what
    the draft model sees and how it draws is what the target does."""
    params = replace(EVERYTHING, ignore_eos=True, max_tokens=110, logprobs=None)
    engine = opened(draft=pair.target, rule=rule, k=7)
    for seed in (1, 2):
        (one,) = engine.generate([prompt(seed, start)], replace(params, seed=seed))
        assert one.stats.accepted == one.stats.evaluated == one.stats.drafted > 80


@pytest.mark.parametrize("rule", RULES)
def test_count_0_emits_one_token(rule: str, opened: Callable[..., Engine]) -> None:
    """A drafter that never has anything, and K = 0."""
    for k, drafter in ((0, "ngram"), (4, ReplayDrafter(answers={}))):
        (one,) = opened(drafter=drafter, rule=rule, k=k).generate([prompt(1)], GREEDY)
        assert one.stats.rounds == one.stats.emitted == 22
        assert one.stats.drafted == one.stats.evaluated == one.stats.accepted == 0
        assert one.stats.acceptance_rate is None
        assert set(one.sources) == {"target"}


# --- sampled text under reject and block ------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target whose first tokens spread over few ids, so that a test has power."""
    return tiny_checkpoint(
        tmp_path_factory.mktemp("small"), seed=5, dtype=torch.float64, initializer_range=0.1
    )


@pytest.mark.parametrize("rule", ["reject", "block"])
@pytest.mark.parametrize("kind", ["known", "model", "holes"])
def test_the_joint_law_of_three_tokens(
    rule: str, kind: str, small: Path, pair: Pair, opened: Callable[..., Engine]
) -> None:
    """Drafts without weights (q is one-hot; `known` proposes always the same text), with them,
    and with weights that are NaN at times."""
    ids, start = range(65, 68), prompt(24, 1)
    params = SamplingParams(
        temperature=1.0, max_tokens=3, logit_bias=tuple((token, 50.0) for token in ids)
    )
    made = {"known": KnownDrafter({tuple(start): (66, 67, 65)}), "holes": Holes()}
    engine = opened(
        small,
        drafter=made.get(kind, f"model:path={pair.other}"),
        rule=rule,
        k=2,
        slots=48,
        max_length=64,
    )
    samples, counts = 480, Counter[tuple[int, ...]]()
    for first in range(0, samples, 48):
        cases = [Case(start, replace(params, seed=seed)) for seed in range(first, first + 48)]
        counts.update(result.token_ids for result in together(engine, cases))
    assert engine.stats().accepted > samples / 8, "the draft was hardly tested"

    def law(text: list[int]) -> list[float]:
        weights: list[float] = engine.score(text)[-1][list(ids)].softmax(-1).tolist()
        return weights

    expected = {}
    for i, j in product(range(3), repeat=2):
        both = law(start)[i] * law([*start, ids[i]])[j]
        for m, last in enumerate(law([*start, ids[i], ids[j]])):
            expected[ids[i], ids[j], ids[m]] = samples * both * last
    assert min(expected.values()) > 5
    p = chisquare([counts[cell] for cell in expected], list(expected.values())).pvalue
    assert p > 1e-4


# --- counts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("drafter", ["ngram:min=1", "spoiled", "random"])
def test_counts_agree_with_the_events(
    rule: str, drafter: str, opened: Callable[..., Engine]
) -> None:
    params = SamplingParams(max_tokens=40, ignore_eos=True, logit_bias=((65, 40.0), (66, 40.0)))
    starts = [prompt(seed) for seed in range(5)]
    plain = opened(k=0).generate(starts, params)
    answers = {tuple(s): one.token_ids for s, one in zip(starts, plain, strict=True)}
    made = {
        "spoiled": ReplayDrafter(ReplayOptions(error=0.3), answers),
        "random": RandomDrafter(low=64, high=67),
    }
    engine = opened(drafter=made.get(drafter, drafter), rule=rule, k=4, slots=2)
    every = engine.generate(starts, params)
    for one in every:
        stats = one.stats
        drafted_tokens = sum(source != "target" for source in one.sources)
        assert stats.emitted == len(one.token_ids) == 40
        assert stats.accepted == drafted_tokens
        assert stats.emitted == stats.accepted + stats.rounds
        assert stats.accepted <= stats.evaluated <= stats.drafted
        assert stats.evaluated <= stats.accepted + stats.rounds
        assert sum(stats.evaluated_by_position) == stats.evaluated
        assert sum(stats.accepted_by_position) == stats.accepted
        evaluated, accepted = stats.evaluated_by_position, stats.accepted_by_position
        assert evaluated == sorted(evaluated, reverse=True)
        # A draft token is evaluated where the one before it was accepted, and drafted at all.
        assert all(b <= a for a, b in zip(accepted, evaluated[1:], strict=False))
        assert sum(stats.accepted_by_source.values()) == stats.accepted
        assert stats.tokens_per_round == pytest.approx(stats.emitted / stats.rounds)
        assert stats.prompt_tokens == 11
    totals = engine.stats()
    for name in ("drafted", "evaluated", "accepted", "emitted", "prompt_tokens"):
        assert getattr(totals, name) == sum(getattr(one.stats, name) for one in every), name
    for name in ("evaluated_by_position", "accepted_by_position"):
        columns = [getattr(one.stats, name) for one in every]
        assert getattr(totals, name) == list(map(sum, zip_longest(*columns, fillvalue=0))), name
    # Two slots: a round serves up to two requests.
    each = [one.stats.rounds for one in every]
    assert max(each) <= totals.rounds <= sum(each)
    assert totals.rounds >= sum(each) / 2


def test_a_stop_string_censors_the_counts(opened: Callable[..., Engine]) -> None:
    """Draft tokens behind the end of the text were neither accepted nor evaluated, whoever
    found the end."""
    params = SamplingParams(max_tokens=40, ignore_eos=True, logit_bias=((65, 40.0), (66, 40.0)))
    (plain,) = opened(k=0).generate([prompt(1)], params)
    known = KnownDrafter({tuple(prompt(1)): plain.token_ids})
    for k in (3, 8):
        for at in range(1, 12):
            stop = plain.text[:at]
            if stop in plain.text[: at - 1]:
                continue
            (one,) = opened(drafter=known, k=k).generate([prompt(1)], replace(params, stop=(stop,)))
            assert len(one.token_ids) == one.stats.emitted == at
            drafted_tokens = sum(source != "target" for source in one.sources)
            assert one.stats.accepted == one.stats.evaluated == drafted_tokens
            assert sum(one.stats.accepted_by_position) == drafted_tokens
            assert one.stats.rounds == -(-at // (k + 1))


def test_events_add_up_to_the_completion(opened: Callable[..., Engine]) -> None:
    params = SamplingParams(max_tokens=30, temperature=1.0, seed=2, logprobs=1)
    engine = opened(drafter=RandomDrafter(), k=3)
    events = list(engine.stream(prompt(1), params))
    (one,) = engine.generate([prompt(1)], params)
    assert sum((event.token_ids for event in events), ()) == one.token_ids
    assert "".join(event.text for event in events) == one.text
    assert sum((event.logprobs or () for event in events), ()) == one.logprobs
    assert events[-1].finish == one.finish
    assert len({event.request_id for event in events}) == 1
    assert all(token < VOCAB_SIZE for token in one.token_ids)


def test_what_a_rule_can_do_is_its_own_to_say(
    pair: Pair, opened: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not its name: under one that compares K is chosen, and forced tokens stand."""
    assert [EngineConfig(target="t", rule=name).adapts for name in RULES] == [True, False, False]
    monkeypatch.setitem(verify.RULES, "reject", Match("reject"))
    assert EngineConfig(target="t", rule="reject").adapts
    engine = opened(drafter="ngram:min=3", rule="reject", k=4)
    (one,) = engine.generate(
        [prompt(1)], SamplingParams(max_tokens=22), grammar=Grammar("regex", "a long word")
    )
    assert set(one.sources) == {"forced", "target"}


def test_a_fixed_k_is_told_of(
    pair: Pair, opened: Callable[..., Engine], caplog: pytest.LogCaptureFixture
) -> None:
    for rule, told in (("reject", True), ("match", False)):
        caplog.clear()
        with caplog.at_level(logging.INFO, "paceline"):
            opened(draft=pair.other, k=3, rule=rule, adaptive=None, max_length=64, slots=1)
        assert ("K stays at 3 whatever the load; --adaptive lets it vary" in caplog.text) is told
