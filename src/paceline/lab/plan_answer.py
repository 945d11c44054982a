"""The answer: what each setting brings at each load, how sure that is, and what to run.

Pure: from measurements to numbers and sentences; `docs/plan.md` says how to read them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from paceline import ConfigError, CostPoint
from paceline.lab.plan_acceptance import Acceptance
from paceline.lab.plan_fit import Fitted, Run
from paceline.lab.plan_measured import Drafted, Measured
from paceline.lab.plan_model import (
    Machine,
    Point,
    Traffic,
    best,
    constant,
    predict,
    priced,
)

CURVE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
CHEAPER = (1.0, 0.5, 0.25)  # of the time that drafting takes
_WORTH = 1.01  # a speed-up from which on speculation is said to pay


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked. loads: texts at a time; ks: draft lengths, None for all that the engine has
    rounds for; tpot: the seconds a token that are wanted at most; traffic: lengths, or those of the
    measured texts. draws: of which an interval is the middle 95 in a hundred."""

    loads: tuple[int, ...]
    ks: tuple[int, ...] | None = None
    tpot: float | None = None
    traffic: Traffic | None = None
    seed: int = 0
    draws: int = 300


@dataclass(frozen=True, slots=True)
class Setting:
    """One drafter and K at one load, beside plain decoding there; low, high: 95 in a hundred."""

    drafter: str
    point: Point
    speed_up: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Worth:
    """The best speed-up over K were the acceptance at every position this, and drafting took this
    share of its time."""

    acceptance: float
    cost: float
    load: int
    k: int
    speed_up: float


