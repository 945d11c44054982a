"""A plan from a minute's probe, held against acceptances and loads that the probe did not see.

One engine, opened once, holds a calibrated pair whose acceptance is changed in place. It is probed
at one acceptance and a few loads; predictions are written down before anything else is measured;
then plain decoding and a grid of K are measured in turns at other acceptances and loads. See
README.md; plan_plot.py draws it.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from typing import Any

from calibrated import Heads, add_pair_options, make_ready
from gpu_common import Bench, digits, fixed, median, open_engine, prompts, say
from harness import Job, Parts, add_options, choose_parts, measure, numbers, shrink

from paceline import Engine
from paceline.lab.plan_loop import Probe, closed_loop
from paceline.lab.plan_measured import Drafted, Measured, save
from paceline.lab.plan_model import Machine, Point, Traffic, best, constant, predict
from paceline.lab.plan_probe import measure_engine

SMALL = {
    "probe_seconds": 4.0, "probe_loads": [2], "points": "0.8x1,0.3x3,0.95x3", "grid": [0, 2, 4],
    "k": 4, "run_seconds": 0.2, "repeats": 1, "prompt_lengths": [5, 9, 17], "new_tokens": 16,
    "target_shape": "", "draft_shape": "", "dtype": "float64", "budget": 40.0,
}  # fmt: skip
WITHIN, ENOUGH, SHORT = 0.10, 0.9, 0.97  # the claims


def probe(bench: Bench) -> dict[str, Any]:
    """Open the engine, measure for the stated time, and predict everything."""
    o = bench.options
    engine = open_engine(
        bench, o.k, adaptive=True, slots=max([*o.probe_loads, *(load for _, load in o.points)]),
        max_length=max(o.prompt_lengths) + o.new_tokens + 16,
    )  # fmt: skip
    heads = Heads(bench)
    heads.put(engine, o.probe_acceptance)
    asked = tuple(
        tuple(prompts(bench, 1, o.prompt_lengths[i % len(o.prompt_lengths)], seed=i)[0])
        for i in range(o.prompts)
    )
    ask = Probe(asked, fixed(o.new_tokens), tuple(o.probe_loads), (0, *o.grid), o.probe_seconds)
    began = time.perf_counter()
    drafted = measure_engine(engine, "model", ask, say)
    seconds = time.perf_counter() - began
    if o.out:  # what `paceline plan --measured` reads
        save(Measured("a probe", "llama-8b", (drafted,)), o.out.with_suffix(".measured.json"))
    fitted = drafted.fitted()
    traffic = Traffic(sum(map(len, asked)) / len(asked), o.new_tokens)
    every = [_predicted(bench, fitted.machine, traffic, *point) for point in o.points]
    bench.shared |= {"all": (engine, heads, ask), "predicted": every}
    # What the tool would take the acceptance for, from the probe alone.
    seen = drafted.accepted().conditional()
    return {
        "seconds": digits(seconds, 4),
        "runs": [_told(run) for run in drafted.runs],
        "fit_error": digits(fitted.error, 3),
        "overheads": {"plain": asdict(fitted.machine.plain),
                      "drafting": asdict(fitted.machine.drafting), "edge": fitted.machine.edge},
        "acceptance_seen": [digits(c, 4) for c in seen],
        "costs_ms": _costs(drafted, o.points),
        "predicted": every,
    }  # fmt: skip


def _predicted(
    bench: Bench, machine: Machine, traffic: Traffic, acceptance: float, load: int
) -> dict[str, Any]:
    """Rates of every K of the grid at one point, and which of them is recommended."""
    law = constant(acceptance, bench.options.k)
    points = {k: predict(machine, traffic, load, k, law) for k in bench.options.grid}
    return {
        "acceptance": acceptance,
        "load": load,
        "tok_s": {str(k): digits(p.tok_s) for k, p in points.items()},
        "round_ms": {str(k): digits(p.round * 1e3, 4) for k, p in points.items()},
        "tpot_ms": {str(k): digits(p.tpot * 1e3, 4) for k, p in points.items()},
        "tokens_per_round": {str(k): digits(p.tokens_per_round, 4) for k, p in points.items()},
        "recommended": _recommended(list(points.values())),
    }


def _recommended(points: list[Point]) -> int:
    return best(points).k


def _costs(drafted: Drafted, points: list[tuple[float, int]]) -> dict[str, list[float]]:
    """The table of costs at the loads, in the order of `ks`: milliseconds at context 300."""
    loads = sorted({load for _, load in points})
    told = {"ks": [float(k) for k in drafted.ks]}
    for load in loads:
        costs = drafted.costs
        told[str(load)] = [digits(costs.round(load, k, 300.0) * 1e3, 4) for k in drafted.ks]
    return told


def measured(bench: Bench) -> dict[str, Any]:
    """Every point of every repeat, plain decoding and the grid in turns, while there is time."""
    o = bench.options
    if "all" not in bench.shared:
        raise RuntimeError("the part probe has not run in this process")
    engine, heads, ask = bench.shared["all"]
    points: list[dict[str, Any]] = [dict(p, rates={str(k): [] for k in o.grid}, seen={})
                                    for p in bench.shared["predicted"]]  # fmt: skip
    result: dict[str, Any] = {"points": points, "repeats": 0}
    began, longest = time.perf_counter(), 0.0
    for repeat in range(o.repeats):
        for number, point in enumerate(points):
            started = time.perf_counter()
            if started - began + longest > o.budget:
                say(f"  the time is over in repeat {repeat + 1}, at point {number + 1}")
                return _judged(bench, result)
            _turn(engine, heads, ask, point, o, repeat + number)
            bench.keep(_judged(bench, result))
            longest = max(longest, time.perf_counter() - started)
        result["repeats"] = repeat + 1
    return _judged(bench, result)


def _turn(
    engine: Engine, heads: Heads, ask: Probe, point: dict[str, Any], o: Any, turn: int
) -> None:
    """Measure one point once: each K of the grid, beginning with another each time. A stretch is
    a text a client at least: in a shorter one fewer texts begin than do in the long run, which is
    what was predicted."""
    heads.put(engine, point["acceptance"])
    ks = o.grid[turn % len(o.grid) :] + o.grid[: turn % len(o.grid)]
    least = point["load"] * o.new_tokens
    for k in ks:
        run = closed_loop(engine, ask, point["load"], k, o.run_seconds, least=least)
        point["rates"][str(k)].append(digits(run.tok_s))
        point["seen"].setdefault(str(k), []).append(digits(run.per_round, 4))
    rates = {k: each[-1] for k, each in point["rates"].items()}
    say(f"  {point['acceptance']} × {point['load']}: measured {rates}, predicted {point['tok_s']}")


def _judged(bench: Bench, result: dict[str, Any]) -> dict[str, Any]:
    """The errors of the speed-ups, and what the recommended K gives beside the best of the grid."""
    errors, shares = [], []
    for point in result["points"]:
        rates = {k: median(each) for k, each in point["rates"].items() if each}
        if "0" not in rates or len(rates) < len(bench.options.grid):
            continue
        point["speed_up"] = {k: digits(r / rates["0"], 4) for k, r in rates.items()}
        wanted = point["tok_s"]
        point["predicted_speed_up"] = {k: digits(r / wanted["0"], 4) for k, r in wanted.items()}
        point["error"] = {
            k: digits(point["predicted_speed_up"][k] / point["speed_up"][k] - 1, 3)
            for k in rates
            if k != "0"
        }
        errors += list(point["error"].values())
        point["best"] = int(max(rates, key=lambda k: rates[k]))
        point["of_best"] = digits(rates[str(point["recommended"])] / max(rates.values()), 4)
        shares.append(point["of_best"])
    inside = sum(abs(e) <= WITHIN for e in errors)
    result["summary"] = {
        "points": len(shares),
        "speed_ups": len(errors),
        "within_10_percent": inside,
        "prediction_met": bool(errors) and inside >= ENOUGH * len(errors),
        "median_error": digits(median(abs(e) for e in errors), 3),
        "worst_error": digits(max(errors, key=abs, default=0.0), 3),
        "recommended_of_best": shares,
        "recommendation_met": bool(shares) and min(shares) >= SHORT,
    }
    return result


def _told(run: Any) -> dict[str, Any]:
    return {
        "load": run.load, "k": run.k, "tok_s": digits(run.tok_s), "begun": run.begun,
        "seconds": digits(run.seconds, 4), "tokens_per_round": digits(run.per_round, 4),
    }  # fmt: skip


PARTS: Parts = {"probe": probe, "measured": measured}


def _points(text: str) -> list[tuple[float, int]]:
    """`ACCEPTANCExLOAD`, commas between."""
    pairs = [part.split("x") for part in text.split(",")]
    return [(float(acceptance), int(load)) for acceptance, load in pairs]


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add_options(parser, PARTS, 570.0)
    add_pair_options(add)
    add("--probe-seconds", type=float, default=50.0)
    add("--probe-acceptance", type=float, default=0.6)
    add("--probe-loads", type=numbers, default=[2, 12, 48])
    add("--points", default="0.8x1,0.8x16,0.8x64,0.3x1,0.3x32,0.95x4,0.95x64,0.5x8,0.5x1,0.9x16,"
        "0.9x1,0.7x32", help="acceptance and load of what is predicted")  # fmt: skip
    add("--grid", type=numbers, default=[0, 2, 4, 8], help="every K that is measured, 0 among them")
    add("--k", type=int, default=8, help="the engine's most draft tokens")
    add("--run-seconds", type=float, default=1.5, help="at least, and a text a client")
    add("--repeats", type=int, default=3, help="of which the median counts")
    add("--budget", type=float, default=400.0, help="seconds of measuring, the probe not counted")
    add("--prompts", type=int, default=256, help="different prompts")
    add("--prompt-lengths", type=numbers, default=[64, 512, 32, 256, 128])
    add("--new-tokens", type=int, default=256)
    options = parser.parse_args()
    shrink(options, SMALL)
    options.points = _points(options.points)
    choose_parts(parser, options, PARTS)
    used = {options.probe_acceptance} & {a for a, _ in options.points}
    used |= set(options.probe_loads) & {load for _, load in options.points}
    if used:
        parser.error(f"--points has what the probe has too: {sorted(used)}")
    if 0 not in options.grid or max(options.grid) > options.k:
        parser.error("--grid has 0 in it, and nothing above --k")
    return options


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """The last line."""
    parts = results["parts"]
    short: dict[str, Any] = {"benchmark": "plan_gpu", "machine": results["machine"]}
    short["errors"] = {
        n: p["error"][:300] for n, p in parts.items() if isinstance(p.get("error"), str)
    }
    short["seconds"] = {name: part.get("part_seconds") for name, part in parts.items()}
    short["probe_seconds"] = parts.get("probe", {}).get("seconds")
    return short | parts.get("measured", {}).get("summary", {})


def main() -> None:
    """Run the parts and print the result."""
    options = parse()
    make_ready(options)
    measure(Job("plan_gpu", __file__, PARTS, summary, together=True), options)


if __name__ == "__main__":
    main()
