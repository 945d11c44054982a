"""The joint law over three rounds, exactly; and mutants that must not pass."""

from __future__ import annotations

import pytest

from paceline.lab.audit_enumeration import Enumeration, EnumerationResult
from paceline.lab.audit_mutations import MUTANTS, Mutant, unrooted_noise, unrooted_proposal
from paceline.lab.audit_reference import Schedule, Text, random_pair
from paceline.speculation.verify import RULES, Rule
from paceline.types import RuleName

NAMES: tuple[RuleName, ...] = ("match", "reject", "block")
SIZES = [(2, 1, 5), (2, 2, 5), (2, 3, 5), (3, 2, 4)]  # V, K, tokens


def constant(k: int, tokens: int) -> Schedule:
    return Schedule(k, lambda number, text: k, tokens=tokens)


def changing(k: int, tokens: int) -> Schedule:
    """The count depends on the round and on what was committed."""
    return Schedule(k, lambda number, text: (number + sum(text) + 1) % (k + 1), tokens=tokens)


def run(rule: Rule, v: int, schedule: Schedule, seed: int) -> EnumerationResult:
    pair = random_pair(v, schedule.tokens + schedule.k, seed)
    return Enumeration(rule, pair, schedule).run()


@pytest.mark.parametrize("rule", NAMES)
@pytest.mark.parametrize(("v", "k", "tokens"), SIZES)
@pytest.mark.parametrize("counts", [constant, changing])
def test_joint_law_is_the_targets(rule: RuleName, v: int, k: int, tokens: int, counts) -> None:
    for seed in range(4):
        result = run(RULES[rule], v, counts(k, tokens), seed)
        assert result.total_variation == 0
        assert result.passed
        assert result.cells > 10


@pytest.mark.parametrize("rule", NAMES)
def test_proposal_without_choice(rule: RuleName) -> None:
    """q one-hot (an n-gram, a prediction): draft.scores is None."""
    for seed in range(3):
        schedule = Schedule(2, lambda number, text: 2, tokens=5, one_hot_q=True)
        assert run(RULES[rule], 2, schedule, seed).passed


def test_match_may_cut_what_was_drawn_and_reject_may_not() -> None:
    def cut(drafted: Text) -> int:
        return drafted.index(1) if 1 in drafted else len(drafted)

    schedule = Schedule(2, lambda number, text: 2, tokens=4, cut=cut)
    assert all(run(RULES["match"], 2, schedule, seed).passed for seed in range(4))
    for rule in ("reject", "block"):
        worst = max(run(RULES[rule], 2, schedule, seed).total_variation for seed in range(4))
        assert worst > 0.02
    free = Schedule(2, lambda number, text: 2, tokens=4, cut=cut, one_hot_q=True)
    assert all(run(RULES["reject"], 2, free, seed).passed for seed in range(4))


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=list(MUTANTS))
def test_mutants_fail(mutant: Mutant) -> None:
    results = (
        run(mutant, v, constant(k, tokens), seed)
        for seed in range(6)
        for v, k, tokens in ((2, 2, 5), (3, 2, 4))
    )
    assert any(not r.passed and r.total_variation > 5e-4 for r in results)


def test_reject_alone_does_not_need_the_root() -> None:
    """It never looks past the first rejection, so numbers met again are still unseen. Shows
    that the enumeration does not fail whatever shares numbers."""
    mutant = Mutant(RULES["reject"], None, unrooted_noise, unrooted_proposal)
    assert all(run(mutant, 2, constant(2, 5), seed).passed for seed in range(4))
