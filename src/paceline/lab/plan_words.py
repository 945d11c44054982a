"""A plan in sentences: the verdict first, and what it assumes."""

from __future__ import annotations

from paceline.lab.plan_answer import Plan

_DOUBTFUL = 0.1  # of the runs' times, an error that says that something else ran
_BEST = 0.95  # an acceptance that a better drafter might have

ASSUMPTIONS = (
    "Requests look like the measured ones: lengths, sampling, and how predictable the text is.",
    "A load is so many texts at a time, each asked for when one has ended, and no prompt is found "
    "in the prefix cache.",
    "Whether a draft token stands depends on its position in the draft alone, not on the round "
    "before.",
    "Times are this machine's when nothing else runs on it; those between measured points lie on "
    "straight lines.",
    "An interval covers the acceptance of other texts and the model's error on its own runs; it "
    "covers no other traffic.",
)


def verdict(plan: Plan) -> list[str]:
    """What to do, in a few sentences."""
    loads = [point.load for point in plan.plain]
    if plan.drafter is None:
        tops = [one for one in plan.settings if one.point.load == loads[0]]
        if not tops:
            return ["Nothing was drafted while it was measured: plain decoding."]
        top = max(tops, key=lambda one: one.speed_up)
        return [
            f"Speculation does not pay: at {texts(loads[0])} the best setting ({top.drafter}, "
            f"K = {top.point.k}) is {top.speed_up:.2f} times plain decoding "
            f"({top.low:.2f} to {top.high:.2f}). Use plain decoding.",
            *_doubt(plan),
            *lengths(plan),
        ]
    said = []
    pays = [one for one in plan.best if one is not None]
    first, last = pays[0], pays[-1]
    said.append(
        f"Use the drafter {plan.drafter} with K up to {plan.k}: {first.speed_up:.2f} times plain "
        f"decoding ({first.low:.2f} to {first.high:.2f}) at {texts(first.point.load)}"
        + (
            f", {last.speed_up:.2f} ({last.low:.2f} to {last.high:.2f}) at "
            f"{texts(last.point.load)}."
            if last is not first
            else "."
        )
    )
    if plan.stops is None:
        said.append(f"It pays at every load asked for, up to {loads[-1]} texts at a time.")
    else:
        said.append(f"It stops paying at {texts(plan.stops)}: plain decoding from there on.")
    said += _latency(plan) + _worth(plan) + _doubt(plan) + lengths(plan)
    if plan.beyond:
        most = min(plan.beyond)
        said.append(f"From {texts(most)} on nothing was measured: those figures are extrapolated.")
    return said


def _doubt(plan: Plan) -> list[str]:
    """A word about measurements that do not fit together."""
    worst = max(plan.errors.values(), default=0.0)
    if worst <= _DOUBTFUL:
        return []
    return [
        f"Do not trust this yet: the model misses its own runs by {worst:.0%}. Measure again, for "
        "more --seconds, on a machine that does nothing else."
    ]


def lengths(plan: Plan) -> list[str]:
    """A word where texts are longer than was seen."""
    if not plan.longer:
        return []
    share = f"{plan.longer:.0%}" if plan.longer >= 0.005 else "under 1%"
    return [f"Texts are reckoned as {plan.traffic.new:.0f} tokens on average and are longer: "
            f"{share} of them had not ended at the longest that was seen. Measure for more "
            "--seconds."]  # fmt: skip


def _latency(plan: Plan) -> list[str]:
    if plan.fits is None:
        return []
    without, with_ = plan.fits
    words = [f"up to {texts(n)}" if n else "at no load asked for" for n in (without, with_)]
    return [f"The wanted time a token is kept {words[0]} without and {words[1]} with speculation "
            "(means; the fleet view has percentiles)."]  # fmt: skip


def _worth(plan: Plan) -> list[str]:
    load = plan.plain[0].load
    here = [w for w in plan.curve if w.load == load]
    better = next((w for w in here if w.acceptance == _BEST and w.cost == 1.0), None)
    now = plan.best[0]
    if better is None or now is None:
        return []
    return [f"A drafter of acceptance {_BEST} at the same cost would bring {better.speed_up:.2f} "
            f"at {texts(load)} (K = {better.k})."]  # fmt: skip


def checked(plan: Plan) -> str | None:
    """How well predictions met runs that they had not seen; None where none were measured."""
    if not plan.checks:
        return None
    errors = sorted(abs(each.error) for each in plan.checks)
    return (
        f"Checked at {len(errors)} points not used for fitting: predicted and measured tokens a "
        f"second differ by {errors[len(errors) // 2]:.0%} in the median, {errors[-1]:.0%} at most."
    )


def texts(load: int) -> str:
    """A load in words."""
    return "1 text at a time" if load == 1 else f"{load} texts at a time"
