"""Loads: how many at a time, when, in which order; turns that follow each other."""

from __future__ import annotations

import asyncio
import itertools
import statistics

import pytest
from lab.bench_tools import contestant

from paceline.lab.bench_ask import Answer, Ask, ask_turn, plainly, resolve_sampling, warm_up
from paceline.lab.bench_load import GIVE_UP, Order, Task, arrivals, play
from paceline.lab.bench_record import Load, Measurement, Opening, Pass, Sampling
from paceline.lab.bench_schedule import Unit, schedule
from paceline.lab.workload_lines import Conversation, Wishes

WHO = contestant("paceline")
CHAT = Conversation("c", turns=("first", "second"), context=({"role": "system", "content": "s"},))


class Player:
    """Answers with how many it was asked at a time, after a moment."""

    def __init__(self, crowd: int = 0, failing: frozenset[int] = frozenset()) -> None:
        """crowd: so many must be on their way before anyone is answered."""
        self.crowd, self.failing = crowd, failing
        self.together = asyncio.Event()
        self.now = self.most = 0
        self.asked: list[Ask] = []

    chats = True

    async def ask(self, ask: Ask) -> Answer:
        number = len(self.asked)
        self.asked.append(ask)
        self.now += 1
        self.most = max(self.most, self.now)
        if self.most >= self.crowd:
            self.together.set()
        await self.together.wait()
        await asyncio.sleep(0.01)
        self.now -= 1
        if number in self.failing:
            return Answer(error="no")
        return Answer(text=f"answer {number}", wall=0.01, new_tokens=2)

    def opening(self) -> Opening:
        return Opening(WHO)

    async def close(self) -> None: ...


def played(player: Player, load: Load, tasks: list[Task]) -> tuple[list[Measurement], Pass]:
    told: list[Measurement] = []
    order = Order("p", load, 0, tuple(tasks), True, 5.0)
    return told, asyncio.run(play(player, WHO, order, told.append))


def prompts(count: int) -> list[Task]:
    return [Task(Conversation(str(n), prompt=str(n)), Sampling()) for n in range(count)]


def test_a_closed_load_keeps_so_many_on_their_way() -> None:
    player = Player()
    told, whole = played(player, Load(concurrency=3), prompts(9))
    assert player.most == 3
    assert sorted(m.item for m in told) == [str(n) for n in range(9)]
    assert whole.requests == 9
    assert whole.seconds > max(m.at for m in told) > 0


def test_an_open_load_asks_when_it_is_due_whoever_is_busy() -> None:
    player = Player(crowd=5)
    tasks = [Task(t.item, t.sampling, 0.02 * n) for n, t in enumerate(prompts(5))]
    told, _ = played(player, Load("poisson", rate=50.0), tasks)
    assert player.most == 5
    for m in told:
        assert m.at >= m.due
        assert m.due == pytest.approx(0.02 * int(m.item))


def test_a_second_turn_follows_the_answer_to_the_first() -> None:
    player = Player()
    told, _ = played(player, Load(concurrency=1), [Task(CHAT, Sampling())])
    assert [m.turn for m in told] == [0, 1]
    assert [m["content"] for m in player.asked[1].messages] == ["s", "first", "answer 0", "second"]


def test_after_a_turn_that_failed_the_next_is_not_asked() -> None:
    player = Player(failing=frozenset([0]))
    told, whole = played(player, Load(concurrency=1), [Task(CHAT, Sampling())])
    assert [m.error for m in told] == [
        "no",
        "the turn before it failed, so that it could not be asked",
    ]
    assert whole.requests == 1


def test_texts_that_all_fail_are_not_asked_for_ever() -> None:
    player = Player(failing=frozenset(range(100)))
    told, _ = played(player, Load(concurrency=2), prompts(40))
    assert GIVE_UP <= len(told) <= GIVE_UP + 1


def test_arrivals_are_poisson_and_the_same_for_all() -> None:
    times = arrivals(4000, 5.0, seed=1)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert times == arrivals(4000, 5.0, seed=1)
    assert statistics.mean(gaps) == pytest.approx(0.2, rel=0.08)
    assert statistics.stdev(gaps) == pytest.approx(0.2, rel=0.08)  # as an exponential's is


