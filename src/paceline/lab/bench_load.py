"""How texts are asked for: so many at a time, at random arrivals, or at recorded times.

Plays one pass: conversations of one contestant under one load. Their turns follow each other, each
after the model's own answer; an arrival is a conversation's. Knows no engine.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from paceline.lab.bench_ask import Answer, Player, ask_turn
from paceline.lab.bench_machine import Meter, peak_device_bytes, peak_rss
from paceline.lab.bench_record import Contestant, Load, Measurement, Pass, Sampling
from paceline.lab.workload_lines import Conversation

# So many texts in a row that fail, and a contestant is taken for broken.
GIVE_UP = 5

Tell = Callable[[Measurement], None]


@dataclass(frozen=True, slots=True)
class Task:
    """A conversation to play. due: seconds from the pass's beginning, under an open load."""

    item: Conversation
    sampling: Sampling
    due: float = 0.0


@dataclass(frozen=True, slots=True)
class Order:
    """One pass. chats: messages are sent as such; timeout: seconds a text may take; texts: they are
    kept in the record, not only their hashes."""

    pass_id: str
    load: Load
    repeat: int
    tasks: tuple[Task, ...]
    chats: bool
    timeout: float
    texts: bool = True


def arrivals(count: int, rate: float, seed: int) -> list[float]:
    """Times of a Poisson process: gaps are exponential with mean 1 / rate. The first is at 0."""
    draw, at, times = random.Random(seed), 0.0, list[float]()
    for _ in range(count):
        times.append(at)
        at += draw.expovariate(rate)
    return times


class _Playing:
    """A pass while it runs."""

    def __init__(self, player: Player, contestant: Contestant, order: Order, tell: Tell) -> None:
        self.player, self.contestant, self.order, self.tell = player, contestant, order, tell
        self.failures = self.asked = 0
        self.began = time.perf_counter()

    @property
    def given_up(self) -> bool:
        return self.failures >= GIVE_UP

    async def all(self) -> None:
        order = self.order
        if order.load.kind != "closed":
            async with asyncio.TaskGroup() as group:
                for task in order.tasks:
                    group.create_task(self.arrival(task))
            return
        waiting = iter(order.tasks)

        async def client() -> None:
            for task in waiting:
                if self.given_up:
                    return
                await self.conversation(task)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(order.load.concurrency or 1, len(order.tasks))):
                group.create_task(client())

    async def arrival(self, task: Task) -> None:
        await asyncio.sleep(max(0.0, task.due - (time.perf_counter() - self.began)))
        if not self.given_up:
            await self.conversation(task)

    async def conversation(self, task: Task) -> None:
        """Play its turns; after one that failed the next cannot be asked."""
        answers: list[str] = []
        for turn in range(task.item.length):
            if len(answers) < turn:
                before = "the turn before it failed, so that it could not be asked"
                self.tell(self.measurement(task, turn, 0.0, Answer(error=before)))
                continue
            order = self.order
            ask = ask_turn(task.item, answers, task.sampling, order.chats, order.timeout)
            at = time.perf_counter() - self.began
            self.asked += 1
            answer = await self.player.ask(ask)
            self.failures = self.failures + 1 if answer.error else 0
            self.tell(self.measurement(task, turn, at, answer))
            if answer.error is None:
                answers.append(answer.text)

    def measurement(self, task: Task, turn: int, at: float, answer: Answer) -> Measurement:
        order, keep = self.order, self.order.texts
        digest = hashlib.sha256(answer.text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return Measurement(
            contestant=self.contestant,
            item=task.item.id,
            category=task.item.category,
            turn=turn,
            load=order.load,
            repeat=order.repeat,
            pass_id=order.pass_id,
            sampling=task.sampling,
            due=task.due,
            at=at,
            prompt_tokens=answer.prompt_tokens,
            new_tokens=answer.new_tokens,
            ttft=answer.event_times[0] if answer.event_times else None,
            wall=answer.wall,
            event_times=answer.event_times,
            event_tokens=answer.event_tokens,
            rounds=answer.rounds,
            spent=answer.spent,
            text_hash=digest if answer.wall is not None else None,
            text=answer.text if keep else None,
            token_ids=answer.token_ids if keep else None,
            finish=answer.finish,
            error=answer.error,
        )


async def play(player: Player, contestant: Contestant, order: Order, tell: Tell) -> Pass:
    """Play a pass; `tell` is called for every text as it ends. Texts that are not asked for,
    because too many before them failed, are not told. Raises what `tell` raises."""
    meter = Meter(contestant)
    playing = _Playing(player, contestant, order, tell)
    try:
        await playing.all()
    except BaseExceptionGroup as group:  # the first that went wrong ended the others
        raise group.exceptions[0] from None
    seconds = time.perf_counter() - playing.began
    joules = meter.joules()
    own = contestant.engine != "url"
    return Pass(
        contestant=contestant.name,
        load=order.load,
        repeat=order.repeat,
        pass_id=order.pass_id,
        requests=playing.asked,
        seconds=seconds,
        joules=joules,
        joules_from=meter.source if joules is not None else None,
        rss=peak_rss() if own else None,
        device_bytes=peak_device_bytes() if own else None,
    )
