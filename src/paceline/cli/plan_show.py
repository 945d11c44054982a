"""A plan and a fleet as people read them: the verdict first, then tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from paceline.lab.fleet_answer import Fleet, Target
from paceline.lab.plan_answer import CURVE, Plan, Setting
from paceline.lab.plan_vllm import Command, table
from paceline.lab.plan_words import ASSUMPTIONS, checked, verdict

_MIB = 1 << 20


def show(plan: Plan, command: Command, source: str, console: Console) -> None:
    """Print all of it."""
    for line in verdict(plan):
        console.print(line, style="bold", markup=False, soft_wrap=True)
    console.print()
    console.print(_settings(plan))
    for title, made in (
        ("Best speed-up if a draft token stood with this chance at every position", _curve(plan)),
        ("Acceptance by position, given that all before stood", _acceptance(plan)),
    ):
        if made is not None:
            console.print(title, markup=False)
            console.print(made)
    if plan.checks:
        console.print(checked(plan), markup=False, soft_wrap=True)
        console.print(_checks(plan))
    _vllm(command, console)
    console.print("Assumed:", markup=False)
    for line in ASSUMPTIONS:
        console.print(f"  {line}", markup=False, soft_wrap=True)
    errors = ", ".join(f"{name} {error:.1%}" for name, error in plan.errors.items())
    told = (f"Measured: {source}. Prompts of {plan.traffic.prompt:.0f} tokens, "
            f"{plan.traffic.new:.0f} written. The model misses its own runs by {errors} "
            "(root mean square).")  # fmt: skip
    console.print(told, markup=False, soft_wrap=True)


def _table(*columns: str) -> Table:
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        made.add_column(column, justify="right" if number else "left")
    return made


def _settings(plan: Plan) -> Table:
    """Plain decoding and, for each drafter, its best K at every load."""
    made = _table("drafter", "texts at a time", "K", "speed-up", "95 %", "tokens a round",
                  "round", "tok/s", "TPOT", "TTFT", "memory")  # fmt: skip
    for point in plan.plain:
        made.add_row("none", str(point.load), "0", "1.00", "", "1.00", _ms(point.round),
                     f"{point.tok_s:.1f}", _ms(point.tpot), _ms(point.ttft), "")  # fmt: skip
    for drafter in dict.fromkeys(one.drafter for one in plan.settings):
        made.add_section()
        for load in [point.load for point in plan.plain]:
            here = [s for s in plan.settings if s.drafter == drafter and s.point.load == load]
            made.add_row(*_row(max(here, key=lambda s: s.speed_up), plan))
    return made


def _row(one: Setting, plan: Plan) -> Sequence[str]:
    point, size = one.point, plan.memory.get(one.drafter, 0)
    return (
        one.drafter,
        str(point.load),
        str(point.k),
        f"{one.speed_up:.2f}",
        f"{one.low:.2f} to {one.high:.2f}",
        f"{point.tokens_per_round:.2f}",
        _ms(point.round),
        f"{point.tok_s:.1f}",
        _ms(point.tpot),
        _ms(point.ttft),
        f"{size / _MIB:.0f} MiB" if size else "",
    )


def _curve(plan: Plan) -> Table | None:
    if not plan.curve:
        return None
    made = _table("drafting takes", "texts at a time", *(f"{a:g}" for a in CURVE))
    for cost in dict.fromkeys(w.cost for w in plan.curve):
        for load in dict.fromkeys(w.load for w in plan.curve):
            row = [w for w in plan.curve if w.cost == cost and w.load == load]
            name = "as measured" if cost == 1 else f"{cost:.0%} of it"
            made.add_row(name, str(load), *(f"{w.speed_up:.2f}" for w in row))
    return made


def _acceptance(plan: Plan) -> Table | None:
    width = max((len(law) for law in plan.acceptance.values()), default=0)
    if not width:
        return None
    made = _table("drafter", *(str(place + 1) for place in range(width)))
    for name, law in plan.acceptance.items():
        made.add_row(name, *(f"{chance:.2f}" for chance in law))
    return made


def _checks(plan: Plan) -> Table:
    made = _table("drafter", "texts at a time", "K", "predicted tok/s", "measured", "error")
    for each in plan.checks:
        made.add_row(each.drafter, str(each.load), str(each.k), f"{each.predicted:.1f}",
                     f"{each.measured:.1f}", f"{each.error:+.1%}")  # fmt: skip
    return made


def _vllm(command: Command, console: Console) -> None:
    if command.line is None:
        console.print(f"No line for vLLM: {command.why}.", markup=False, soft_wrap=True)
    else:
        console.print(f"With vLLM {table()['version']}:", markup=False)
        console.print(f"  {command.line}", markup=False, soft_wrap=True)
        for note in command.notes:
            console.print(f"  {note}", markup=False, soft_wrap=True)
    console.print()


def show_fleet(
    fleets: Sequence[Fleet], target: Target, requests: int, seconds: float, console: Console
) -> None:
    """Print what a day needs."""
    plain, fast = fleets
    console.print(fleet_verdict(plain, fast, target), style="bold", markup=False, soft_wrap=True)
    made = _table("", "GPUs", "TPOT p50 / p95 / p99", "TTFT p50 / p95 / p99", "busy", "target",
                  "GPUs needed", "a million tokens")  # fmt: skip
    for fleet in fleets:
        paid = "" if fleet.per_million is None else f"{fleet.per_million:.3f}"
        made.add_row(
            fleet.name, str(fleet.gpus), " / ".join(_ms(x) for x in fleet.tpot),
            " / ".join(_ms(x) for x in fleet.ttft), f"{fleet.busy:.0%}",
            "kept" if fleet.kept else "missed",
            "" if fleet.needed is None else str(fleet.needed), paid,
        )  # fmt: skip
    console.print(made)
    told = (f"{requests} requests in {seconds / 3600:.2f} hours, simulated step by step with the "
            "measured costs; each goes to the replica with the fewest requests.")  # fmt: skip
    console.print(told, markup=False, soft_wrap=True)


def fleet_verdict(plain: Fleet, fast: Fleet, target: Target) -> str:
    """What speculation saves, in a sentence."""
    if target.tpot is None and target.ttft is None:
        return (
            f"On {texts_gpus(plain.gpus)}, 95 of a hundred texts take at most {_ms(plain.tpot[1])} "
            f"a token without speculation and {_ms(fast.tpot[1])} with it."
        )
    needs = [
        "no number of GPUs keeps it" if fleet.needed is None else texts_gpus(fleet.needed)
        for fleet in (plain, fast)
    ]
    return f"For the target: without speculation {needs[0]}, with it {needs[1]}."


def texts_gpus(count: int) -> str:
    """A number of GPUs in words."""
    return "1 GPU" if count == 1 else f"{count} GPUs"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
