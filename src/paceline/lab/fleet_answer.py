"""How many GPUs a day of requests needs, with and without speculation, and what a token costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from paceline.lab.fleet import Outcome, Replica, simulate
from paceline.lab.fleet_traffic import Arrival

MOST_GPUS = 4096


@dataclass(frozen=True, slots=True)
class Target:
    """What 95 of a hundred requests are to keep, in seconds; None for no wish."""

    tpot: float | None = None
    ttft: float | None = None

    def kept(self, outcome: Outcome) -> bool:
        """Whether they do."""
        if self.tpot is not None and outcome.tpot(0.95) > self.tpot:
            return False
        return self.ttft is None or outcome.ttft(0.95) <= self.ttft


@dataclass(frozen=True, slots=True)
class Fleet:
    """One way to serve the day. gpus: as asked for; tpot, ttft: (p50, p95, p99), seconds; busy: of
    the replicas' time; kept: whether the target is; needed: the fewest GPUs that keep it, None
    where no number up to `MOST_GPUS` does; per_million: what a million written tokens cost with
    `needed` (else `gpus`), in the price's money, None without a price."""

    name: str
    gpus: int
    tpot: tuple[float, float, float]
    ttft: tuple[float, float, float]
    busy: float
    kept: bool
    needed: int | None
    per_million: float | None


def compare(
    replica: Replica,
    arrivals: Sequence[Arrival],
    gpus: int,
    target: Target,
    price: float | None,
    seconds: float,
    seed: int = 0,
    progress: Callable[[str], None] = lambda what: None,
) -> tuple[Fleet, Fleet]:
    """(Without, with speculation). price: of a GPU hour; seconds: the time that GPUs are paid for,
    or longer where the work lasts longer."""
    tokens = sum(arrival.new for arrival in arrivals)
    found = []
    for name, each in (("plain", replace(replica, ks=(0,), pace=1.0)), ("speculative", replica)):
        outcomes = _Outcomes(each, arrivals, seed, partial(_told, progress, name))
        outcome = outcomes.of(gpus)
        needed = None
        if target.tpot is not None or target.ttft is not None:
            needed = _needed(outcomes, gpus, target)
        paid = None
        if price is not None and tokens:
            count = needed or gpus
            hours = max(seconds, outcomes.of(count).seconds) / 3600
            paid = count * hours * price / tokens * 1e6
        found.append(
            Fleet(name, gpus, _percentiles(outcome.tpot), _percentiles(outcome.ttft), outcome.busy,
                  target.kept(outcome), needed, paid)
        )  # fmt: skip
    return found[0], found[1]


@dataclass(slots=True)
class _Outcomes:
    """The day with any number of GPUs, each simulated once."""

    replica: Replica
    arrivals: Sequence[Arrival]
    seed: int
    progress: Callable[[int], None]
    known: dict[int, Outcome] = field(default_factory=dict)

    def of(self, gpus: int) -> Outcome:
        if gpus not in self.known:
            self.progress(gpus)
            self.known[gpus] = simulate(self.replica, gpus, self.arrivals, self.seed)
        return self.known[gpus]


def _needed(outcomes: _Outcomes, gpus: int, target: Target) -> int | None:
    """The fewest GPUs that keep the target, from `gpus` on or down: more keep what fewer do."""
    most = min(MOST_GPUS, max(len(outcomes.arrivals), gpus))  # one for each request is the best
    low, high = 0, gpus
    while not target.kept(outcomes.of(high)):
        if high >= most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        if target.kept(outcomes.of(middle)):
            high = middle
        else:
            low = middle
    return high


def _told(progress: Callable[[str], None], name: str, gpus: int) -> None:
    progress(f"{name}, {gpus} GPUs")


def _percentiles(of: Callable[[float], float]) -> tuple[float, float, float]:
    return of(0.5), of(0.95), of(0.99)
