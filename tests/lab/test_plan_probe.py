"""The probe: what a closed loop counts, however short its texts, on an engine that is real."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from helpers import tiny_checkpoint

from paceline import Engine, SamplingParams
from paceline.lab import plan_probe
from paceline.lab.plan_fit import Run
from paceline.lab.plan_loop import Probe, closed_loop
from paceline.lab.plan_probe import (
    check_points,
    chosen_loads,
    measure_engine,
    plan_runs,
)

PROMPTS = ("def f(x):", tuple(range(40, 90)), [{"role": "user", "content": "hi"}])


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    place = tmp_path_factory.mktemp("probe")
    target = tiny_checkpoint(place / "t")
    draft = tiny_checkpoint(place / "d", num_hidden_layers=1)
    with Engine(target, draft=draft, k=3, slots=3, dtype="float32", threads=1, max_length=128,
                prefix_cache=False, adaptive=True) as engine:  # fmt: skip
        yield engine


def asked(tokens: int = 16, seconds: float = 1.0) -> Probe:
    return Probe(PROMPTS, SamplingParams(max_tokens=tokens, ignore_eos=True), (1, 3), (1, 2, 3),
                 seconds)  # fmt: skip


@pytest.mark.parametrize("k", [0, 3])
def test_a_closed_loop_counts_what_was_written(engine: Engine, k: int) -> None:
    run = closed_loop(engine, asked(), 3, k, 0.3)
    assert (run.load, run.k) == (3, k)
    assert 0 < run.tokens <= sum(text.new for text in run.texts)
    assert run.seconds >= 0.3
    assert 1.0 <= run.per_round <= k + 1
    assert 0 < run.rounds == sum(run.by_k)
    assert sum(run.by_k[1:]) == 0 or k  # plain rounds alone, or also those before a first draft
    assert run.tokens <= run.rounds * 3 * (k + 1) + 3 * (k + 1)
    whole = [text for text in run.texts if text.whole]
    assert {text.new for text in whole} <= {16}
    for text in run.texts:
        assert bool(text.tested.evaluated) == (k > 0 and text.rounds > 2) or text.rounds <= 2
        assert text.prompt > 0
    assert engine.stats().waiting == 0


def test_texts_of_a_few_tokens_end_faster_than_all_can_be_seen_at_once(engine: Engine) -> None:
    run = closed_loop(engine, asked(), 3, 3, 0.01, tokens=1)
    assert run.begun >= 6
    assert run.tokens == run.begun  # one token each
    assert not any(text.whole or text.tested.evaluated for text in run.texts)


def test_texts_that_end_sooner_than_asked_do_not_keep_a_run_from_beginning(
    engine: Engine,
) -> None:
    """Of texts of one token there is never one in every place at once."""
    run = closed_loop(engine, asked(tokens=1), 3, 0, 0.05)
    assert run.tokens > 0
    assert run.seconds >= 0.05


def test_a_probe_keeps_what_a_plan_needs_and_leaves_the_engine_as_it_was(engine: Engine) -> None:
    text = engine.generate("abc", SamplingParams(max_tokens=8))[0].text
    told: list[str] = []
    found = measure_engine(engine, "model", asked(), told.append)
    assert [(run.load, run.k) for run in found.runs] == [
        (load, k) for load, k, _ in plan_runs(asked(), found.ks)
    ]
    assert 0 <= len(told) - 1 - len(found.runs) - len(found.adaptive) <= 2  # some twice
    assert [(run.load, run.k) for run in found.adaptive] == [(3, 3)]
    assert found.pace() >= 1.0 - 1e-9
    assert all(sum(run.by_k) > 0 for run in (*found.runs, *found.adaptive))
    assert {run.drafter for run in found.runs} == {"model"}
    assert found.rows == 3
    assert found.accepted().rate is not None
    assert found.fitted().machine.round(2, 2, 40.0) > 0
    assert engine.generate("abc", SamplingParams(max_tokens=8))[0].text == text
    assert "drafts, as asked" not in engine.stats().speculation  # it chooses K again


@pytest.mark.parametrize("k", [0, 3])
def test_contexts_are_those_that_the_texts_had(engine: Engine, k: int) -> None:
    """In a run of a text a client the first texts, that end one after the other, count too: on
    average a third of a text stands behind a prompt, and a half only in the long run."""
    probe = asked(tokens=48)
    run = closed_loop(engine, probe, 3, k, 0.0, least=3 * 48)
    assert 3 * 48 <= run.tokens < 4 * 48
    assert run.begun >= 2
    assert run.prompt + 0.15 * 48 < run.context < run.prompt + 0.5 * 48


def test_a_run_that_does_not_fit_is_measured_again_and_the_quicker_counts(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, told = plan_probe.closed_loop, list[str]()

    def disturbed(*given: Any) -> Run:
        found = whole(*given)
        first = not any("3 at a time, K = 2" in line for line in told[:-1])
        slow = 5.0 if told[-1].endswith("3 at a time, K = 2") and first else 1.0
        return replace(found, seconds=slow * found.seconds)

    monkeypatch.setattr(plan_probe, "closed_loop", disturbed)
    monkeypatch.setattr(plan_probe, "doubtful", lambda costs, runs: [
        place for place, run in enumerate(runs) if run.seconds > 1.0 and run.k == 2])  # fmt: skip
    found = measure_engine(engine, "model", asked(), told.append)
    assert sum("3 at a time, K = 2" in line for line in told) == 3  # short, too
    assert all(run.seconds < 1.0 for run in found.runs)
    assert [(run.load, run.k) for run in found.runs] == [
        (load, k) for load, k, _ in plan_runs(asked(), found.ks)
    ]


def test_runs_of_a_probe() -> None:
    probe = Probe(PROMPTS, SamplingParams(), (1, 2, 8, 64), (1, 2, 4, 8))
    runs = plan_runs(probe, (0, 1, 2, 4, 8))
    assert {load for load, _, _ in runs} == {1, 8, 64}
    assert {k for load, k, _ in runs if load == 64} == {0, 1, 2, 8}
    assert sum(short for _, _, short in runs) == 2
    assert plan_runs(probe, (0,)) == [(1, 0, False), (8, 0, False), (64, 0, False)]
    assert chosen_loads(probe) == [8, 64]


@pytest.mark.parametrize("loads", [(1,), (1, 2), (1, 2, 4), (1, 4, 16, 64), (1, 2, 3, 5, 8)])
@pytest.mark.parametrize("ks", [tuple(range(9)), (0, 1, 2, 4, 8), (0, 3)])
def test_check_points_are_not_those_of_the_probe(
    loads: tuple[int, ...], ks: tuple[int, ...]
) -> None:
    for most in range(1, 9):
        probe = Probe(PROMPTS, SamplingParams(), loads, tuple(range(1, most + 1)))
        points = check_points(probe, ks)
        assert not {(load, k) for load, k, _ in plan_runs(probe, ks)} & set(points)
        assert len(points) == len(set(points)) <= 5
        assert {load for load, _ in points} <= set(loads)
        assert {k for _, k in points} <= set(ks)


def test_check_points_that_are_left() -> None:
    probe = Probe(PROMPTS, SamplingParams(), (1, 4, 16, 64), tuple(range(1, 9)))
    assert check_points(probe, range(9)) == ((4, 0), (1, 1), (1, 8), (64, 2), (64, 7))
    few = Probe(PROMPTS, SamplingParams(), (1, 2), (1,))
    assert check_points(few, (0, 1)) == ()
    assert check_points(few, (0,)) == ()


def test_points_to_check_are_measured_apart(engine: Engine) -> None:
    found = measure_engine(engine, "model", replace(asked(), check=True))
    wanted = check_points(asked(), found.ks)
    assert [(run.load, run.k) for run in found.checks] == list(wanted) == [(1, 1), (1, 3)]
    assert {run.drafter for run in found.checks} == {"model"}
    fitted = {(run.load, run.k) for run in found.runs}
    assert not fitted & {(run.load, run.k) for run in found.checks}
