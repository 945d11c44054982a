"""The drafter of user-predicted text: against a loop, and after every kind of edit."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.drafters.predicted import PredictedDrafter, PredictedOptions
from paceline.errors import ConfigError, RequestError

TEXT = st.lists(st.integers(0, 3), max_size=40)


class Oracle:
    """One row's prediction, place by place."""

    def __init__(self, prediction: list[int], prompt: int, least: int, most: int) -> None:
        self.prediction, self.prompt, self.least, self.most = prediction, prompt, least, most
        self.place, self.seen = 0, prompt

    def run(self, output: list[int], place: int) -> int:
        """How many tokens before `place` equal the output's last; the starts are equal too."""
        for size in range(self.most):
            i, j = len(output) - 1 - size, place - 1 - size
            if i < 0 and j < 0:
                return self.most
            if i < 0 or j < 0 or output[i] != self.prediction[j]:
                return size
        return self.most

    def propose(self, text: list[int], k: int) -> list[int]:
        output, straight = text[self.prompt :], self.place + len(text) - self.seen
        size = len(self.prediction)
        order = [*range(self.place, size + 1), *range(self.place)]
        score = {at: self.run(output, at) + (at == straight) for at in order}
        best = max(order, key=score.__getitem__)  # the first of the greatest
        if score[best] < self.least:
            return []
        self.place, self.seen = best, len(text)
        return self.prediction[best : best + k]


def bound(
    world: Any, prompt: list[int], prediction: list[int], length: int, k: int, *sizes: int
) -> PredictedDrafter:
    drafter = PredictedDrafter(PredictedOptions(*sizes))
    drafter.bind(None, world.limits(slots=2, max_length=length, max_k=k))  # type: ignore[arg-type]
    drafter.admit(1, world.request(prompt, prediction))
    return drafter


@given(
    data=st.lists(
        st.tuples(
            st.lists(st.integers(0, 3), min_size=1, max_size=5),
            TEXT,
            TEXT,
            st.none() | st.integers(0, 4),
        ),
        min_size=1,
        max_size=4,
    ),
    sizes=st.tuples(st.integers(2, 6), st.integers(2, 6)),
    steps=st.lists(st.integers(0, 5), min_size=1, max_size=12),
    k=st.integers(1, 8),
)
def test_equals_the_loop_over_rounds(
    world: Any,
    data: list[tuple[list[int], list[int], list[int], int | None]],
    sizes: tuple[int, int],
    steps: list[int],
    k: int,
) -> None:
    """Rows of a batch, each at its own length, equal the loop row by row in every round."""
    least, most = min(sizes), max(sizes)
    limits = world.limits()
    drafter = PredictedDrafter(PredictedOptions(least, most))
    drafter.bind(None, limits)  # type: ignore[arg-type]
    slots = list(range(len(data), 0, -1))
    oracles, fulls = [], []
    for slot, (prompt, prediction, answer, cut) in zip(slots, data, strict=True):
        drafter.admit(slot, world.request(prompt, prediction))
        oracles.append(Oracle(prediction, len(prompt), least, most))
        # Half of the answers are the prediction with something else in its middle.
        if cut is not None:
            half = len(prediction) // 2
            answer = [*prediction[:half], *answer[:4], *prediction[half + cut :]]
        fulls.append([*prompt, *answer])
    lengths = [len(item[0]) for item in data]
    for step in steps:
        texts = [full[:n] for full, n in zip(fulls, lengths, strict=True)]
        want = [oracle.propose(text, k) for oracle, text in zip(oracles, texts, strict=True)]
        assert world.propose(drafter, world.rows(texts, slots, limits), k) == want
        lengths = [
            min(n + step + row, len(full))
            for row, (n, full) in enumerate(zip(lengths, fulls, strict=True))
        ]


