"""Thousands of requests on a CPU with everything that may befall them; each must be as alone.

The audit's traffic (`paceline.lab.audit_traffic`) on an engine whose loop is upset on purpose: all
pages that are free are taken away for a while, so that texts must give theirs up and resume, and
the drafter is paused and wanted again in the middle of texts. In float64 every text must be the one
that the request gets alone; in other dtypes every difference is shown with its margin. The last
line on standard output is JSON. See README.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import platform
import random
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import paceline
from paceline import Engine
from paceline.engine.acceptance import Track
from paceline.engine.loop import Loop
from paceline.engine.pilot import Launch, Pilot
from paceline.lab.audit_clients import TrafficOptions
from paceline.lab.audit_pair import Pair
from paceline.lab.audit_traffic import TrafficResult, audit_traffic

sys.path.append(str(Path(__file__).parent.parent))  # the tests' tiny models

Text = tuple[int, ...]


class Moody:
    """Who decides K: by turns of random length the engine's own choice, a fixed K, and nobody, with
    the drafter paused. What it missed meanwhile it is shown when it is wanted again."""

    def __init__(self, own: Pilot, k: int, seed: int) -> None:
        """own: the engine's. k: the longest draft."""
        self._own, self._most, self._rng = own, k, random.Random(seed)
        self._left, self._k = 0, k  # rounds of this turn; -1: as the engine chooses
        self.pauses = self.resumed = self.rounds_paused = self.caught_up = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    @property
    def paused(self) -> bool:
        return self._own.paused if self._k < 0 else not self._k

    def plan(self, tracks: list[Track], context: float) -> Launch:
        """See `engine.policy.Governor.plan`."""
        if not self._left:
            was, self._left = self._k, self._rng.randrange(1, 24)
            self._k = self._rng.choice((0, 0, -1, *range(1, self._most + 1)))
            self.pauses += was != 0 and self._k == 0
            self.resumed += was == 0 and self._k != 0
        self._left -= 1
        self.rounds_paused += self.paused
        if self._k < 0:
            launch = self._own.plan(tracks, context)
        else:
            asked = tuple(track.waiting for track in tracks)
            drafts = tuple(min(self._k, track.limit) for track in tracks)
            for track, count in zip(tracks, drafts, strict=True):
                track.waiting = count
            launch = Launch(len(tracks), context, max(asked), max(drafts), asked, drafts)
        pairs = zip(tracks, launch.drafts, strict=True)
        self.caught_up += sum(track.behind for track, drafts in pairs if drafts)
        return launch


class Upset:
    """An engine's loop, step by step, with its pages taken away and given back in between."""

    def __init__(self, loop: Loop, seed: int, often: float) -> None:
        """often: the share of steps at which free pages are taken away."""
        self._loop, self._rng, self._often = loop, random.Random(seed), often
        self._taken: list[int] = []
        self.thefts = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    @property
    def idle(self) -> bool:
        """Nothing to do; an engine that is idle is kept from no pages (the last text may end
        between two steps, by a cancel)."""
        if self._loop.idle:
            self._give_back()
        return self._loop.idle

    def step(self) -> None:
        """One step of the loop; where nothing is taken, every page must be where it belongs."""
        scheduler = self._loop.scheduler
        if self._taken and self._rng.random() < 0.1:
            self._give_back()
        elif not self._taken and self._rng.random() < self._often:
            self._taken = scheduler.pages.take(scheduler.pages.available)
            self.thefts += 1
        self._loop.step()
        if self._loop.idle:
            self._give_back()
        if not self._taken:
            scheduler.check()

    def _give_back(self) -> None:
        self._loop.scheduler.pages.drop(self._taken)
        self._taken = []


class Trouble:
    """Upsets an engine, and says in the end how much."""

    def __init__(self, seed: int, thefts: float = 0.03) -> None:
        """thefts: see `Upset`."""
        self._seed, self._thefts = seed, thefts

    def __call__(self, engine: Engine) -> None:
        """To be given to `audit_traffic`."""
        loop, driver = engine._loop, engine._driver
        self._scheduler = loop.scheduler
        self.pilot = Moody(loop.pilot, engine.config.k, self._seed)
        self.steps = Upset(loop, self._seed, self._thefts)

        def exchange() -> None:
            loop.pilot, driver._steps = self.pilot, self.steps

        driver.ask(exchange)

    def told(self) -> dict[str, Any]:
        """How often what happened."""
        pilot = self.pilot
        return {
            "pages_taken_away": self.steps.thefts,
            "pages_evicted": self._scheduler.index.evictions,
            "drafter_paused": pilot.pauses,
            "drafter_resumed": pilot.resumed,
            "rounds_paused": pilot.rounds_paused,
            "tokens_caught_up": pilot.caught_up,
        }


