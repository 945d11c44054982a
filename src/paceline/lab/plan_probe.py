"""Measures what a plan needs, in a stated time: costs of rounds, and short runs of a closed loop.

Asks the engine through its public face, as any client would. Texts come from the caller.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from paceline import Costs, Engine
from paceline.lab.plan_fit import Run, doubtful
from paceline.lab.plan_loop import Probe, closed_loop, settle
from paceline.lab.plan_measured import Drafted

_COSTS = 0.3  # of a drafter's time, what the table of costs takes
_COUNTED = (
    0.8  # of a run's share of the time, its stretch; the rest is its first tokens and its end
)
_LEAST = 0.2  # seconds of a run at least
_SPARE = 2  # runs that there is time to repeat
_SHORT = 4  # tokens of texts that are to be mostly prompt

Progress = Callable[[str], None]


def measure(
    open_engine: Callable[[], AbstractContextManager[Engine]],
    drafter: str,
    probe: Probe,
    progress: Progress = lambda what: None,
) -> Drafted:
    """Open an engine, measure, close it. Raises what the engine raises, and TimeoutError."""
    with open_engine() as engine:
        return measure_engine(engine, drafter, probe, progress)


def measure_engine(
    engine: Engine, drafter: str, probe: Probe, progress: Progress = lambda what: None
) -> Drafted:
    """`measure` on an engine that is open, writes nothing else, and keeps no prompts."""
    progress(f"{drafter}: what rounds cost")
    end = time.perf_counter() + probe.seconds
    costs = engine.costs(probe.seconds * _COSTS)
    points = plan_runs(probe, costs.ks)
    free = chosen_loads(probe) if chooses(engine) else []
    stretches = _Stretches(engine, drafter, probe, progress, end, len(points) + len(free) + _SPARE)
    runs = [stretches.run(*point) for point in points]
    runs = _repeated(stretches, points, costs, runs)
    stretches.left = len(free)  # what was not repeated leaves them more
    adaptive = [stretches.run(load, None) for load in free]
    checks = [stretches.run(*p) for p in check_points(probe, costs.ks)] if probe.check else []
    settle(engine, None)
    return Drafted(
        drafter=drafter,
        draft=engine.config.draft if "model" in drafter else None,
        points=costs.points,
        ks=costs.ks,
        sizes=costs.sizes,
        runs=tuple(runs),
        adaptive=tuple(replace(run, k=costs.ks[-1]) for run in adaptive),
        checks=tuple(checks),
        memory=engine.memory,
    )


@dataclass(slots=True)
class _Stretches:
    """Measures one run after the other. end: when the `left` runs that are counted have to be
    over; where one took too long, the others have less. Runs beyond them last as the last did."""

    engine: Engine
    drafter: str
    probe: Probe
    progress: Progress
    end: float
    left: int
    seconds: float = _LEAST

    def run(self, load: int, k: int | None, short: bool = False) -> Run:
        """A point of `plan_runs`; k: None for the engine's own choice."""
        self.progress(
            f"{self.drafter}: {load} at a time, {'K chosen' if k is None else f'K = {k}'}"
        )
        if self.left > 0:
            share = (self.end - time.perf_counter()) / self.left
            self.seconds = max(_LEAST, share * _COUNTED)
            self.left -= 1
        tokens = min(_SHORT, self.probe.params.max_tokens) if short else None
        found = closed_loop(self.engine, self.probe, load, k, self.seconds, tokens)
        return replace(found, drafter=self.drafter)


def _repeated(
    stretches: _Stretches,
    points: Sequence[tuple[int, int, bool]],
    costs: Costs,
    runs: Sequence[Run],
) -> list[Run]:
    """The runs, those measured once more that took longer than the others have one expect. Of two
    the quicker counts: whatever else runs on a machine only slows it."""
    found = list(runs)
    for place in doubtful(costs, runs)[:_SPARE]:
        found[place] = max(found[place], stretches.run(*points[place]), key=lambda run: run.tok_s)
    return found


def plan_runs(probe: Probe, ks: Sequence[int]) -> list[tuple[int, int, bool]]:
    """(Load, k, short) of the runs: plain and one K in the middle at the least, the most and a load
    between; both once more with texts of a few tokens, which tell what a prompt costs from what a
    row costs; at the most the longest draft, for the acceptance of its last positions, and the
    shortest, which hides least of the host's work."""
    loads, drafts = sorted(set(probe.loads)), _drafts(probe, ks)
    if len(loads) > 3:
        loads = [loads[0], loads[len(loads) // 2], loads[-1]]
    if not drafts:
        return [(load, 0, False) for load in loads]
    middle, between = drafts[(len(drafts) - 1) // 2], loads[len(loads) // 2]
    found = [(load, k, False) for load in loads for k in (0, middle)]
    found += [(between, k, True) for k in (0, middle)]
    return found + [(loads[-1], k, False) for k in (drafts[-1], drafts[0]) if k != middle]


def _drafts(probe: Probe, ks: Sequence[int]) -> list[int]:
    return [k for k in ks if k and k in probe.ks] or [k for k in ks if k]


def check_points(probe: Probe, ks: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """(Load, k) to check predictions at, none of them of `plan_runs`, which the fit sees: at the
    least and at the most load the shortest and the longest draft that are left there, and plain
    decoding at a load that has no run. None where the runs are all that there is."""
    seen = {(load, k) for load, k, _ in plan_runs(probe, ks)}
    loads = sorted(set(probe.loads))
    found = [(load, 0) for load in loads if (load, 0) not in seen][:1]
    for load in (loads[0], loads[-1]):
        left = [k for k in _drafts(probe, ks) if (load, k) not in seen]
        found += [(load, k) for k in (*left[:1], *left[-1:])]
    return tuple(dict.fromkeys(found))


def chooses(engine: Engine) -> bool:
    """Whether the engine chooses K round by round where it may not change a text: a server's
    does by itself."""
    return engine.config.rule == "match" and engine.config.adaptive is not False


def chosen_loads(probe: Probe) -> list[int]:
    """The loads at which the engine's own choice of K is measured: one between, and the most."""
    loads = sorted(set(probe.loads))
    return sorted({loads[len(loads) // 2], loads[-1]})
