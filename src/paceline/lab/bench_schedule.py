"""In which order a run measures what: passes of contestants, mixed by a seed.

So that a busy spell of the machine, or its warming up, meets all contestants alike. Measures
nothing.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from paceline.lab.bench_load import Task, arrivals
from paceline.lab.bench_record import Contestant, Load, Measurement
from paceline.lab.workload_lines import Conversation
from paceline.lab.workloads import Workload

Key = tuple[str, str, int, str, int]


def key(measurement: Measurement) -> Key:
    """What a measurement measured; a later one with the same key takes its place."""
    m = measurement
    return (m.contestant.name, m.load.name, m.repeat, m.item, m.turn)


@dataclass(frozen=True, slots=True)
class Unit:
    """A pass: one contestant, one load. tasks: conversations, or one where the load is closed:1."""

    contestant: str
    load: Load
    repeat: int
    tasks: tuple[Task, ...]

    def keys(self, item: Conversation) -> list[Key]:
        """Of all texts of one of its conversations."""
        place = (self.contestant, self.load.name, self.repeat, item.id)
        return [(*place, turn) for turn in range(item.length)]

    def without(self, done: set[Key]) -> Unit | None:
        """What is left of it, in order; None where nothing is. A conversation is done whole or not:
        its later turns follow its own answers. Arrivals begin anew."""
        left = [task for task in self.tasks if not done.issuperset(self.keys(task.item))]
        if not left:
            return None
        first = left[0].due
        tasks = tuple(Task(task.item, task.sampling, task.due - first) for task in left)
        return Unit(self.contestant, self.load, self.repeat, tasks)


def schedule(
    contestants: Sequence[Contestant],
    tasks: Sequence[Task],
    loads: Sequence[Load],
    repeats: int,
    seed: int,
    one_at_a_time: bool = False,
) -> list[Unit]:
    """All passes of a run, in order.

    tasks: the workload. Under closed:1 contestants take turns conversation by conversation, under
    any other load pass by pass. one_at_a_time: all of the first contestant's passes come before
    those of the second.
    """
    draw, units = random.Random(seed), list[Unit]()
    for load in loads:
        for repeat in range(repeats):
            order = list(tasks)
            if load.kind != "replay":
                draw.shuffle(order)
            order = _timed(order, load, draw.getrandbits(32))
            alone = load.kind == "closed" and load.concurrency == 1
            for part in [[task] for task in order] if alone else [order]:
                names = [contestant.name for contestant in contestants]
                draw.shuffle(names)
                units += [Unit(name, load, repeat, tuple(part)) for name in names]
    if one_at_a_time:
        places = {contestant.name: place for place, contestant in enumerate(contestants)}
        units.sort(key=lambda unit: places[unit.contestant])
    return units


def _timed(tasks: list[Task], load: Load, seed: int) -> list[Task]:
    """Tasks with the times they are due at. The same for every contestant."""
    if load.kind == "poisson":
        assert load.rate is not None
        times = arrivals(len(tasks), load.rate, seed)
    elif load.kind == "replay":
        times = [(task.item.at or 0.0) / (load.speed or 1.0) for task in tasks]
    else:
        return tasks
    return [Task(t.item, t.sampling, at) for t, at in zip(tasks, times, strict=True)]


def can_replay(workload: Workload) -> bool:
    """Whether every item has a time."""
    return all(item.at is not None for item in workload.items)
