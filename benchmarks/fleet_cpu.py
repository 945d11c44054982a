"""The fleet's simulation against a real engine: requests at random times on a CPU.

A Poisson traffic is drawn. Before each run the mini pair is probed anew, as a machine's pace
drifts, and the simulation predicts what the traffic will meet; then the very same requests are
sent. The last line of standard output is JSON. See README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shlex
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

import paceline
from paceline import Engine, Handle, SamplingParams
from paceline.lab.fleet import Outcome, Replica, quantile, simulate
from paceline.lab.fleet_traffic import Arrival, Lengths, poisson
from paceline.lab.plan_loop import Probe, settle
from paceline.lab.plan_measured import Drafted
from paceline.lab.plan_model import Traffic, best, predict
from paceline.lab.plan_probe import measure_engine

LOOK = 0.001  # seconds between two looks at what has come
ENOUGH = 0.15  # the claim, or the spread of the runs where that is more
SHARES = (0.5, 0.95, 0.99)


def say(text: str) -> None:
    """Print progress."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


def held_out(engine: Engine, lengths: list[int], seed: int) -> list[tuple[int, ...]]:
    """Token ids of bundled prompts, each cut to one of `lengths`, or as long as it is."""
    text = (files("paceline") / "assets" / "prompts.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line)["prompt"] for line in text.splitlines()]
    random.Random(seed).shuffle(rows)
    cut = []
    for number, row in enumerate(rows):
        ids = engine.tokenizer.encode(row)
        cut.append(tuple(ids[-lengths[number % len(lengths)] :]))
    return cut


@dataclass(slots=True)
class Asked:
    """A request on its way. stamps: (seconds, tokens) of each look that found some."""

    handle: Handle
    due: float
    stamps: list[tuple[float, int]] = field(default_factory=list)
    done: bool = False

    def look(self, now: float) -> None:
        found = 0
        while not self.done and (event := self.handle.take()) is not None:
            found += len(event.token_ids)
            self.done = event.finish is not None
            if event.finish == "error":
                self.handle.result()  # raises it
        if found:
            self.stamps.append((now, found))

    @property
    def tpot(self) -> float | None:
        behind = sum(n for _, n in self.stamps) - self.stamps[0][1]
        return (self.stamps[-1][0] - self.stamps[0][0]) / behind if behind else None


def real(engine: Engine, arrivals: list[Arrival], prompts: list[tuple[int, ...]]) -> dict[str, Any]:
    """Send every request at its time, whether or not others have ended."""
    settle(engine, None)
    before, waiting, running, every = engine.stats(), list(arrivals), list[Asked](), list[Asked]()
    began = time.perf_counter()
    while waiting or running:
        now = time.perf_counter()
        while waiting and now - began >= waiting[0].at:
            number, arrival = len(every), waiting.pop(0)
            params = SamplingParams(max_tokens=arrival.new, ignore_eos=True, seed=number)
            handle = engine.submit(prompts[number], params)
            every.append(Asked(handle, began + arrival.at))
            running.append(every[-1])
        for asked in running:
            asked.look(now)
        running = [asked for asked in running if not asked.done]
        time.sleep(LOOK)
    after = engine.stats()
    seconds = time.perf_counter() - began
    tpot = [t for asked in every if (t := asked.tpot) is not None]
    ttft = [asked.stamps[0][0] - asked.due for asked in every]
    return {
        "requests": len(every),
        "seconds": round(seconds, 1),
        "tok_s": round(sum(a.new for a in arrivals) / seconds, 2),
        "acceptance_rate": _rate(before, after),
        "engine": _spent(before, after),
        "tpot_ms": {f"p{s * 100:g}": _ms(quantile(tpot, s)) for s in SHARES},
        "ttft_ms": {f"p{s * 100:g}": _ms(quantile(ttft, s)) for s in SHARES},
    }


def _rate(before: Any, after: Any) -> float | None:
    tested = after.evaluated - before.evaluated
    return round((after.accepted - before.accepted) / tested, 4) if tested else None


def _spent(before: Any, after: Any) -> dict[str, Any]:
    """What the engine's rounds were and took meanwhile."""
    told = {
        name: round(getattr(after, name) - getattr(before, name), 2)
        for name in ("rounds", "verify_seconds", "draft_seconds", "prefill_seconds")
    }
    ks = [*before.rounds_by_k, *[0] * (len(after.rounds_by_k) - len(before.rounds_by_k))]
    return told | {"rounds_by_k": [b - a for a, b in zip(ks, after.rounds_by_k, strict=True)]}


def simulated(outcome: Outcome) -> dict[str, Any]:
    """The same figures of a simulated run."""
    return {
        "seconds": round(outcome.seconds, 1),
        "busy": round(outcome.busy, 3),
        "prefill_seconds": round(outcome.read * outcome.seconds, 2),
        "rounds": outcome.rounds,
        "tpot_ms": {f"p{s * 100:g}": _ms(outcome.tpot(s)) for s in SHARES},
        "ttft_ms": {f"p{s * 100:g}": _ms(outcome.ttft(s)) for s in SHARES},
    }


def judged(told: list[dict[str, Any]], runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The errors of p95 TPOT, each run against its own prediction, beside what is allowed."""
    said = [each["tpot_ms"]["p95"] for each in told]
    seen = [each["tpot_ms"]["p95"] for each in runs]
    errors = [a / b - 1 for a, b in zip(said, seen, strict=True)]
    size = statistics.median(map(abs, errors))
    spread = (max(seen) - min(seen)) / statistics.median(seen)
    first = [a["ttft_ms"]["p95"] / b["ttft_ms"]["p95"] - 1 for a, b in zip(told, runs, strict=True)]
    return {
        "predicted_p95_tpot_ms": said,
        "p95_tpot_ms": seen,
        "errors": [round(e, 4) for e in errors],
        "error": round(size, 4),
        "spread": round(spread, 4),
        "allowed": round(max(ENOUGH, spread), 4),
        "met": size <= max(ENOUGH, spread),
        "met_within_15_percent": size <= ENOUGH,
        "p95_ttft_errors": [round(e, 4) for e in first],
    }


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--seconds", type=float, default=600.0, help="of a run")
    add("--runs", type=int, default=3)
    add("--probe-seconds", type=float, default=60.0)
    add("--busy", type=float, default=0.5, help="share of what the engine could write at most")
    add("--slots", type=int, default=4)
    add("--k", type=int, default=6)
    add("--threads", type=int, default=1, help="the other core is the clients")
    add("--new-tokens", default="128:0.5", help="MEAN:SPREAD")
    add("--prompt-lengths", default="64,256,128,320")
    add("--seed", type=int, default=0)
    add("--out", type=Path, help="write the JSON there")
    return parser.parse_args()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Probe, predict, send."""
    lengths = [int(part) for part in options.prompt_lengths.split(",")]
    new = Lengths.parse(options.new_tokens, "--new-tokens")
    with Engine(
        "mini-target", draft="mini-draft", k=options.k, slots=options.slots, adaptive=True,
        prefix_cache=False, threads=options.threads, max_length=2048, device="cpu",
    ) as engine:  # fmt: skip
        prompts = held_out(engine, lengths, options.seed)
        half = len(prompts) // 2
        params = SamplingParams(max_tokens=round(new.mean), ignore_eos=True)
        loads = tuple(sorted({1, max(1, options.slots // 2), options.slots}))
        # Other prompts than those of the run.
        ask = Probe(tuple(prompts[:half]), params, loads, tuple(range(options.k + 1)),
                    options.probe_seconds)  # fmt: skip
        arrivals, sent = list[Arrival](), list[tuple[int, ...]]()
        told, runs, probes = list[dict[str, Any]](), list[dict[str, Any]](), list[dict[str, Any]]()
        for number in range(options.runs):
            drafted = measure_engine(engine, "model", ask, say)
            if not arrivals:
                arrivals, sent = _traffic(options, drafted, prompts[half:], new)
            replica = _replica(drafted, options.slots)
            told.append(simulated(simulate(replica, 1, arrivals, options.seed)))
            probes.append(_probed(drafted))
            say(f"{len(arrivals)} requests; predicted {told[-1]}")
            runs.append(real(engine, arrivals, sent))
            say(f"run {number + 1}: {runs[-1]}")
        return {
            "predicted": told, "runs": runs, "judged": judged(told, runs), "probes": probes,
            "threads": engine.threads, "requests": len(arrivals),
        }  # fmt: skip


def _replica(drafted: Drafted, slots: int) -> Replica:
    machine, accepted = drafted.fitted().machine, drafted.accepted()
    law, offsets = accepted.conditional(), accepted.offsets()
    return Replica(machine, drafted.ks, law, slots, offsets=offsets, pace=drafted.pace())


def _probed(drafted: Drafted) -> dict[str, Any]:
    """What a probe found, to compare it with the others'."""
    fitted = drafted.fitted()
    return {
        "acceptance": [round(c, 4) for c in drafted.accepted().conditional()],
        "overheads": {"plain": asdict(fitted.machine.plain),
                      "drafting": asdict(fitted.machine.drafting),
                      "edge": fitted.machine.edge},
        "fit_error": round(fitted.error, 4),
        "pace": round(drafted.pace(), 4),
    }  # fmt: skip


def _traffic(
    options: argparse.Namespace, drafted: Drafted, prompts: list[tuple[int, ...]], new: Lengths
) -> tuple[list[Arrival], list[tuple[int, ...]]]:
    """Requests at the rate that keeps the engine as busy as asked, and their prompts."""
    machine, law = drafted.fitted().machine, drafted.accepted().conditional()
    mean = Traffic(sum(map(len, prompts)) / len(prompts), new.mean)
    most = best([predict(machine, mean, options.slots, k, law) for k in drafted.ks])
    rate = options.busy * most.tok_s / new.mean
    drawn = poisson(rate, options.seconds, Lengths(1), new, options.seed)
    sent = [prompts[n % len(prompts)] for n in range(len(drawn))]
    return [Arrival(a.at, len(p), a.new) for a, p in zip(drawn, sent, strict=True)], sent


def _ms(seconds: float) -> float:
    return float(f"{seconds * 1e3:.5g}")


def main() -> None:
    """Run it and print the result."""
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("PACELINE_CACHE", folder)  # costs that are this run's own
        found = measure(options)
    settings = {k: v for k, v in vars(options).items() if k != "out"}
    result = {
        "benchmark": "fleet_cpu",
        "command": shlex.join([Path(__file__).name, *sys.argv[1:]]),
        "settings": settings,
        "machine": {"python": platform.python_version(), "torch": torch.__version__,
                    "paceline": paceline.__version__, "cores": os.cpu_count()},
    } | found  # fmt: skip
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({"benchmark": "fleet_cpu", **result["judged"], "requests": found["requests"]}))


if __name__ == "__main__":
    main()
