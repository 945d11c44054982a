"""Machines of plain numbers, and measurements as they would have made them."""

from __future__ import annotations

from paceline import CostPoint, Costs
from paceline.lab.plan_acceptance import Counts
from paceline.lab.plan_fit import Run, Text
from paceline.lab.plan_measured import Drafted, Measured
from paceline.lab.plan_model import Machine, Overhead, Traffic, predict, rounds_for

KS = (0, 1, 2, 4, 8)
TRAFFIC = Traffic(prompt=100.0, new=200.0)


def costs(verify: float = 0.010, wider: float = 0.0002, draft: float = 0.001) -> Costs:
    """A pass takes `verify` and `wider` more for each position of each row; a draft token `draft`
    a row."""
    points = []
    for rows in (1, 2, 4, 8, 16, 64):
        for k in KS:
            for context in (64, 1024):
                seconds = verify + wider * rows * (k + 1) + 1e-8 * rows * context
                points.append(CostPoint("verify", rows, k, context, seconds))
                if k:
                    points.append(CostPoint("draft", rows, k, context, draft * k))
    return Costs(tuple(points), KS)


def machine(**more: float) -> Machine:
    """The same with overheads."""
    return Machine(
        costs(**more),
        Overhead(0.0005, 0.00002, 0.005, 100.0),
        Overhead(0.001, 0.00003, 0.007, 100.0),
        edge=0.0,
    )


def run(
    made: Machine, load: int, k: int, acceptance: float, new: int = 200, count: int = 400
) -> Run:
    """A stretch of `count` texts on that machine, without chance in it."""
    law = (acceptance,) * k
    rounds = rounds_for(new, law, k)
    point = predict(made, Traffic(100.0, new), load, k, law)
    reach, evaluated, accepted = 1.0, [], []
    for _ in range(k):
        evaluated.append(round(1000 * reach))
        reach *= acceptance
        accepted.append(round(1000 * reach))
    tested = Counts(tuple(evaluated), tuple(accepted))
    if new < 50:  # what a probe takes for prompts alone
        tested = Counts((), ())
    texts = tuple(Text(100, new, round(rounds), tested, whole=new >= 50) for _ in range(20))
    tokens = count * new
    return Run("model", load, k, tokens / point.tok_s, tokens, count, new / rounds, 100.0,
               100.0 + new / 2, texts)  # fmt: skip


def measured(
    acceptance: float = 0.8,
    drafter: str = "model",
    checks: tuple[Run, ...] = (),
    loads: tuple[int, ...] = (1, 4, 16, 64),
    **more: float,
) -> Measured:
    """What a probe of that machine would have brought."""
    made = machine(**more)
    runs = tuple(run(made, load, k, acceptance) for load in loads for k in (0, 4))
    runs += tuple(run(made, loads[1], k, acceptance, new=4) for k in (0, 4))
    one = Drafted(
        drafter=drafter,
        points=made.costs.points,
        ks=KS,
        runs=(*runs, run(made, loads[-1], 8, acceptance)),
        draft="org/draft" if drafter == "model" else None,
        checks=checks,
        memory={"target weights": 1000, "draft weights": 300, "draft cache": 50, "slots": 7},
    )
    engine = {"rule": "match", "dtype": "bfloat16", "device": "cpu", "max_length": "4096"}
    return Measured("made up", "org/target", (one,), engine)
