"""What `paceline plan` is made from, as its options say: prompts, measurements, requests."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paceline import ConfigError, Engine
from paceline.cli import common
from paceline.cli.common import engine_options, open_engine
from paceline.cli.demo import draw
from paceline.cli.prompts import read as own_prompts
from paceline.lab import plan_bench, plan_measured, plan_metrics
from paceline.lab import plan_probe as probing
from paceline.lab.fleet import Replica
from paceline.lab.fleet_traffic import Arrival, Lengths, poisson
from paceline.lab.fleet_traffic import read as read_traffic
from paceline.lab.plan_answer import Plan
from paceline.lab.plan_loop import Probe, Prompt
from paceline.lab.plan_measured import Measured
from paceline.lab.plan_serve import fixed_k
from paceline.lab.plan_words import lengths

BUNDLED = 32  # prompts of the bundled set


def loads(text: str | None, device: str, found: Measured | None) -> tuple[int, ...]:
    """Those asked for; else those that were measured; else what the device is likely to have."""
    if text is None and found is not None:
        return tuple(sorted({run.load for each in found.drafters for run in each.runs}))
    if text is None:
        return (1, 4, 16, 64) if device.startswith("cuda") else (1, 2, 4)
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 1 <= int(part) <= 4096 for part in parts):
        raise ConfigError(f"--loads must be numbers from 1 to 4096, as in 1,4,16, not {text!r}")
    return tuple(sorted({int(part) for part in parts}))


def kept(measured: Path | None, bench: Path | None) -> Measured | None:
    if measured is not None:
        return plan_measured.load(measured)
    if bench is None:
        return None
    found, problems = plan_bench.read(bench)
    _note(problems)
    return found


def elsewhere(found: Measured, metrics: str) -> Measured:
    """The same with a server's acceptance."""
    accepted, doubts = plan_metrics.read(metrics)
    found = found.with_acceptance(accepted, metrics)
    _note(f"{metrics}: {line}" for line in doubts)
    return found


def _note(lines: Iterable[str]) -> None:
    for line in lines:
        common.stderr.print(line, style="dim", markup=False, soft_wrap=True)


def prompts(file: Path | None, target: str | None) -> tuple[Prompt, ...]:
    """The user's, of a conversation the first, or the bundled ones, which are for the bundled
    pair."""
    if file is None:
        if target not in (None, common.MINI_TARGET):
            raise ConfigError("give your own prompts with --file, as paceline bench -w takes "
                              "them; how often drafts stand depends on the text")  # fmt: skip
        return tuple(row["prompt"] for row in draw(0, BUNDLED))
    return tuple(own_prompts(file))


def measure(
    models: dict[str, Any], drafters: list[str] | None, k: int, probe: Probe, check: bool
) -> Measured:
    """Measure every drafter, each in its share of the time."""
    shared = engine_options(None, **models)
    names = drafters or (["model", "ngram"] if "draft" in shared else ["ngram"])
    if "none" in names:
        raise ConfigError("plain decoding is measured with every drafter: leave --drafter none out")
    shared |= {"adaptive": True, "prefix_cache": False, "slots": max(probe.loads), "k": k}
    each = dataclasses.replace(probe, seconds=probe.seconds / len(names), check=check)
    found = []
    for name in names:

        @contextmanager
        def opened(name: str = name) -> Iterator[Engine]:
            with open_engine(shared | {"drafter": name}) as engine:
                yield engine

        found.append(probing.measure(opened, name, each, _say))
        if check and not found[-1].checks:
            _note([f"{name}: nothing to check, the model was fitted to every load and K that was "
                   "asked for; give more --loads or a larger --k"])  # fmt: skip
    told = {name: str(value) for name, value in shared.items() if value is not None}
    source = f"a probe of {probe.seconds:g} s on {len(probe.prompts)} prompts"
    return Measured(source, str(shared["target"]), tuple(found), told, common.versions())


def _say(what: str) -> None:
    if common.stderr.is_terminal:
        common.stderr.print(what, style="dim", markup=False)


def arrivals(
    traffic: Path | None, rate: float | None, seconds: float, prompt: str | None, new: str | None,
    found: Plan,
) -> list[Arrival]:  # fmt: skip
    if traffic is not None:
        return read_traffic(traffic)
    assert rate is not None
    mean = found.traffic
    read, written = Lengths(max(1.0, mean.prompt)), Lengths(max(1.0, mean.new))
    if prompt is not None:
        read = Lengths.parse(prompt, "--prompt-tokens")
    if new is not None:
        written = Lengths.parse(new, "--new-tokens")
    else:
        _note(lengths(found))
    arrivals = poisson(rate, seconds, read, written)
    if not arrivals:
        raise ConfigError(f"no request comes in {seconds / 3600:g} hours at --rate {rate:g}")
    return arrivals


def replica(kept: Measured, found: Plan, slots: int | None) -> Replica:
    """An engine as the plan recommends it; the first drafter's where it recommends none."""
    name = found.drafter or kept.drafters[0].drafter
    one = next(each for each in kept.drafters if each.drafter == name)
    ks, pace = tuple(k for k in one.ks if k <= found.k), one.pace() if found.k else 1.0
    if kept.engine.get("rule", "match") != "match":  # served with one K, as the file says
        ks, pace = (fixed_k(found),), 1.0
    count = slots or max(point.load for point in found.plain)
    chunk = kept.engine.get("prefill_chunk", "")
    accepted = one.accepted()
    return Replica(one.fitted().machine, ks, accepted.conditional(), count,
                   int(chunk) if chunk.isdecimal() else 512,
                   offsets=accepted.offsets(), pace=pace)  # fmt: skip
