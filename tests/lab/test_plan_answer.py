"""Answers: what is recommended, where it stops paying, how it is said, and what can be run."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from plan_tools import measured, run

from paceline import ConfigError, EngineConfig
from paceline.config import load_toml
from paceline.lab.plan_acceptance import Acceptance, Counts
from paceline.lab.plan_answer import Question, answer
from paceline.lab.plan_measured import Measured, load, save
from paceline.lab.plan_model import constant, predict, tokens_per_round
from paceline.lab.plan_serve import fixed_k, toml, wanted
from paceline.lab.plan_vllm import check, command
from paceline.lab.plan_words import checked, verdict

LOADS = (1, 4, 16, 64)


def true_best(found: Measured, load: int, alpha: float) -> int:
    made = found.drafters[0].fitted().machine
    ks = found.drafters[0].ks
    return max(ks, key=lambda k: predict(made, found.traffic(), load, k, constant(alpha, k)).tok_s)


def test_speculation_that_pays_at_small_loads_alone() -> None:
    found = measured(0.7, wider=0.0008)
    plan = answer(found, Question(LOADS, draws=20))
    assert plan.drafter == "model"
    assert [k > 0 for k in plan.ks] == [True, True, True, False]
    assert plan.stops == 64
    assert plan.ks[0] == true_best(found, 1, 0.7)
    said = " ".join(verdict(plan))
    assert "Use the drafter model with K up to" in said
    assert "It stops paying at 64 texts at a time" in said
    for one in plan.settings:
        assert one.low <= one.speed_up <= one.high


def test_speculation_that_never_pays() -> None:
    plan = answer(measured(0.1, draft=0.01), Question(LOADS, draws=20))
    assert plan.drafter is None
    assert plan.k == 0
    assert plan.stops == 1
    assert "Use plain decoding" in verdict(plan)[0]


def test_of_two_drafters_the_better_one() -> None:
    good, bad = measured(0.85), measured(0.5, drafter="ngram", draft=0.0001)
    both = replace(good, drafters=(*bad.drafters, *good.drafters))
    plan = answer(both, Question(LOADS, draws=20))
    assert plan.drafter == "model"
    assert {one.drafter for one in plan.settings} == {"model", "ngram"}
    assert plan.memory == {"ngram": 350, "model": 350}


def test_a_wanted_time_a_token_bounds_the_load() -> None:
    found = measured(0.8)
    loose = answer(found, Question(LOADS, tpot=1.0, draws=20))
    assert loose.fits == (64, 64)
    plain16 = loose.plain[2].tpot
    tight = answer(found, Question(LOADS, tpot=plain16 * 0.7, draws=20))
    assert tight.fits is not None
    assert tight.fits[0] < tight.fits[1]
    assert answer(found, Question(LOADS, tpot=1e-6, draws=20)).fits == (0, 0)


def test_the_curve_rises_with_acceptance_and_with_a_cheaper_drafter() -> None:
    plan = answer(measured(0.6), Question((1, 16), draws=20))
    for count in (1, 16):
        for cost in (1.0, 0.5, 0.25):
            row = [w.speed_up for w in plan.curve if w.load == count and w.cost == cost]
            assert row == sorted(row)
        top = [w.speed_up for w in plan.curve if w.load == count and w.acceptance == 0.8]
        assert top == sorted(top)


def test_predictions_are_held_against_runs_that_were_kept_apart() -> None:
    base = measured(0.8)
    made = base.drafters[0].fitted().machine
    checks = (run(made, 4, 2, 0.8), run(made, 16, 8, 0.8))
    plan = answer(measured(0.8, checks=checks), Question(LOADS, draws=20))
    assert [abs(each.error) < 0.05 for each in plan.checks] == [True, True]
    assert "2 points not used for fitting" in (checked(plan) or "")
    # A machine that turned out half as fast is told so.
    slow = replace(checks[0], seconds=checks[0].seconds * 2)
    plan = answer(measured(0.8, checks=(slow,)), Question(LOADS, draws=20))
    assert plan.checks[0].error == pytest.approx(1.0, abs=0.1)


def test_how_near_the_engines_own_choice_comes_to_the_best() -> None:
    whole = measured(0.8)
    (found,) = whole.drafters
    assert found.pace() == 1.0  # nobody measured it
    made, law = found.fitted().machine, found.accepted().conditional()

    def price(load: int, k: int) -> float:
        return made.round(load, k, 200.0) / tokens_per_round(law, k)

    top = min(found.ks, key=lambda k: price(16, k))
    assert 0 < top < 8
    # A hundred rounds of the best, or of another K, however long the machine took for them.
    base = replace(run(made, 16, 8, 0.8), context=200.0)
    alone = replace(base, by_k=(*[0] * top, 100))
    assert replace(found, adaptive=(alone,)).pace() == pytest.approx(1.0)
    plain = replace(base, by_k=(100,), seconds=base.seconds * 7)
    wanted = price(16, 0) / price(16, top)
    slow = replace(found, adaptive=(plain,))
    assert slow.pace() == pytest.approx(wanted)
    mixed = replace(base, by_k=(50, *[0] * (top - 1), 50))
    assert 1.0 < replace(found, adaptive=(mixed,)).pace() < wanted
    assert replace(found, adaptive=(base,)).pace() == 1.0  # nobody counted its rounds
    # Another traffic's acceptance says nothing of these runs.
    other = replace(whole, drafters=(slow,)).with_acceptance(
        Acceptance((Counts((100,), (20,)),)), "elsewhere"
    )
    assert other.drafters[0].pace() == slow.pace()


def test_rounds_are_those_that_were_counted() -> None:
    made = measured(0.8).drafters[0].fitted().machine
    one = run(made, 4, 4, 0.8)
    assert one.rounds == pytest.approx(one.tokens / 4 / one.per_round)
    assert replace(one, by_k=(3, 0, 7)).rounds == 10


def test_loads_beyond_what_was_measured_are_named() -> None:
    plan = answer(measured(), Question((1, 256), draws=20))
    assert plan.beyond == (256,)
    assert "extrapolated" in verdict(plan)[-1]


def test_without_plain_decoding_there_is_no_answer() -> None:
    found = measured()
    one = replace(found.drafters[0], runs=tuple(r for r in found.drafters[0].runs if r.k))
    with pytest.raises(ConfigError, match="plain decoding was not measured"):
        answer(replace(found, drafters=(one,)), Question((1,), draws=20))


def test_acceptance_from_elsewhere_takes_the_place_of_the_runs() -> None:
    found = measured(0.8)
    poor = Acceptance((Counts((1000, 100), (100, 10)),))
    plan = answer(found.with_acceptance(poor, "a server"), Question((1,), draws=20))
    assert plan.acceptance["model"] == pytest.approx((0.1, 0.1), abs=0.01)
    assert plan.best[0] is None or plan.best[0].speed_up < 1.2
    both = replace(found, drafters=found.drafters * 2)
    with pytest.raises(ConfigError, match="metrics are of one drafter"):
        both.with_acceptance(poor, "a server")


@pytest.mark.parametrize(
    ("drafter", "taken"),
    [("model", True), ("ngram+model", True), ("model:path=x/ngram", True), ("ngram", False),
     ("ngram:min=3", False), ("predicted", False), ("predicted+ngram", False)],
)  # fmt: skip
def test_rounds_without_a_draft_are_in_no_metrics(drafter: str, taken: bool) -> None:
    found, seen = measured(0.8, drafter), Acceptance((Counts((1000,), (900,)),))
    if taken:
        assert found.with_acceptance(seen, "a server").drafters[0].accepted() == seen
        return
    with pytest.raises(ConfigError, match=r"rounds in which .* had no draft.*--file"):
        found.with_acceptance(seen, "a server")


# --- kept measurements --------------------------------------------------------------------------


def test_measurements_are_the_same_when_read_again(tmp_path: Path) -> None:
    found, file = measured(), tmp_path / "m.json"
    save(found, file)
    again = load(file)
    assert again.drafters[0].ks == found.drafters[0].ks
    first, second = (
        answer(found, Question(LOADS, draws=20)),
        answer(again, Question(LOADS, draws=20)),
    )
    assert first.ks == second.ks
    for a, b in zip(first.settings, second.settings, strict=True):
        assert a.speed_up == pytest.approx(b.speed_up)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("{}", "source is missing"),
        ('{"source": "x", "target": "t", "drafters": []}', "no drafter was measured"),
        (
            '{"source": "x", "target": "t", "drafters": '
            '[{"drafter": "m", "points": [], "ks": [0], "runs": []}]}',
            "at least one measured verify window",
        ),
        ('{"source": "x", "target": "t", "drafters": [], "format": 9}', "format 9"),
        (
            '{"source": "x", "target": "t", "drafters": [{"drafter": "m", "points": [], "ks": [0], '
            '"runs": [{"drafter": "m", "load": 1, "k": 0, "seconds": 1, "tokens": 0, "begun": 0, '
            '"per_round": 1, "prompt": 9, "context": 9, "texts": []}]}]}',
            "a run has texts, tokens and seconds",
        ),
    ],
)
def test_a_file_that_is_no_measurement(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "m.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "none.json")


# --- what can be run ----------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["match", "reject"])
def test_the_config_is_what_serve_reads(rule: str, tmp_path: Path) -> None:
    found = measured(0.7, wider=0.0008)
    found = replace(found, engine=found.engine | {"rule": rule})
    plan = answer(found, Question(LOADS, draws=20))
    file = tmp_path / "paceline.toml"
    file.write_text(toml(plan, found))
    config = load_toml(file)
    assert config == EngineConfig.make(**tomllib.loads(file.read_text()))
    assert (config.target, config.draft, config.drafter) == ("org/target", "org/draft", "model")
    assert config.slots == 64
    assert config.max_length == 4096
    assert config.rule == rule
    assert config.adaptive == (rule == "match")
    assert config.k == (plan.k if rule == "match" else fixed_k(plan))


def test_where_nothing_pays_plain_decoding_is_served(tmp_path: Path) -> None:
    found = measured(0.1, draft=0.01)
    file = tmp_path / "paceline.toml"
    file.write_text(toml(answer(found, Question(LOADS, draws=20)), found))
    config = load_toml(file)
    assert (config.drafter, config.k, config.draft) == ("none", 0, None)


def test_one_k_for_all_loads_is_the_best_of_them() -> None:
    found = measured(0.7, wider=0.0008)
    plan = answer(found, Question(LOADS, draws=20))
    gains = {}
    for k in (1, 2, 4, 8):
        gains[k] = 1.0
        for one in plan.settings:
            gains[k] *= one.speed_up if one.point.k == k else 1.0
    top = max(gains, key=gains.__getitem__)
    assert fixed_k(plan) == (top if gains[top] > 1 else 0)


@pytest.mark.parametrize("acceptance", [0.1, 0.7])
@pytest.mark.parametrize("wider", [0.0002, 0.001])
@pytest.mark.parametrize("drafter", ["model", "ngram"])
def test_every_line_for_vllm_is_borne_out_by_its_table(
    acceptance: float, wider: float, drafter: str
) -> None:
    found = measured(acceptance, drafter, wider=wider)
    plan = answer(found, Question(LOADS, draws=20))
    made = command(wanted(plan, found, (), False))
    assert made.line is not None
    assert check(made.line) == []
    assert ("--speculative-config" in made.line) == (plan.drafter is not None)


def test_runs_that_do_not_fit_together_are_not_to_be_trusted() -> None:
    found = measured(0.8)
    odd = tuple(
        replace(each, seconds=each.seconds * (3.0 if number % 2 else 1.0))
        for number, each in enumerate(found.drafters[0].runs)
    )
    spoiled = replace(found, drafters=(replace(found.drafters[0], runs=odd),))
    assert "Do not trust this" in " ".join(verdict(answer(spoiled, Question(LOADS, draws=20))))
    assert "trust" not in " ".join(verdict(answer(found, Question(LOADS, draws=20))))