def prompts_of(pair: Pair, dtype: str, seed: int) -> tuple[Text, ...]:
    """Token ids that prompts are cut from: a few, so that many begin alike."""
    rng = random.Random(seed)
    if pair.target != "mini-target":
        return tuple(tuple(rng.randrange(256) for _ in range(n)) for n in (150, 90, 200, 40))
    from paceline.cli.demo import draw

    with pair.open("none", dtype=dtype, k=0, slots=1) as engine:
        texts = [engine.tokenizer.encode(row["prompt"])[:200] for row in draw(seed, 6)]
    return tuple(tuple(ids) for ids in texts)


def tiny_pair(folder: Path) -> Pair:
    """Two unrelated models of random weights in float64."""
    from tests.helpers import tiny_checkpoint

    logging.getLogger("transformers").setLevel(logging.ERROR)
    made = [tiny_checkpoint(folder / f"{seed}", seed=seed, dtype=torch.float64) for seed in (0, 1)]
    return Pair(str(made[0]), str(made[1]), max_length=512, threads=1)


def play(pair: Pair, options: TrafficOptions) -> dict[str, Any]:
    """Play the traffic in one dtype and say what came of it."""
    trouble, began, last = Trouble(options.seed), time.perf_counter(), 0.0
    (dtype,) = options.dtypes

    def progress(what: str, done: int, total: int) -> None:
        nonlocal last
        if time.perf_counter() - last > 10 or done == total:
            last = time.perf_counter()
            print(f"  {what}: {done} of {total}, {last - began:.0f} s", file=sys.stderr)

    prompts = prompts_of(pair, dtype, options.seed)
    (result,) = audit_traffic(pair, prompts, options, progress, trouble).results
    return _told(result, trouble) | {"seconds": round(time.perf_counter() - began, 1)}


def _told(result: TrafficResult, trouble: Trouble) -> dict[str, Any]:
    stats, margins = result.stats, [d.margin for d in result.divergences]
    return {
        "passed": result.passed,
        "requests": result.requests,
        "finished": result.finished,
        "cancelled": result.cancelled,
        "texts_compared": result.compared,
        "tokens_compared": result.tokens,
        "events": result.events,
        "requests_with_events_lost_or_out_of_order": result.lost,
        "pages_leaked": stats.pages_used,
        "wrong": result.wrong[:20],
        "divergences": [dataclasses.asdict(d) for d in result.divergences],
        "widest_margin": max(margins, default=None),
        "median_margin": statistics.median(margins) if margins else None,
        "rounds": stats.rounds,
        "preemptions": stats.preemptions,
        "prefix_asked": stats.prefix_asked,
        "prefix_hits": stats.prefix_hits,
        "drafted": stats.drafted,
        "accepted": stats.accepted,
        **trouble.told(),
    }


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--pair", choices=("tiny", "mini"), default="tiny")
    add("--dtype", help="float64 for the tiny pair, which is asserted; float32 for the mini pair")
    add("--requests", type=int, default=2000)
    add("--longest", type=int, default=120, help="tokens a text is asked for, at most")
    add("--slots", type=int, default=6)
    add("--readers", type=int, default=16, help="requests at once")
    add("--k", type=int, default=4)
    add("--seed", type=int, default=0)
    add("--out", type=Path, help="write the JSON there")
    return parser.parse_args()


def _asked(arguments: list[str]) -> list[str]:
    """The arguments without where the result is put."""
    at = arguments.index("--out") if "--out" in arguments else len(arguments)
    return arguments[:at] + arguments[at + 2 :]


def main() -> None:
    """Play, print, and fail where something was wrong."""
    o = parse()
    options = TrafficOptions(
        requests=o.requests, dtypes=(o.dtype or {"tiny": "float64", "mini": "float32"}[o.pair],),
        longest=o.longest, slots=o.slots, readers=o.readers, k=o.k, seed=o.seed,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        mini = Pair("mini-target", "mini-draft", max_length=512, threads=1)
        result = play(mini if o.pair == "mini" else tiny_pair(Path(folder)), options)
    result = {
        "benchmark": "traffic",
        "command": shlex.join(["benchmarks/traffic.py", *_asked(sys.argv[1:])]),
        "pair": o.pair,
        "dtype": options.dtypes[0],
        **result,
        "machine": platform.processor() or platform.machine(),
        "versions": {"paceline": paceline.__version__, "torch": torch.__version__},
    }
    if o.out is not None:
        o.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))
    if not result["passed"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