@dataclass(frozen=True, slots=True)
class Checked:
    """One run that no prediction saw, in tokens a second, and the speed-up where plain decoding was
    measured at that load too."""

    drafter: str
    load: int
    k: int
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted / self.measured - 1


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is answered.

    plain: by load. settings: every drafter, K and load. best: at each load what is fastest, None
    where plain decoding is. drafter: the one to use, None for none; k: the most that it should
    draft; ks: at each load. stops: the first load at which nothing pays, None where it always does.
    fits: the most loads that keep the wanted seconds a token, (without, with speculation); 0 for
    none. memory: bytes that each drafter takes on the device. acceptance: by drafter and position.
    errors: by how much the model misses the runs it was fitted to, by drafter. longer: the share of
    the texts that are longer than any that was seen, so that the traffic's mean is too small.
    """

    traffic: Traffic
    plain: tuple[Point, ...]
    settings: tuple[Setting, ...]
    best: tuple[Setting | None, ...]
    drafter: str | None
    k: int
    ks: tuple[int, ...]
    stops: int | None
    fits: tuple[int, int] | None
    memory: dict[str, int]
    acceptance: dict[str, tuple[float, ...]]
    curve: tuple[Worth, ...]
    checks: tuple[Checked, ...]
    errors: dict[str, float]
    beyond: tuple[int, ...] = ()
    longer: float = 0.0


def answer(measured: Measured, question: Question) -> Plan:
    """Everything. Raises ConfigError where the measurements do not hold an answer."""
    traffic = question.traffic or measured.traffic()
    loads = tuple(sorted(set(question.loads)))
    draw = random.Random(question.seed)
    models = [(each, each.fitted()) for each in measured.drafters]
    if not any(run.k == 0 for each, _ in models for run in each.runs):
        raise ConfigError("plain decoding was not measured, so there is nothing to compare with")
    plain = tuple(_plain(models, traffic, load) for load in loads)
    settings: list[Setting] = []
    for each, fitted in models:
        accepted = each.accepted()
        for load, base in zip(loads, plain, strict=True):
            settings += _settings(each, fitted, accepted, traffic, base, load, question, draw)
    chosen = tuple(_chosen(settings, base, question.tpot) for base in plain)
    drafter, kept = _recommended(settings, chosen, plain, question.tpot)
    ks = tuple(one.point.k if one else 0 for one in kept)
    rows = min(each.rows for each, _ in models)
    name = drafter or models[0][0].drafter
    each, fitted = next((e, f) for e, f in models if e.drafter == name)
    return Plan(
        traffic=traffic,
        plain=plain,
        settings=tuple(settings),
        best=kept,
        drafter=drafter,
        k=max(ks, default=0),
        ks=ks,
        stops=next((p.load for p, one in zip(plain, kept, strict=True) if one is None), None),
        fits=_fits(plain, settings, drafter, question.tpot),
        memory={e.drafter: sum(n for part, n in e.memory.items() if part.startswith("draft"))
                for e, _ in models},
        acceptance={e.drafter: e.accepted().conditional() for e, _ in models},
        curve=_curve(each, fitted, traffic, loads, question),
        checks=tuple(_check(e, f.machine, run) for e, f in models for run in e.checks),
        errors={e.drafter: f.error for e, f in models},
        beyond=tuple(load for load in loads if load > rows),
        longer=0.0 if question.traffic is not None else measured.longer(),
    )  # fmt: skip


def setting_ks(each: Drafted, question: Question) -> tuple[int, ...]:
    """The draft lengths that are considered, plain decoding left out."""
    ks = [k for k in each.ks if k]
    if question.ks is None:
        return tuple(ks)
    most = max(ks, default=0)
    return tuple(sorted({k for k in question.ks if 0 < k <= most}))


def _plain(models: Sequence[tuple[Drafted, Fitted]], traffic: Traffic, load: int) -> Point:
    """Plain decoding as the drafters' engines have it: the fastest of them (they differ by noise,
    and a doubt is not to speak for speculation)."""
    found = [predict(fitted.machine, traffic, load, 0, ()) for _, fitted in models]
    return max(found, key=lambda point: point.tok_s)


def _settings(
    each: Drafted,
    fitted: Fitted,
    accepted: Acceptance,
    traffic: Traffic,
    plain: Point,
    load: int,
    question: Question,
    draw: random.Random,
) -> list[Setting]:
    middle = accepted.conditional()
    if not middle:
        return []
    ks = setting_ks(each, question)
    settings_at = [priced(fitted.machine, traffic, load, k) for k in ks]
    points = [point(middle) for point in settings_at]
    found: list[list[float]] = [[] for _ in ks]
    for _ in range(question.draws):
        law = accepted.draw(draw)
        for place, point in enumerate(settings_at):
            drawn = point(law)
            # Two times are compared, and each is as wrong as the runs say.
            slip = draw.gauss(0.0, fitted.error) - draw.gauss(0.0, fitted.error)
            found[place].append(drawn.tok_s / plain.tok_s * (1 + slip))
    settings = []
    for top, ratios in zip(points, found, strict=True):
        ratios.sort()
        off = int(0.025 * question.draws)
        low, high = ratios[off], ratios[-1 - off]
        ratio = top.tok_s / plain.tok_s
        settings.append(Setting(each.drafter, top, ratio, min(low, ratio), max(high, ratio)))
    return settings


def _chosen(settings: Sequence[Setting], plain: Point, tpot: float | None) -> Setting | None:
    """The best at the load of `plain`, or None for plain decoding itself."""
    here = [one for one in settings if one.point.load == plain.load]
    point = best([plain, *(one.point for one in here)], tpot)
    one = next((one for one in here if one.point is point), None)
    return one if one is not None and one.speed_up >= _WORTH else None


def _recommended(
    settings: Sequence[Setting],
    chosen: Sequence[Setting | None],
    plain: Sequence[Point],
    tpot: float | None,
) -> tuple[str | None, tuple[Setting | None, ...]]:
    """One drafter for all loads: an engine is opened with one. The one whose best settings bring
    most over the loads (geometric mean of speed-ups), and those settings."""
    names = {one.drafter for one in chosen if one is not None}
    best_name: str | None = None
    best_kept: tuple[Setting | None, ...] = tuple(None for _ in plain)
    most = 1.0
    for name in sorted(names):
        own = [one for one in settings if one.drafter == name]
        kept = tuple(_chosen(own, base, tpot) for base in plain)
        gain = 1.0
        for one in kept:
            gain *= one.speed_up if one is not None else 1.0
        if gain > most:
            best_name, best_kept, most = name, kept, gain
    return best_name, best_kept


def _fits(
    plain: Sequence[Point], settings: Sequence[Setting], drafter: str | None, tpot: float | None
) -> tuple[int, int] | None:
    if tpot is None:
        return None
    without = max((point.load for point in plain if point.tpot <= tpot), default=0)
    points = [one.point for one in settings if one.drafter == drafter]
    return without, max((p.load for p in points if p.tpot <= tpot), default=without)


def _curve(
    each: Drafted, fitted: Fitted, traffic: Traffic, loads: Sequence[int], question: Question
) -> tuple[Worth, ...]:
    """What another drafter would be worth, at the smallest and at the largest load."""
    ks, found = setting_ks(each, question), []
    if not ks:
        return ()
    for cost in CHEAPER:
        machine = cheaper(fitted.machine, cost)
        for load in sorted({loads[0], loads[-1]}):
            plain = predict(machine, traffic, load, 0, ())
            for acceptance in CURVE:
                points = [predict(machine, traffic, load, k, constant(acceptance, k)) for k in ks]
                top = best(points)
                found.append(Worth(acceptance, cost, load, top.k, top.tok_s / plain.tok_s))
    return tuple(found)


def cheaper(machine: Machine, cost: float) -> Machine:
    """The machine with a drafter that takes `cost` of this one's time."""
    points = tuple(
        CostPoint(p.kind, p.rows, p.k, p.context, p.seconds * (cost if p.kind == "draft" else 1.0))
        for p in machine.costs.points
    )
    return replace(machine, costs=replace(machine.costs, points=points))


def _check(each: Drafted, machine: Machine, run: Run) -> Checked:
    """The run's rate as it was predicted from the others, for its own lengths of texts."""
    law = each.accepted().conditional()
    point = predict(machine, Traffic(run.prompt, run.new), run.load, run.k, law)
    return Checked(each.drafter, run.load, run.k, run.tok_s, point.tok_s)
