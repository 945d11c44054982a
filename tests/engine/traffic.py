"""Closed-loop traffic with known acceptance on a machine of known cost, for the tests of K.

Throughput is exact in expectation: what a round commits is drawn, what it counts for is the mean
of that draw, so that a ratio of two runs is not blurred by luck.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from paceline.engine.acceptance import Track
from paceline.engine.catch_up import NO_CATCH_UP, CatchUp
from paceline.engine.cost import CostTable
from paceline.engine.cost_grid import Point
from paceline.engine.policy import Governor

Chances = Sequence[float]  # by draft position, each given that those before it stood


def constant(chance: float, most: int = 16) -> Chances:
    """The same chance at every position."""
    return (chance,) * most


def line(points: Sequence[tuple[float, float]], x: float) -> float:
    """Straight lines through (x, y); the last goes on."""
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x <= x1 or (x1, y1) == points[-1]:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return points[0][1]


@dataclass(frozen=True)
class Device:
    """True seconds. verify(rows, k), draft(rows, k)."""

    verify: Callable[[int, int], float]
    draft: Callable[[int, int], float]
    catch_up: CatchUp = NO_CATCH_UP
    reading: CatchUp = NO_CATCH_UP  # of a prompt, by the target
    observe: float = 0.0  # what the drafter takes in every round, whatever K
    beside: float = 0.0  # what a round with drafts takes that no clock of a round sees


_STEP = ((1, 4.0), (8, 4.3), (32, 5.0), (64, 6.2))
_GROWTH = ((1, 1.0), (6, 1.02), (32, 1.12), (64, 1.25), (128, 1.7), (288, 2.7), (576, 4.8))
_DRAFT = ((1, 0.85), (8, 0.95), (32, 1.3), (64, 1.8))


def _h200(rows: int, k: int) -> float:
    own = line(_STEP, rows) - 4.0 * line(_GROWTH, rows)  # attention and judging, of each row
    return (4.0 * line(_GROWTH, rows * (k + 1)) + own) / 1e3


# An 8B target and a 1B draft; the bundled pair on two cores.
H200 = Device(_h200, lambda rows, k: k * line(_DRAFT, rows) / 1e3, catch_up=CatchUp(6.5e-4, 7e-6))
CPU = Device(
    lambda rows, k: (2.1 + 0.26 * (rows * (k + 1) - 1)) / 1e3,
    lambda rows, k: k * (0.35 + 0.04 * (rows - 1)) / 1e3,
    catch_up=CatchUp(1e-4, 2e-5),
)

# What an engine of that pair measured on an H200, and what no clock of its rounds saw: one draft
# for 64 texts is nearly as good as none.
_MILLISECONDS = {
    0: ((1, 4.0), (4, 4.1), (16, 4.4), (64, 5.6)),
    1: ((1, 4.9), (4, 5.15), (16, 5.7), (64, 8.95)),
    2: ((1, 5.7), (4, 6.1), (16, 7.0), (64, 12.6)),
    4: ((1, 7.3), (4, 8.3), (16, 10.6), (64, 22.8)),
    8: ((1, 10.4), (4, 12.3), (16, 18.1), (64, 34.5)),
}
_OF_A_DRAFT = ((1, 0.7), (4, 0.8), (16, 1.0), (64, 1.6))


def _measured(rows: int, k: int) -> float:
    return (line(_MILLISECONDS[k], rows) - k * line(_OF_A_DRAFT, rows)) / 1e3


MEASURED = Device(
    _measured,
    lambda rows, k: k * line(_OF_A_DRAFT, rows) / 1e3,
    catch_up=CatchUp(6.5e-4, 7e-6),
    reading=CatchUp(5e-3, 2.9e-5),
    beside=3.5e-4,
)


def table(device: Device, ks: Sequence[int], sizes: Sequence[int], error: float = 0.0) -> CostTable:
    """What measuring `device` would give, each point off by about `error`."""
    rng = random.Random(5)
    points = []
    for rows in sizes:
        for k in ks:
            off = 1 + rng.gauss(0, error)
            points.append(Point("verify", rows, k, 0, device.verify(rows, k) * off))
            seconds = device.draft(rows, k) + device.observe
            if seconds:
                off = 1 + rng.gauss(0, error)
                points.append(Point("draft", rows, k, 0, seconds * off))
    return CostTable(points, ks, catch_up=device.catch_up)


@dataclass
class Row:
    """One request of the traffic."""

    track: Track
    left: int
    number: int
    behind: int = 0


@dataclass
class Report:
    """See `acceptance.Seen`."""

    n: list[int] = field(default_factory=list)
    drafted: list[int] = field(default_factory=list)
    source: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    evaluated: list[int] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)


@dataclass
class Played:
    """What a run came to."""

    tokens: float = 0.0
    seconds: float = 0.0
    rounds: int = 0
    chosen: list[int] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


@dataclass
class Traffic:
    """chances(number of the request, share of the run that is over) -> by position."""

    concurrency: int
    chances: Callable[[int, float], Chances]
    rounds: int
    lengths: tuple[int, int] = (64, 512)
    seed: int = 0
    prompt: int = 0  # tokens; a drafter that drafts reads them too, as if it were behind
    begin: int = 0  # texts that begin in a round, at most; 0: as many as there are


def play(
    traffic: Traffic,
    device: Device,
    governor: Governor | int,
    *,
    noise: float = 0.0,
    outliers: float = 0.0,
    late: bool = False,
) -> Played:
    """Play `traffic`; governor: or a fixed K. noise: relative error of the seconds that the
    governor is told; outliers: the share of them that are ten times too long. late: a round is
    planned before the one in front of it has settled."""
    rng, watch = random.Random(traffic.seed), random.Random(traffic.seed + 1)
    played, numbers, told_until = Played(), 0, 0.0
    adaptive = isinstance(governor, Governor)
    fixed = Governor(table(device, (0, governor), (1, 64))) if not adaptive else governor
    waiting: list[tuple[object, ...]] = []

    def arrive() -> Row:
        nonlocal numbers
        numbers += 1
        length = random.Random(1000 * traffic.seed + numbers).randint(*traffic.lengths)
        row = Row(fixed.track(16, length), length, numbers)
        if adaptive:
            fixed.fed(traffic.prompt)
            fixed.first(row.track)
            row.track.waiting = 0
        if fixed.paused if adaptive else not governor:
            row.behind = traffic.prompt
        elif traffic.prompt:
            read(device.catch_up)
        read(device.reading)
        return row

    def read(pace: CatchUp) -> None:
        nonlocal told_until
        seconds = pace.seconds([traffic.prompt])
        played.seconds += seconds
        told_until += seconds  # the engine measures it, and tells the governor what else went by

    rows = list[Row]()
    held = list[int]()  # drafts that wait, by row
    # The share over is one of plain seconds, so that every policy meets the change at about the
    # same work done: by tokens.
    goal = traffic.rounds * traffic.concurrency
    while played.tokens < goal:
        share = played.tokens / goal
        missing = traffic.concurrency - len(rows)
        for _ in range(min(missing, traffic.begin or missing)):
            rows.append(arrive())
            held.append(0)
        tracks = [row.track for row in rows]
        for row in rows:
            row.track.behind = row.behind
        if adaptive:
            launch = fixed.plan(tracks, 0.0)
            k, next_k = launch.k, launch.next_k
        else:
            launch, k, next_k = None, max(held), governor
        report, seconds, behind = Report(), 0.0, list[int]()
        true_verify = device.verify(len(rows), k)
        true_draft = device.draft(len(rows), next_k) + device.observe
        for place, row in enumerate(rows):
            chances = traffic.chances(row.number, share)
            drafted = min(held[place], k, row.left - 1)
            reach, mean = 1.0, 1.0
            for j in range(drafted):
                reach *= chances[j]
                mean += reach
            played.tokens += mean
            accepted = 0
            while accepted < drafted and rng.random() < chances[accepted]:
                accepted += 1
            row.left -= accepted + 1
            drafts = next_k if launch is None else launch.drafts[place]
            if drafts:
                behind.append(row.behind)
            row.behind = 0 if drafts else row.behind + accepted + 1
            for name, value in (
                ("n", accepted + 1), ("drafted", drafted), ("source", 0), ("accepted", accepted),
                ("evaluated", min(accepted + 1, drafted)), ("ended", int(row.left == 0)),
            ):  # fmt: skip
                getattr(report, name).append(value)
            held[place] = drafts
            if row.left == 0:
                rows[place], held[place] = arrive(), 0
        seconds += true_verify + true_draft + device.catch_up.seconds(behind)

        def told(value: float) -> float:
            slow = 10.0 if watch.random() < outliers else 1.0
            return value * slow * max(0.1, 1 + watch.gauss(0, noise))

        played.seconds += seconds + device.beside * bool(k or next_k)
        played.rounds += 1
        played.chosen.append(next_k)
        if launch is not None:
            verify, draft = told(true_verify), told(true_draft)
            elapsed = played.seconds - told_until
            told_until = played.seconds
            waiting.append((tracks, launch, report, verify, draft, verify + draft, elapsed))
            while len(waiting) > (1 if late and not next_k else 0):
                tracks_, launch_, report_, v, d, wall, elapsed = waiting.pop(0)
                fixed.settled(tracks_, launch_, report_, verify_seconds=v, draft_seconds=d,
                              wall_seconds=wall, elapsed_seconds=elapsed)  # fmt: skip
            if played.rounds % 200 == 0:
                played.lines.append(fixed.describe())
    return played
