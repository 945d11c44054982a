"""The engine that the parts of `load.py` share, and who may decide K in it.

A pilot is exchanged for another while nothing runs, so all of them run the same recorded rounds.
"""

from __future__ import annotations

import gc
import time
from typing import Any

from calibrated import Heads
from gpu_common import Bench, digits, open_engine
from harness import Lines

from paceline import Engine
from paceline.engine.fixed import FixedK


class Plain(FixedK):
    """Never drafts, and prompts are not read for the draft either."""

    paused = True

    def __init__(self) -> None:
        super().__init__(0)


class Watched:
    """A pilot, and what it decided: (time, rows, tokens verified a row at most, drafted next)."""

    def __init__(self, pilot: Any) -> None:
        self.pilot = pilot
        self.launches: list[tuple[float, int, int, int]] = []

    def plan(self, *given: Any, **named: Any) -> Any:
        launch = self.pilot.plan(*given, **named)
        self.launches.append((time.perf_counter(), launch.rows, launch.k, launch.next_k))
        return launch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pilot, name)


def opened(bench: Bench) -> tuple[Engine, Heads, dict[str, Watched]]:
    """The engine that all parts share, and who may decide K in it: by the names of settings."""
    if not bench.shared:
        o = bench.options
        longest = max(max(o.prompt_lengths) + o.new_tokens, o.field_prompt + o.field_tokens)
        began = time.perf_counter()
        with Lines() as log:
            engine = open_engine(
                bench, max(o.ks), adaptive=True, slots=max(*o.concurrency, *o.field_batches),
                max_length=longest + 16,
            )  # fmt: skip
        gc.freeze()  # as the server does: or Python looks at all of it again in the middle of a run
        bench.shared["opening"] = {
            "seconds": digits(time.perf_counter() - began, 4), "log": log.lines,
            "bytes": engine.memory, "pages": engine.limits.pages,
        }  # fmt: skip
        heads = Heads(bench)
        heads.check(engine)
        own = engine._loop.pilot
        pilots = {"plain": Watched(Plain()), "adaptive": Watched(own)}
        for k in {*o.ks, *o.field_ks} - {0}:
            pilots[f"k={k}"] = Watched(FixedK(k))
        bench.shared |= {"all": (engine, heads, pilots)}
    found: tuple[Engine, Heads, dict[str, Watched]] = bench.shared["all"]
    return found


def named(k: int) -> str:
    """A fixed K's name among the settings."""
    return f"k={k}" if k else "plain"
