"""paceline and transformers as contestants: the same prompt, the same ends, the same counts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from helpers import tiny_checkpoint

from paceline import Completion, Handle
from paceline.lab.bench_ask import Answer, Ask, Player
from paceline.lab.bench_paceline import PacelinePlayer
from paceline.lab.bench_record import Sampling
from paceline.lab.bench_spec import parse_contestant
from paceline.lab.bench_worker import open_player

PROMPT = "for i in range(10):\n    print(i)\nfor j in range("


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    target = tiny_checkpoint(folder / "target", seed=3)
    draft = tiny_checkpoint(folder / "draft", seed=3, num_hidden_layers=1)
    return {"target": str(target), "draft": str(draft), "dtype": "float32", "threads": "1",
            "max_length": "256"}  # fmt: skip


def asked(spec: str, shared: dict[str, str], *asks: Ask, texts: int = 1) -> list[Answer]:
    async def all_of_them() -> list[Answer]:
        player: Player = open_player(parse_contestant(spec, shared), texts, True)
        try:
            return list(await asyncio.gather(*(player.ask(ask) for ask in asks)))
        finally:
            await player.close()

    return asyncio.run(all_of_them())


def test_all_write_the_same_text_and_end_it_alike(shared: dict[str, str]) -> None:
    whole = Ask(Sampling(max_tokens=24, seed=0), 60.0, prompt=PROMPT)
    (plain,) = asked("paceline:plain", shared, whole)
    assert plain.error is None
    assert plain.new_tokens == 24
    assert plain.rounds is not None
    assert plain.rounds.rounds == 24
    stop = plain.text[9:12]
    stopped = Ask(Sampling(max_tokens=24, seed=0, stop=(stop,)), 60.0, prompt=PROMPT)
    chat = Ask(Sampling(max_tokens=6), 60.0, messages=({"role": "user", "content": "Hi"},))
    asks = (whole, stopped, chat)
    expected = asked("paceline:plain", shared, *asks)
    assert expected[1].finish == "stop"
    assert stop not in expected[1].text
    for spec in ("paceline:k=3", "paceline:drafter=ngram,k=3", "transformers",
                 "transformers:assisted,k=3", "transformers:lookup"):  # fmt: skip
        for mine, its in zip(asked(spec, shared, *asks), expected, strict=True):
            assert mine.error is None, spec
            assert (mine.text, mine.token_ids, mine.finish) == (
                its.text, its.token_ids, its.finish
            ), spec  # fmt: skip
            assert (mine.prompt_tokens, mine.new_tokens) == (its.prompt_tokens, its.new_tokens)
            assert len(mine.event_times) == len(mine.event_tokens) >= 1
            assert sum(mine.event_tokens) >= (mine.new_tokens or 0)


def test_the_counts_of_a_draft_are_kept_by_position_and_drafter(shared: dict[str, str]) -> None:
    (answer,) = asked(
        "paceline:k=3", shared, Ask(Sampling(max_tokens=30), 60.0, prompt=PROMPT)
    )  # fmt: skip
    rounds, spent = answer.rounds, answer.spent
    assert rounds is not None
    assert spent is not None
    (source,) = rounds.sources.values()
    assert set(rounds.sources) == {"model"}
    assert (source.drafted, source.evaluated, source.accepted) == (
        rounds.drafted, rounds.evaluated, rounds.accepted
    )  # fmt: skip
    assert sum(rounds.evaluated_by_position) == rounds.evaluated
    assert sum(rounds.accepted_by_position) == rounds.accepted
    assert rounds.rounds + rounds.accepted == 30
    assert 0 <= spent.waste <= spent.draft + spent.verify
    assert spent.draft > 0
    assert spent.verify > 0


def test_what_was_wasted_is_the_engines_own_figure(
    shared: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which it books round by round: of sums alone it cannot be told."""
    booked: list[float] = []
    real = Handle.result

    def result(self: Handle, timeout: float | None = None) -> Completion:
        done = real(self, timeout)
        booked.append(done.stats.wasted_seconds)
        return done

    monkeypatch.setattr(Handle, "result", result)
    ask = Ask(Sampling(max_tokens=30, temperature=1.0, seed=3), 60.0, prompt=PROMPT)
    (answer,) = asked("paceline:k=3", shared, ask)
    assert answer.spent is not None
    assert [answer.spent.waste] == booked
    assert booked[0] > 0


@pytest.mark.parametrize("spec", ["paceline:plain", "transformers"])
def test_a_text_that_takes_too_long_is_given_up(shared: dict[str, str], spec: str) -> None:
    (answer,) = asked(spec, shared, Ask(Sampling(max_tokens=200), 1e-4, prompt=PROMPT))
    assert answer.error == "no end after 0.0001 s"


@pytest.mark.parametrize("spec", ["paceline:plain", "transformers"])
def test_what_an_engine_refuses_is_an_answer(shared: dict[str, str], spec: str) -> None:
    wrong = Ask(Sampling(max_tokens=4), 60.0, messages=())
    (answer,) = asked(spec, shared, wrong)
    assert answer.error
    assert "\n" not in answer.error
    assert answer.wall is not None  # a pass's length is shared out by it


def test_several_at_once_are_several_texts(shared: dict[str, str]) -> None:
    asks = [Ask(Sampling(max_tokens=8), 60.0, prompt=PROMPT[n:]) for n in range(3)]
    together = asked("paceline:plain", shared, *asks, texts=3)
    queued = asked("transformers", shared, *asks)
    for a, b in zip(together, queued, strict=True):
        assert a.text == b.text


def test_a_prefix_cache_is_off_where_prompts_come_again(shared: dict[str, str]) -> None:
    contestant = parse_contestant("paceline:plain", shared)
    keeping = parse_contestant("paceline:plain,prefix_cache=true", shared)
    for who, once, wanted in ((contestant, True, "true"), (contestant, False, "false"),
                              (keeping, False, "true")):  # fmt: skip
        player = PacelinePlayer(who, 1, once)
        assert player.opening().facts["prefix_cache"] == wanted
        asyncio.run(player.close())


def test_a_checkpoint_that_is_none_is_a_plain_error(tmp_path: Path) -> None:
    from paceline import CheckpointError

    for spec in ("paceline:plain", "transformers"):
        with pytest.raises(CheckpointError, match="no such folder"):
            open_player(parse_contestant(spec, {"target": str(tmp_path / "gone")}), 1, True)
