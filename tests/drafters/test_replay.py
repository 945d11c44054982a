"""The replay drafter: the right place, the set rate, the same in every round."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.drafters.replay import ReplayDrafter, ReplayOptions, read_answers, spoil
from paceline.errors import ConfigError

PROMPT = (1, 2, 3)
ANSWER = tuple((7 * i) % 50 for i in range(40))


def bound(world: Any, error: float = 0.0, length: int = 64, **answers: Any) -> ReplayDrafter:
    given = answers.get("answers", {PROMPT: ANSWER})
    drafter = ReplayDrafter(ReplayOptions(error=error, seed=5), given)
    drafter.bind(None, world.limits(max_length=length))  # type: ignore[arg-type]
    return drafter


@given(written=st.integers(0, 44), k=st.integers(1, 8), slot=st.integers(1, 5))
def test_proposes_from_the_right_place(world: Any, written: int, k: int, slot: int) -> None:
    drafter, limits = bound(world), world.limits()
    drafter.admit(slot, world.request(PROMPT))
    text = [*PROMPT, *ANSWER, 1, 1, 1, 1][: 3 + written]
    rows = world.rows([text], [slot], limits)
    assert world.propose(drafter, rows, k) == [list(ANSWER[written : written + k])]


def test_rows_are_independent(world: Any) -> None:
    """Two answers at different places, a prompt that is not known, an idle row."""
    other = tuple(reversed(ANSWER))
    drafter, limits = bound(world, answers={PROMPT: ANSWER, (9,): other}), world.limits()
    drafter.admit(4, world.request(PROMPT))
    drafter.admit(2, world.request((9,)))
    drafter.admit(3, world.request((8,)))
    rows = world.rows([[*PROMPT, *ANSWER[:5]], [9, *other[:38]], [8, 1], []], [4, 2, 3, 0], limits)
    assert world.propose(drafter, rows, 4) == [list(ANSWER[5:9]), list(other[38:]), [], []]
    drafter.release(4)
    assert world.propose(drafter, rows, 4) == [[], list(other[38:]), [], []]


def test_the_same_at_every_k_and_round(world: Any) -> None:
    drafter, limits = bound(world, error=0.4), world.limits()
    drafter.admit(1, world.request(PROMPT))
    spoiled = list(spoil(ANSWER, PROMPT, 0.4, 5, world.vocab))
    for written in range(40):
        rows = world.rows([[*PROMPT, *ANSWER[:written]]], [1], limits)
        for k in (1, 3, 8):
            assert world.propose(drafter, rows, k) == [spoiled[written : written + k]]


@pytest.mark.parametrize("error", [0.0, 0.2, 0.7, 1.0])
def test_the_set_rate(error: float) -> None:
    """Of 20000 positions the spoiled share is within five standard deviations."""
    answer = tuple(i % 50 for i in range(20_000))
    spoiled = spoil(answer, PROMPT, error, 3, 50)
    share = sum(a != b for a, b in zip(answer, spoiled, strict=True)) / len(answer)
    assert abs(share - error) <= 5 * (error * (1 - error) / len(answer)) ** 0.5
    assert all(0 <= token < 50 for token in spoiled)


def test_spoiling_depends_on_seed_prompt_and_position_alone() -> None:
    whole = spoil(ANSWER, PROMPT, 0.5, 1, 50)
    assert whole == spoil(ANSWER, PROMPT, 0.5, 1, 50)
    assert whole[:10] == spoil(ANSWER[:10], PROMPT, 0.5, 1, 50)
    assert whole != spoil(ANSWER, PROMPT, 0.5, 2, 50)
    assert whole != spoil(ANSWER, (1, 2), 0.5, 1, 50)
    more = spoil(ANSWER, PROMPT, 0.8, 1, 50)
    assert all(b != a for a, b, low in zip(ANSWER, more, whole, strict=True) if low != a)


def test_one_token_vocabulary_cannot_be_spoiled() -> None:
    assert spoil((0, 0), (0,), 1.0, 0, 1) == (0, 0)
    assert set(spoil((0, 1) * 20, (0,), 1.0, 0, 2)) == {0, 1}


def test_longer_answer_than_the_slot_is_cut(world: Any) -> None:
    drafter, limits = bound(world, length=16), world.limits(max_length=16)
    drafter.admit(1, world.request(PROMPT))
    rows = world.rows([[*PROMPT, *ANSWER[:13]]], [1], limits)
    assert world.propose(drafter, rows, 8) == [list(ANSWER[13:16])]


@pytest.mark.parametrize("form", ["list", "lines"])
def test_reads_both_forms_of_file(tmp_path: Path, form: str) -> None:
    items = [{"prompt": [1], "answer": [2, 3]}, {"prompt": [4, 5], "answer": [], "note": "kept"}]
    text = json.dumps(items) if form == "list" else "\n".join(json.dumps(i) for i in items) + "\n"
    path = tmp_path / "answers.json"
    path.write_text(text)
    assert read_answers(str(path)) == {(1,): (2, 3), (4, 5): ()}


@pytest.mark.parametrize(
    "text", ["{", "[1]", '{"prompt": [1]}', '{"prompt": [1], "answer": "text"}', '["a", "b"]']
)
def test_refuses_another_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "answers.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="must hold"):
        read_answers(str(path))


def test_errors_say_what_to_do(world: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no answers"):
        ReplayDrafter()
    with pytest.raises(ConfigError, match="cannot be read"):
        ReplayDrafter(ReplayOptions(path=str(tmp_path / "missing")))
    with pytest.raises(ConfigError, match="error must be 0 to 1"):
        ReplayDrafter(ReplayOptions(error=1.5), {})
    with pytest.raises(ConfigError, match="outside the target's vocabulary"):
        bound(world, answers={PROMPT: (50,)})


def test_made_by_name(world: Any, tmp_path: Path) -> None:
    from paceline.drafters import create

    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({"prompt": [1], "answer": [2, 3]}))
    drafter = create(f"replay:path={path},error=0.25,seed=9")
    assert isinstance(drafter, ReplayDrafter)
    assert drafter.options == ReplayOptions(path=str(path), error=0.25, seed=9)