def test_contestants_take_turns_in_an_order_drawn_from_the_seed() -> None:
    who = [contestant(name) for name in ("a", "b", "c")]
    tasks = prompts(20)
    units = schedule(who, tasks, [Load(concurrency=1)], 2, seed=0)
    assert units == schedule(who, tasks, [Load(concurrency=1)], 2, seed=0)
    assert units != schedule(who, tasks, [Load(concurrency=1)], 2, seed=1)
    blocks = [units[n : n + 3] for n in range(0, len(units), 3)]
    for block in blocks:  # one prompt, by everybody
        assert {u.contestant for u in block} == {"a", "b", "c"}
        assert len({u.tasks for u in block}) == 1
    assert len({tuple(u.contestant for u in block) for block in blocks}) > 3
    assert sorted(b[0].tasks[0].item.id for b in blocks) == sorted([t.item.id for t in tasks] * 2)


def test_larger_loads_are_whole_passes_with_the_same_arrivals() -> None:
    who = [contestant(name) for name in ("a", "b")]
    a, b = schedule(who, prompts(5), [Load("poisson", rate=2.0)], 1, seed=0)
    assert a.tasks == b.tasks
    assert a.tasks[0].due == 0 < a.tasks[-1].due
    logged = [Task(Conversation(str(n), prompt="p", at=float(n)), Sampling()) for n in range(3)]
    (unit,) = schedule(who[:1], logged, [Load("replay", speed=2.0)], 1, seed=0)
    assert [t.due for t in unit.tasks] == [0.0, 0.5, 1.0]


def test_one_at_a_time_is_one_after_the_other() -> None:
    who = [contestant(name) for name in ("b", "a")]
    loads = [Load(concurrency=1), Load(concurrency=2)]
    units = schedule(who, prompts(4), loads, 1, seed=0, one_at_a_time=True)
    names = [u.contestant for u in units]
    assert names == ["b"] * 5 + ["a"] * 5


def test_what_is_done_is_left_out_whole_conversations_only() -> None:
    tasks = (Task(CHAT, Sampling(), 1.0), Task(Conversation("p", prompt="p"), Sampling(), 3.0))
    unit = Unit("a", Load("poisson", rate=1.0), 0, tasks)
    first = unit.keys(CHAT)
    assert unit.without({first[0]}) == Unit("a", unit.load, 0, (
        Task(CHAT, Sampling(), 0.0), Task(tasks[1].item, Sampling(), 2.0)
    ))  # fmt: skip
    left = unit.without(set(first))
    assert left is not None
    assert [t.item.id for t in left.tasks] == ["p"]
    assert unit.without({*first, *unit.keys(tasks[1].item)}) is None


def test_a_chat_is_written_out_where_there_is_no_template() -> None:
    ask = ask_turn(CHAT, ["yes "], Sampling(stop=("x",)), False, 1.0)
    assert ask.prompt == "s\n\nUser: first\n\nAssistant: yes\n\nUser: second\n\nAssistant:"
    assert ask.sampling.stop == ("x", "\nUser:")
    assert plainly(({"role": "user", "content": "u"},)) == "User: u\n\nAssistant:"


def test_an_items_wish_gives_way_to_what_was_given() -> None:
    item = Conversation("a", prompt="p", wishes=Wishes(temperature=0.5, max_tokens=3, stop=()))
    defaults = Sampling(temperature=0.0, max_tokens=9, stop=("y",), top_p=0.9)
    assert resolve_sampling(item, defaults, frozenset()) == Sampling(0.5, 0.9, max_tokens=3)
    assert resolve_sampling(item, defaults, frozenset({"max_tokens"})).max_tokens == 9


def test_warming_up_begins_as_no_measured_text_does() -> None:
    item, sampling = warm_up(Conversation("a", prompt="1\n2\n3\n"), Sampling(), 5)
    assert item.prompt == "\n3\n2\n1"
    assert sampling.max_tokens == 5
    chat, _ = warm_up(CHAT, Sampling(), 5)
    assert chat.turns == ("first",)
    assert warm_up(Conversation("a", prompt="a b c"), Sampling(), 5)[0].prompt == "c b a"
