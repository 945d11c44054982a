"""How many GPUs a day of requests needs, with and without speculation, and what a token costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

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
    for name, each in (("plain", replace(replica, ks=(0,))), ("speculative", replica)):
        progress(f"{name}, {gpus} GPUs")
        outcome = simulate(each, gpus, arrivals, seed)
        kept = target.kept(outcome)
        needed = _needed(each, arrivals, gpus, kept, target, seed, name, progress)
        paid = None
        if price is not None and tokens:
            hours = max(seconds, outcome.seconds) / 3600
            paid = (needed or gpus) * hours * price / tokens * 1e6
        found.append(
            Fleet(name, gpus, _percentiles(outcome.tpot), _percentiles(outcome.ttft), outcome.busy,
                  kept, needed, paid)
        )  # fmt: skip
    return found[0], found[1]


def _needed(
    replica: Replica,
    arrivals: Sequence[Arrival],
    gpus: int,
    kept: bool,
    target: Target,
    seed: int,
    name: str,
    progress: Callable[[str], None],
) -> int | None:
    """The fewest GPUs that keep the target; kept: whether `gpus` do. More keep what fewer do."""

    def keeps(count: int) -> bool:
        progress(f"{name}, {count} GPUs")
        return target.kept(simulate(replica, count, arrivals, seed))

    if target.tpot is None and target.ttft is None:
        return None
    most = min(MOST_GPUS, max(len(arrivals), 1))  # a GPU for each request cannot be bettered
    low, high = (0, gpus) if kept else (gpus, gpus)
    while not kept:
        if high >= most:
            return None
        low, high = high, min(2 * high, most)
        kept = keeps(high)
    while high - low > 1:
        middle = (low + high) // 2
        if keeps(middle):
            high = middle
        else:
            low = middle
    return high


def _percentiles(of: Callable[[float], float]) -> tuple[float, float, float]:
    return of(0.5), of(0.95), of(0.99)
