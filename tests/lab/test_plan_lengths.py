"""How long texts are, where some were cut off: the estimate, in a plan, and in a probe."""

from __future__ import annotations

import random
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import tiny_checkpoint
from plan_tools import measured

from paceline import ConfigError, Engine, SamplingParams
from paceline.lab.plan_acceptance import Counts
from paceline.lab.plan_answer import Question, answer
from paceline.lab.plan_fit import Text
from paceline.lab.plan_lengths import mean_length
from paceline.lab.plan_loop import Probe, closed_loop
from paceline.lab.plan_measured import Measured
from paceline.lab.plan_model import Traffic
from paceline.lab.plan_words import verdict


def test_by_hand() -> None:
    assert mean_length([]) == (0.0, 0.0)
    assert mean_length([(3, True), (5, True), (10, True)]) == pytest.approx((6.0, 0.0))
    # Of four, one ended at 2, one was cut at 4; of the two then left one ended at 6, one at 10.
    some = [(10, True), (4, False), (2, True), (6, True)]
    assert mean_length(some) == pytest.approx((2 + 0.75 * 4 + 0.375 * 4, 0.0))
    # One cut where another ended might have ended there too.
    assert mean_length([(4, False), (4, True), (8, True)])[0] == pytest.approx(4 + 4 * 2 / 3)
    # The longest was cut off: what lies behind it counts for nothing.
    assert mean_length([(2, True), (6, False)]) == pytest.approx((2 + 0.5 * 4, 0.5))
    assert mean_length([(2, False), (6, False)]) == (6.0, 1.0)


def test_texts_of_a_stretch_that_is_short_for_them() -> None:
    """A closed loop of clients, one after the other, each for so long: those that end in it are
    half as long as texts are."""
    draw, seen, ends = random.Random(1), list[tuple[int, bool]](), list[int]()
    for _ in range(4000):
        left = 120
        while left > 0:
            length = min(128, 1 + int(draw.expovariate(1 / 60)))
            ended = length <= left
            seen.append((min(length, left), ended))
            ends += [length] if ended else []
            left -= length
    texts = [min(128, 1 + int(draw.expovariate(1 / 60))) for _ in range(40000)]
    wanted = statistics.fmean(min(length, 120) for length in texts)
    mean, beyond = mean_length(seen)
    assert mean == pytest.approx(wanted, rel=0.03)
    assert beyond == pytest.approx(sum(length > 120 for length in texts) / len(texts), rel=0.1)
    assert statistics.fmean(ends) < 0.75 * wanted


def of_lengths(*lengths: tuple[int, int, bool]) -> Measured:
    """Measurements whose texts have so many tokens of prompt and of their own."""
    found = measured(0.8)
    texts = tuple(Text(prompt, new, 20, Counts((), ()), whole=w) for prompt, new, w in lengths)
    (one,) = found.drafters
    runs = tuple(replace(run, texts=texts) if not run.k else run for run in one.runs)
    return replace(found, drafters=(replace(one, runs=tuple(r for r in runs if not r.k)),))


def test_a_plan_is_for_texts_as_long_as_they_are() -> None:
    some = of_lengths((10, 20, True), (100, 80, True), (100, 50, False), (50, 200, True))
    assert some.traffic() == Traffic(65.0, pytest.approx(20 + 0.75 * 60 + 0.375 * 120))
    assert some.longer() == 0.0
    run = some.drafters[0].runs[0]
    assert run.new == pytest.approx(some.traffic().new)
    plan = answer(some, Question((1,), draws=20))
    assert plan.longer == 0.0
    assert "longer" not in " ".join(verdict(plan))


def test_that_texts_are_longer_than_was_seen_is_said() -> None:
    found = measured(0.8)
    (one,) = found.drafters
    runs = tuple(
        replace(run, texts=(*run.texts[:10], *(replace(t, new=300, whole=False)
                                               for t in run.texts[10:])))
        for run in one.runs
    )  # fmt: skip
    cut = replace(found, drafters=(replace(one, runs=runs),))
    plan = answer(cut, Question((1, 4), draws=20))
    assert 200 < plan.traffic.new < 300
    assert plan.longer == cut.longer() > 0.4
    said = " ".join(verdict(plan))
    assert f"Texts are reckoned as {plan.traffic.new:.0f} tokens on average and are longer" in said
    asked = answer(cut, Question((1, 4), traffic=Traffic(100.0, 250.0), draws=20))
    assert asked.longer == 0.0


def test_where_nothing_ended_texts_are_as_long_as_the_longest() -> None:
    cut = of_lengths((10, 20, False), (30, 80, False))
    assert cut.traffic() == Traffic(20.0, 80.0)
    assert cut.longer() == 1.0
    with pytest.raises(ConfigError, match="nothing was written"):
        of_lengths((10, 0, False)).traffic()


def test_a_text_of_a_probe_that_ends_by_itself_is_whole_whatever_its_limit(tmp_path: Path) -> None:
    """The first ones, which have limits of their own, and those of a few tokens too; at its own
    limit a text is cut off."""
    stops = tuple(range(0, 256, 5))
    params = SamplingParams(max_tokens=16, temperature=1.0, stop_token_ids=stops)
    probe = Probe(("def f(x):", "abc"), params, (1, 4), (1,))
    with Engine(tiny_checkpoint(tmp_path / "t"), slots=4, dtype="float32", threads=1,
                max_length=64, prefix_cache=False) as engine:  # fmt: skip
        loop = closed_loop(engine, probe, 4, 0, 2.0)
        first = list(zip(loop.texts[:4], (4, 8, 12, 16), strict=True))
        assert all(text.new <= limit for text, limit in first)
        assert any(text.new < limit < 16 for text, limit in first)
        assert all(text.whole for text, limit in first if text.new < limit)
        assert sum(not text.whole for text in loop.texts) <= 3 + 4  # at a limit, or in the end
        few = closed_loop(engine, probe, 4, 0, 1.0, tokens=4)
        assert any(text.whole for text in few.texts)
        assert not any(text.tested.evaluated for text in few.texts)
