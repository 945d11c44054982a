"""One dtype's processes and contestants: opening them, drawing prompts, timing in turn."""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from importlib.resources import files
from typing import Any

import cpu_contestants as field
import psutil
from cpu_contestants import Contestant, ContestantError, Engine, EngineGoneError
from cpu_figures import Sample, Samples

from paceline.cli.demo import STOPS
from paceline.models.loading import resolve
from paceline.text import Tokenizer

SETTLE = 0.03  # seconds before a timed run, for threads that still spin after the last
SHORTEST = 16  # tokens; shorter texts are too short to time


def say(text: str) -> None:
    """Print progress on standard error."""
    print(text, file=sys.stderr, flush=True)


class Arena:
    """The processes and contestants of one dtype."""

    def __init__(self, options: argparse.Namespace, dtype: str, eos: int) -> None:
        self.options, self.dtype, self.eos = options, dtype, eos
        self.engines: dict[str, Engine] = field.engines(options.openvino)
        self.contestants: list[Contestant] = []
        self.absent: dict[str, str] = {}
        self.threads: int | None = options.threads
        if options.openvino is None:
            self.absent["openvino"] = "no --openvino PYTHON was given"
        for name, groups in field.GROUPS.items():
            if options.only and not groups & set(options.only):
                self.engines.pop(name, None)
                self.absent[name] = "not among --only"

    def open(self) -> None:
        """Start and open every process; paceline first, whose thread count the others take."""
        for name, engine in list(self.engines.items()):
            say(f"{self.dtype}: opening {name}")
            try:
                contestants, extra = self._field(name)
                engine.start()
                engine.info = engine.ask(
                    op="open", dtype=self.dtype, threads=self.threads, ks=self.options.k, **extra
                )
            except (ContestantError, OSError) as error:
                if name == "paceline":
                    raise
                why = getattr(error, "strerror", None) or str(error)
                self._drop(name, why if isinstance(error, ContestantError) else f"{why}: {name}")
                continue
            self.threads = engine.info["threads"]
            failed = engine.info.get("failed", {})
            self.contestants += [
                c for c in contestants if self._wanted(c) and c.request.get("key") not in failed
            ]
            self.absent |= failed

    def _field(self, name: str) -> tuple[list[Contestant], dict[str, Any]]:
        pair = {"target": self.options.target, "draft": self.options.draft}
        folders = {role: resolve(model) for role, model in pair.items()}
        if name == "paceline":
            return field.paceline(self.options.k), pair
        if name == "transformers":
            return field.transformers(self.options.k), {r: str(f) for r, f in folders.items()}
        say(f"{self.dtype}: converting for openvino, once")
        converted = {r: str(field.convert(self.options.openvino, f)) for r, f in folders.items()}
        contestants, pipelines = field.openvino(self.options.k, self.dtype)
        used = {c.request["key"] for c in contestants if self._wanted(c)}
        pipelines = [p for p in pipelines if p["key"] in used]
        return contestants, {**converted, "pipelines": pipelines}

    def _wanted(self, contestant: Contestant) -> bool:
        wanted = self.options.only
        return contestant.engine == "paceline" or not wanted or contestant.group in wanted

    def _drop(self, name: str, why: str) -> None:
        """Leave out a contestant, or an engine with all of its contestants."""
        say(f"{self.dtype}: {name} is out: {why}")
        self.absent[name] = why
        if name in self.engines:
            self.engines.pop(name).stop()
        self.contestants = [c for c in self.contestants if name not in (c.name, c.engine)]

    def write(self, contestant: Contestant, ids: list[int], tokens: int, **extra: Any) -> Any:
        """Let one contestant write one text."""
        return self.engines[contestant.engine].ask(
            op="run", name=contestant.name, ids=ids, max_tokens=tokens, eos=self.eos,
            **{"ignore_eos": self.options.stop != "eos", **contestant.request, **extra},
        )  # fmt: skip

    def sample(
        self, contestant: Contestant, ids: list[int], tokens: int, prompt: int, repeat: int
    ) -> Sample | None:
        """Time one text and note what else used the cores meanwhile; None where it failed."""
        time.sleep(SETTLE)
        own = self.engines[contestant.engine]
        others = [e for e in self.engines.values() if e is not own]
        idle, mine, busy = sum(e.cpu_seconds() for e in others), own.cpu_seconds(), _busy()
        began = time.perf_counter()
        try:
            run = self.write(contestant, ids, tokens)
        except ContestantError as error:
            if contestant.engine == "paceline":
                raise
            gone = isinstance(error, EngineGoneError)
            self._drop(contestant.engine if gone else contestant.name, str(error))
            return None
        wall = time.perf_counter() - began
        idle, mine, busy = (
            sum(e.cpu_seconds() for e in others) - idle, own.cpu_seconds() - mine, _busy() - busy
        )  # fmt: skip
        beside = max(0.0, busy - mine) / wall
        return Sample(contestant.name, prompt, repeat, run, mine / wall, beside, idle / wall)

    def close(self) -> None:
        """End every process."""
        for engine in self.engines.values():
            engine.stop()


def _busy() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


def draw(options: argparse.Namespace, arena: Arena, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Return the prompts as token ids, each with the number of tokens that all shall write.

    With --stop natural that number is where paceline's plain text comes to the end of its
    function (or to the end of the sequence); texts shorter than SHORTEST are passed over.
    """
    rows = (files("paceline") / "assets" / "prompts.jsonl").read_text(encoding="utf-8")
    every = [json.loads(line) for line in rows.splitlines()]
    random.Random(options.seed).shuffle(every)
    plain, chosen = arena.contestants[0], []
    for row in every:
        ids = tokenizer.encode(row["prompt"])
        tokens, natural = options.max_tokens, None
        if options.stop == "natural":
            run = arena.write(plain, ids, tokens, ignore_eos=False, stop=STOPS)
            natural = len(run["ids"]) < tokens
            tokens = len(run["ids"])
            if tokens < min(SHORTEST, options.max_tokens):
                continue
        chosen.append({"id": row["id"], "ids": ids, "tokens": tokens, "natural": natural})
        if len(chosen) == options.prompts:
            break
    return chosen


def measure(options: argparse.Namespace, arena: Arena, prompts: list[dict[str, Any]]) -> Samples:
    """Warm every contestant, then time them prompt by prompt in an order drawn anew each time."""
    for number, contestant in enumerate(list(arena.contestants), 1):
        say(f"{arena.dtype}: warming {number}/{len(arena.contestants)} {contestant.name}")
        for row in prompts[: options.warmup]:
            if contestant in arena.contestants:
                arena.sample(contestant, row["ids"], row["tokens"], 0, 0)
    samples, order = Samples(), random.Random(options.seed)
    for repeat in range(options.repeats):
        for number, row in enumerate(prompts):
            turn = list(arena.contestants)
            order.shuffle(turn)
            for contestant in turn:
                if contestant not in arena.contestants:
                    continue
                taken = arena.sample(contestant, row["ids"], row["tokens"], number, repeat)
                if taken is not None:
                    samples.rows.append(taken)
            say(f"{arena.dtype}: repeat {repeat + 1}/{options.repeats}, "
                f"prompt {number + 1}/{len(prompts)}, load {os.getloadavg()[0]:.2f}")  # fmt: skip
    names = {c.name for c in arena.contestants}
    samples.rows = [s for s in samples.rows if s.contestant in names]
    return samples
