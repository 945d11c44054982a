"""How texts differ in their acceptance, beyond what chance makes of it."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from paceline.lab.plan_acceptance import Acceptance, Counts, shifted

LAW, HIGH = (0.75, 0.7, 0.7, 0.65), (0.92, 0.9, 0.9, 0.9)


Law = tuple[float, ...]


def text(law: Law, rounds: int, draw: random.Random) -> Counts:
    """What so many rounds would count."""
    evaluated, accepted = [0] * len(law), [0] * len(law)
    for _ in range(rounds):
        for place, chance in enumerate(law):
            evaluated[place] += 1
            if draw.random() >= chance:
                break
            accepted[place] += 1
    return Counts(tuple(evaluated), tuple(accepted))


def test_a_law_is_shifted_in_logits() -> None:
    assert shifted(LAW, 0.0) == pytest.approx(LAW)
    for low, high in zip(LAW, shifted(LAW, 1.0), strict=True):
        assert math.log(high / (1 - high)) == pytest.approx(math.log(low / (1 - low)) + 1)
    assert shifted((0.0, 1.0), -2.0) == (0.0, 1.0)


@pytest.mark.parametrize("rounds", [15, 60])
@pytest.mark.parametrize("spread", [0.4, 0.8])
@pytest.mark.parametrize("law", [LAW, HIGH])
def test_the_texts_own_spread_is_found(law: Law, spread: float, rounds: int) -> None:
    draw = random.Random(3)
    texts = [text(shifted(law, draw.gauss(0, spread)), rounds, draw) for _ in range(1500)]
    offsets = Acceptance(tuple(texts)).offsets()
    assert len(offsets) > 1400
    assert statistics.pstdev(offsets) == pytest.approx(spread, rel=0.15)
    assert abs(statistics.fmean(offsets)) < 0.25 * spread


def test_chance_alone_is_no_difference() -> None:
    draw = random.Random(4)
    texts = [text(LAW, 20, draw) for _ in range(1500)]
    assert statistics.pstdev(Acceptance(tuple(texts)).offsets()) < 0.12


def test_too_few_texts_say_nothing_of_it() -> None:
    draw = random.Random(5)
    assert Acceptance(tuple(text(LAW, 20, draw) for _ in range(7))).offsets() == ()
    assert Acceptance(()).offsets() == ()
