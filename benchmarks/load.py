"""Many requests at once: what the engine writes a second at every load, K chosen or fixed.

One engine, opened once, holds a calibrated pair whose acceptance is changed in place. Who decides K
is exchanged between runs, so fixed K, plain decoding and the engine's own choice run the same
recorded rounds over the same requests. See README.md; load_plot.py draws it.
"""

from __future__ import annotations

import argparse
from math import isfinite
from typing import Any

from calibrated import add_pair_options, follows, make_ready
from gpu_common import Bench, digits, first_difference, median, prompts, say, steer
from harness import Job, Parts, add_options, choose_parts, measure, numbers, shrink
from load_check import check
from load_clients import Clients, Run, percentiles
from load_engine import Watched, named, opened
from load_field import field

from paceline import Engine

SMALL = {
    "concurrency": [1, 3], "ks": [0, 2], "repeats": 2, "prompt_lengths": [5, 9, 17],
    "new_tokens": 12, "counted": [24, 36], "field_batches": [1, 3], "field_ks": [0, 2],
    "field_prompt": 9, "field_tokens": 12, "field_repeats": 1, "check_requests": 4,
    "check_tokens": 8, "target_shape": "", "draft_shape": "", "dtype": "float64",
}  # fmt: skip


# --- closed loop --------------------------------------------------------------------------------


def closed(bench: Bench) -> dict[str, Any]:
    """So many clients, each asking again when its text has ended, for every setting."""
    o = bench.options
    engine, heads, pilots = opened(bench)
    points: list[dict[str, Any]] = []
    result = {"opening": bench.shared["opening"], "points": points}
    lengths = o.prompt_lengths
    asked = [prompts(bench, 1, lengths[i % len(lengths)], seed=i)[0] for i in range(o.prompts)]
    for workload in o.workloads:
        kind, acceptance = workload.rsplit("-", 1)
        law = heads.put(engine, float(acceptance))
        temperature = 1.0 if kind == "sampled" else 0.0
        for name in ("plain", "adaptive"):  # clocks, and what the acceptance now is
            warm = Clients(max(o.concurrency[:3]), asked, o.new_tokens, temperature, o.counted[0])
            steer(engine, pilots[name])
            warm.run(engine, pilots[name])
        for count, counted in zip(o.concurrency, o.counted, strict=True):
            every = [  # other texts in each repeat, so that no one of them decides
                Clients(count, asked, o.new_tokens, temperature, counted, first=97 * repeat)
                for repeat in range(o.repeats)
            ]
            runs = _turns(bench, engine, pilots, every)
            point = {"workload": workload, "concurrency": count} | _point(runs)
            point["texts"] = _compare(every, runs, law if kind == "greedy" else None)
            costs = pilots["adaptive"].pilot.cost.rounds(count, 400.0)
            point["believed_round_ms"] = [
                digits(s * 1e3, 4) if isfinite(s) else None for s in costs
            ]
            points.append(point)
            bench.keep(result)
            _tell(point)
    result["ks_of_costs"] = list(pilots["adaptive"].pilot.cost.ks)
    return result