def words(count: int, seed: int = 0) -> list[int]:
    """Text with local repetition, as code has: 40 words in phrases of five, drawn again."""
    source = random.Random(seed)
    phrases = [[source.randrange(40) for _ in range(5)] for _ in range(40)]
    return [token for _ in range(count // 5) for token in source.choice(phrases)]


@pytest.mark.parametrize("k", [1, 4, 8])
def test_unchanged_prediction_is_accepted_whole(world: Any, k: int) -> None:
    answer = words(200)
    drafter = bound(world, [1, 2, 3], answer, 210, k)
    rounds = list(world.write(drafter, [1, 2, 3], answer, k))
    assert len(rounds) == -(-200 // (k + 1))
    assert all(right == len(draft) for _, draft, right in rounds)


def test_prompt_that_ends_like_the_prediction_is_not_output(world: Any) -> None:
    """Only output is matched: the prompt often holds the text that is to be edited."""
    text = words(50)
    drafter = bound(world, text, text, 120, 4)
    rounds = list(world.write(drafter, text, text, 4))
    assert len(rounds) == 10


EDITS = {
    "insertion": ([*words(60)], [*words(60)[:30], 41, 42, 43, 44, *words(60)[30:]]),
    "deletion": ([*words(60)], [*words(60)[:30], *words(60)[36:]]),
    "replacement": ([*words(60)], [*words(60)[:30], 41, *words(60)[31:]]),
    "longer": ([*words(60)], [*words(60)[:30], 41, 42, 43, *words(60)[31:]]),
    "shorter": ([*words(60)], [*words(60)[:30], 41, *words(60)[34:]]),
    "first token": ([*words(60)], [41, *words(60)[1:]]),
    "inserted first": ([*words(60)], [41, 42, *words(60)]),
    "cut off at the start": ([*words(60)], [*words(60)[7:]]),
}


@pytest.mark.parametrize("kind", EDITS)
def test_finds_its_place_after(world: Any, kind: str) -> None:
    """At most three tokens after the edit's last the draft is right again, to the end."""
    prediction, answer = EDITS[kind]
    common = next(
        n for n in range(1, 61) if n == 60 or prediction[60 - n :] != answer[len(answer) - n :]
    )
    edited = len(answer) - common + 1  # the answer's tokens from here on are the prediction's
    drafter = bound(world, [1], prediction, 80, 4)
    rounds = list(world.write(drafter, [1], answer, 4))
    after = [(draft, right) for at, draft, right in rounds if at >= edited + 3]
    assert after
    assert all(draft and right == len(draft) for draft, right in after)
    lost = sum(1 for at, _, right in rounds if at < edited + 3 and right < 4)
    assert lost <= 9


def test_nearest_place_after_the_last_known_is_preferred(world: Any) -> None:
    """The same line stands three times; after the second was edited, the third is next."""
    line = [20, 21, 22]
    prediction = [*line, 1, 4, 5, *line, 2, 6, 7, *line, 3]
    drafter = bound(world, [0], prediction, 40, 1)
    output = prediction[:10]  # through the second occurrence and a token more
    for n in range(11):
        text = [0, *output[:n]]
        world.propose(drafter, world.rows([text], [1], world.limits(2, 40, 1)), 1)
    text = [0, *output, 30, *line]  # something new, then the line again
    rows = world.rows([text], [1], world.limits(2, 40, 1))
    assert world.propose(drafter, rows, 1) == [[3]]


def test_goes_back_where_only_there_it_matches(world: Any) -> None:
    prediction = [10, 11, 12, 13, 14, 15, 16, 17, 18]
    drafter = bound(world, [0], prediction, 40, 2)
    limits = world.limits(2, 40, 2)
    world.propose(drafter, world.rows([[0, *prediction[:8]]], [1], limits), 2)
    text = [0, *prediction[:8], 30, 11, 12, 13]
    assert world.propose(drafter, world.rows([text], [1], limits), 2) == [[14, 15]]


def test_one_token_is_enough_straight_on(world: Any) -> None:
    """After a replaced token one right token is enough, elsewhere two; also before any draft."""
    prediction = [10, 11, 12, 13, 14, 15]
    limits = world.limits(2, 40, 2)
    for drafted in (True, False):
        drafter = bound(world, [0, 0, 0], prediction, 40, 2)
        if drafted:
            world.propose(drafter, world.rows([[0, 0, 0]], [1], limits), 2)
        replaced = world.rows([[0, 0, 0, 10, 41]], [1], limits)
        assert world.propose(drafter, replaced, 2) == [[]]
        straight = world.rows([[0, 0, 0, 10, 41, 12]], [1], limits)
        assert world.propose(drafter, straight, 2) == [[13, 14]]
        drafter = bound(world, [0, 0, 0], prediction, 40, 2)
        elsewhere = world.rows([[0, 0, 0, 10, 41, 13]], [1], limits)
        assert world.propose(drafter, elsewhere, 2) == [[]]
        elsewhere = world.rows([[0, 0, 0, 10, 41, 13, 14]], [1], limits)
        assert world.propose(drafter, elsewhere, 2) == [[15]]


def test_asking_twice_changes_nothing(world: Any) -> None:
    prediction = words(40)
    drafter = bound(world, [0], prediction, 60, 4)
    rows = world.rows([[0, *prediction[:20]]], [1], world.limits(2, 60, 4))
    assert world.propose(drafter, rows, 4) == world.propose(drafter, rows, 4)


def test_no_prediction_end_of_prediction_and_release(world: Any) -> None:
    limits = world.limits(2, 40, 4)
    drafter = bound(world, [0], [], 40, 4)
    assert world.propose(drafter, world.rows([[0]], [1], limits), 4) == [[]]
    drafter.admit(1, world.request([0], [5, 6, 7]))
    assert world.propose(drafter, world.rows([[0]], [1], limits), 4) == [[5, 6, 7]]
    assert world.propose(drafter, world.rows([[0, 5, 6]], [1], limits), 4) == [[7]]
    assert world.propose(drafter, world.rows([[0, 5, 6, 7]], [1], limits), 4) == [[]]
    assert world.propose(drafter, world.rows([[0, 5, 6, 7, 8]], [1], limits), 4) == [[]]
    drafter.release(1)
    assert world.propose(drafter, world.rows([[0]], [1], limits), 4) == [[]]


def test_too_long_a_prediction_is_cut_and_the_slot_may_be_full(world: Any) -> None:
    prediction = words(100)
    drafter = bound(world, [0], prediction, 20, 8)
    limits = world.limits(2, 20, 8)
    assert world.propose(drafter, world.rows([[0]], [1], limits), 8) == [prediction[:8]]
    text = [0, *prediction[:19]]
    assert world.propose(drafter, world.rows([text], [1], limits), 8) == [prediction[19:20]]


def test_a_shorter_prediction_leaves_nothing_of_a_longer_one(world: Any) -> None:
    """The output meets more of the prediction that was there before than of the present one."""
    limits = world.limits(3, 40, 4)
    drafter = PredictedDrafter()
    drafter.bind(None, limits)  # type: ignore[arg-type]
    drafter.admit(1, world.request([0], [30, 31, 32, 33, 34, 35, 1, 5, 6, 36]))
    drafter.admit(2, world.request([0], range(40)))
    drafter.release(1)
    drafter.admit(1, world.request([0], [10, 11, 5, 6, 7]))
    rows = world.rows([[0], [0, 10, 11, 1, 5, 6]], [2, 1], limits)
    assert world.propose(drafter, rows, 4) == [[0, 1, 2, 3], [7]]


@pytest.mark.parametrize("token", [-1, 50])
def test_refuses_a_token_outside_the_vocabulary(world: Any, token: int) -> None:
    with pytest.raises(RequestError, match="outside the vocabulary"):
        bound(world, [0], [1, token], 40, 4)


@pytest.mark.parametrize("sizes", [(1, 4), (5, 4), (2, 21)])
def test_refuses_impossible_sizes(sizes: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="min and max"):
        PredictedDrafter(PredictedOptions(*sizes))