def _turns(
    bench: Bench, engine: Engine, pilots: dict[str, Watched], every: list[Clients]
) -> dict[str, list[Run]]:
    """Every setting in each repeat, in another order each time. every: the clients of each."""
    o = bench.options
    names = [*(named(k) for k in o.ks), "adaptive"]
    runs: dict[str, list[Run]] = {name: [] for name in names}
    for repeat, clients in enumerate(every):
        turn = repeat * (len(names) // o.repeats + 1) % len(names)
        for name in names[turn:] + names[:turn]:
            steer(engine, pilots[name])
            runs[name].append(clients.run(engine, pilots[name]))
    return runs


def _point(runs: dict[str, list[Run]]) -> dict[str, Any]:
    """Every setting's figures, and the ratios that the claims are about."""
    rates = {n: [run.figures["tok_s"] for run in every] for n, every in runs.items()}
    middle = {name: median(each) for name, each in rates.items()}
    fixed_ks = [name for name in runs if name not in ("plain", "adaptive")]
    best = max(("plain", *fixed_ks), key=lambda name: middle[name])
    ratios = [a / b for a, b in zip(rates["adaptive"], rates[best], strict=True)]
    # Against whatever was fastest in the same repeat: chance is on its side.
    others = zip(*(rates[name] for name in ("plain", *fixed_ks)), strict=True)
    harder = [a / max(b) for a, b in zip(rates["adaptive"], others, strict=True)]
    plain = [a / b for a, b in zip(rates["adaptive"], rates["plain"], strict=True)]
    return {
        "settings": {name: _setting(every) for name, every in runs.items()},
        "best_other": best,
        "adaptive_over_best": digits(median(ratios), 4),
        "adaptive_over_best_each": [digits(r, 4) for r in ratios],
        "adaptive_over_fastest_each": [digits(r, 4) for r in harder],
        "adaptive_over_plain": digits(median(plain), 4),
        "adaptive_over_plain_each": [digits(r, 4) for r in plain],
    }


def _setting(runs: list[Run]) -> dict[str, Any]:
    """One setting's runs together: medians, and times of all their requests."""
    told = [run.figures for run in runs]
    every = {name: [ms for f in told for ms in f[name]] for name in ("ttft_ms", "tpot_ms")}
    rounds: dict[str, int] = {}
    for f in told:
        for k, number in f["k_rounds"].items():
            rounds[k] = rounds.get(k, 0) + number
    return {
        "tok_s": digits(median(f["tok_s"] for f in told)),
        "tok_s_each": [f["tok_s"] for f in told],
        "ttft_ms": percentiles(every["ttft_ms"]),
        "tpot_ms": percentiles(every["tpot_ms"]),
        "k_rounds": dict(sorted(rounds.items(), key=lambda item: int(item[0]))),
        "speculation": told[-1]["speculation"],
        "runs": [{k: v for k, v in f.items() if k not in ("ttft_ms", "tpot_ms")} for f in told],
        "acceptance_rate": told[-1]["acceptance_rate"],
    }


def _compare(every: list[Clients], runs: dict[str, list[Run]], law: Any) -> dict[str, Any]:
    """Every text against the same request's plain one as far as both go; greedy ones against what
    the law says."""
    places, differ, wrong = 0, [], 0
    for name, repeats in runs.items():
        for repeat, (clients, run) in enumerate(zip(every, repeats, strict=True)):
            for number, ids in run.texts.items():
                if law is not None:
                    wrong += not follows(law, clients.root(*number), ids)
                other = runs["plain"][repeat].texts.get(number, [])
                shared = min(len(ids), len(other))
                places += shared
                place = first_difference(ids[:shared], other[:shared])
                if place is not None:
                    differ.append([name, repeat, *number, place])
    told: dict[str, Any] = {"tokens_compared": places, "differences": differ[:10]}
    told |= {"identical": not differ}
    return told if law is None else told | {"against_the_law": wrong}


def _tell(point: dict[str, Any]) -> None:
    rates = {name: s["tok_s"] for name, s in point["settings"].items()}
    say(
        f"  {point['workload']} × {point['concurrency']}: {rates} tok/s; adaptive is "
        f"{point['adaptive_over_best_each']} of {point['best_other']}, "
        f"{point['adaptive_over_plain']} of plain; {point['settings']['adaptive']['speculation']}"
    )


def _short(point: dict[str, Any]) -> dict[str, Any]:
    keep = ("workload", "concurrency", "best_other", "adaptive_over_best",
            "adaptive_over_best_each", "adaptive_over_plain")  # fmt: skip
    short = {name: point[name] for name in keep}
    short["tok_s"] = {name: s["tok_s"] for name, s in point["settings"].items()}
    wrong = point["texts"].get("against_the_law", 0)
    return short | {"identical": point["texts"]["identical"] and not wrong}


PARTS: Parts = {"closed": closed, "field": field, "check": check}  # check: last, it spoils weights


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add_options(parser, PARTS, 540.0)
    add_pair_options(add)
    words = "greedy-0.3,greedy-0.8,sampled-0.6"
    add("--workloads", default=words, help="greedy or sampled (temperature 1), and acceptance")
    add("--concurrency", type=numbers, default=[1, 4, 16, 64])
    add(
        "--counted",
        type=numbers,
        default=[1024, 2048, 4096, 16384],
        help="tokens of a run, for each",
    )
    add("--ks", type=numbers, default=[0, 2, 4, 8])
    add("--repeats", type=int, default=3)
    add("--prompts", type=int, default=256, help="different prompts")
    add("--prompt-lengths", type=numbers, default=[64, 512, 32, 256, 128])
    add("--new-tokens", type=int, default=256)
    add("--field-batches", type=numbers, default=[1, 8, 32])
    add("--field-ks", type=numbers, default=[0, 2, 4, 8])
    add("--field-prompt", type=int, default=128)
    add("--field-tokens", type=int, default=512)
    add("--field-repeats", type=int, default=3)
    add("--check-requests", type=int, default=48)
    add("--check-tokens", type=int, default=64)
    options = parser.parse_args()
    shrink(options, SMALL)
    options.workloads = options.workloads.split(",")
    choose_parts(parser, options, PARTS)
    if len(options.counted) != len(options.concurrency):
        parser.error("--counted has a number for each of --concurrency")
    return options


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """The last line."""
    parts = results["parts"]
    short: dict[str, Any] = {"benchmark": "load", "machine": results["machine"]}
    short["errors"] = {n: p["error"][:300] for n, p in parts.items() if "error" in p}
    short["seconds"] = {name: part.get("part_seconds") for name, part in parts.items()}
    if "closed" in parts:  # whatever it came to
        short["closed"] = [_short(p) for p in parts["closed"].get("points", ())]
    return short | {n: p["summary"] for n, p in parts.items() if "summary" in p}


def main() -> None:
    """Run the parts and print the result."""
    options = parse()
    make_ready(options)
    measure(Job("load", __file__, PARTS, summary, together=True), options)


if __name__ == "__main__":
    main()
