"""What comes on top of the table of costs, from short runs of known K and load.

A stretch of a closed loop of B texts lasts
    T = rounds · (m · t(B, K, context) + h + r · B) + begun · s,
t from the table. Seconds a round, row and text: h and s are found without and with drafts apart,
since the host waits otherwise and a drafter has to read a prompt too. One m, near 1, for a machine
that is slower or faster than when the table was measured, and one r serve both: it is the same
machine and the same host, and a few stretches do not tell more numbers apart. Where rounds are
recorded, of r · B counts only what the device's work does not hide. None is below 0; what one
stretch alone says, because something else ran meanwhile, weighs little (Huber). Pure numbers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from paceline import Costs
from paceline.lab.plan_acceptance import Acceptance, Counts
from paceline.lab.plan_lengths import mean_length
from paceline.lab.plan_model import Machine, Overhead, device_seconds, rounds_for

# Seconds of the host for a row that are tried: up to half a ms.
_ROWS = (0.0, *(2.5e-6 * 1.1**n for n in range(56)))
_ROW = 20e-6  # about what they are: ten times that has to be seen in more than one run
_NOISE = 0.01  # of its time, by which a run that nothing disturbed differs from the rest
_FAR = 1.5 * _NOISE  # from there on an error counts by its size, not by its square
_TRUST = 0.1  # in the table: what its being wrong by a share weighs beside a run's being so
_RIDGE = 1e-3  # keeps what the runs do not tell apart small
_LEAST = 0.01  # of a predicted time, the error that is assumed at least
_TURNS, _STILL = 20, 1e-6  # of weighing the runs anew, at most and until no weight changes more
_DOUBTED = 0.1  # of its time, that a run takes longer than the others say
_JUDGES = 4  # runs that it takes to say so


@dataclass(frozen=True, slots=True)
class Text:
    """One text of a run: tokens of its prompt and its own, its rounds, what was tested, and its
    seconds to the first token and for each behind it (None: too short to tell). whole: it ended by
    itself or at the limit that all have; another was cut off before, at `new`."""

    prompt: int
    new: int
    rounds: int
    tested: Counts
    ttft: float | None = None
    tpot: float | None = None
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Run:
    """A stretch in which `load` texts were always being written, with k drafts a round.

    seconds, tokens: of the stretch. begun: texts that had their first token in it. per_round:
    tokens that a row had of a round, over all texts of the run. context: positions of a text.
    by_k: the engine's rounds in the stretch by the drafts that they verified, none where nobody
    counted them.
    """

    drafter: str
    load: int
    k: int
    seconds: float
    tokens: int
    begun: int
    per_round: float
    prompt: float
    context: float
    texts: tuple[Text, ...]
    by_k: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.texts or self.tokens <= 0 or self.seconds <= 0:
            raise ValueError("a run has texts, tokens and seconds")

    @property
    def tok_s(self) -> float:
        """Tokens a second, all texts together."""
        return self.tokens / self.seconds

    @property
    def new(self) -> float:
        """Tokens of a text on average, as far as was seen (`mean_length`)."""
        return mean_length((text.new, text.whole) for text in self.texts)[0]

    @property
    def rounds(self) -> float:
        """Rounds of the stretch; without a count, as if every one had all the rows."""
        return sum(self.by_k) or self.tokens / (self.load * self.per_round)


@dataclass(frozen=True, slots=True)
class Fitted:
    """The machine, and by what share of the time the runs differ from it (root mean square)."""

    machine: Machine
    error: float


def fit(costs: Costs, runs: Sequence[Run], row: float | None = None) -> Fitted:
    """The machine that explains `runs` best. With no runs without drafts, or none with, the
    other's overheads stand for them. row: seconds of the host for a row, where rounds are recorded;
    None looks for them."""
    if not runs:
        return Fitted(Machine(costs), _LEAST)
    system = _System.of(costs, runs)
    tried = system.rows() if row is None else [row]
    found = min((system.solved(one) for one in tried), key=lambda one: one.size)
    scale, plain_h, draft_h, plain_s, draft_s, *rest = (float(x) for x in found.values)
    by_row = rest[0] if rest else found.row
    common = Overhead(0.0, by_row, 0.0, system.prompt, bool(costs.sizes), scale)
    plain = replace(common, round=plain_h, text=plain_s)
    drafting = replace(common, round=draft_h, text=draft_s)
    kinds = {run.k > 0 for run in runs}
    machine = Machine(costs, plain if False in kinds else drafting,
                      drafting if True in kinds else plain, _edge(runs))  # fmt: skip
    size = math.sqrt(float(found.errors @ found.errors) / len(runs))
    return Fitted(machine, max(size, _LEAST))


def doubtful(costs: Costs, runs: Sequence[Run]) -> list[int]:
    """The places of those runs that took longer than all others together make one expect, the
    most first: what else ran on the machine meanwhile can only have slowed them. None where few
    runs would have to say so. A row takes the host what all runs together say: one fit instead of
    one for every number that is tried."""
    found: list[tuple[float, int]] = []
    row = fit(costs, runs).machine.plain.row if costs.sizes else None
    for place, run in enumerate(runs):
        others = [*runs[:place], *runs[place + 1 :]]
        if len(others) < _JUDGES:
            break
        late = 1.0 - seconds_of(fit(costs, others, row).machine, run) / run.seconds
        found.append((late, place))
    return [place for late, place in sorted(found, reverse=True) if late > _DOUBTED]


def seconds_of(machine: Machine, run: Run) -> float:
    """What a stretch of that many rounds and beginnings takes."""
    one = machine.round(run.load, run.k, run.context)
    return run.rounds * one + run.begun * machine.overhead(run.k).of_text(run.prompt)


@dataclass(frozen=True, slots=True)
class _Solved:
    """The values, in the order of the system's columns; each run's error as a share of its time;
    and what the values leave unexplained. row: seconds of the host for a row, where given."""

    row: float
    values: np.ndarray
    errors: np.ndarray
    size: float


@dataclass(frozen=True, slots=True)
class _System:
    """Each run's time as shares of it: the table's; a round without and with drafts; a text
    without and with; and, where nothing hides it, a row. hiding: where rounds are recorded, for
    each run its rounds a second, rows and seconds that hide the host. The host then works beside
    the device, and a row's seconds count beyond what hides them: they are looked for on a grid,
    and the others by least squares for each."""

    columns: np.ndarray
    hiding: np.ndarray | None
    prompt: float

    @classmethod
    def of(cls, costs: Costs, runs: Sequence[Run]) -> _System:
        """Of these runs."""
        prompt = sum(run.prompt for run in runs) / len(runs)
        columns, hiding = [], []
        for run in runs:
            own, busy = device_seconds(costs, run.load, run.k, run.context)
            rounds, drafts = run.rounds / run.seconds, run.k > 0
            size = Overhead(text=1.0, prompt=prompt).of_text(run.prompt)
            texts = run.begun * size / run.seconds
            columns.append([rounds * own, *_either(drafts, rounds), *_either(drafts, texts)])
            hiding.append([rounds, run.load, busy])
            if not costs.sizes:
                columns[-1].append(rounds * run.load)
        return cls(np.array(columns), np.array(hiding) if costs.sizes else None, prompt)

    def rows(self) -> list[float]:
        """The seconds of a row that are worth a try: 0 and those that not every run hides."""
        if self.hiding is None:
            return [0.0]
        least = float((self.hiding[:, 2] / self.hiding[:, 1]).min())
        return [row for row in _ROWS if not row or row > least]

    def solved(self, row: float) -> _Solved:
        """The values that explain the runs best, if a row takes the host so long.

        Least squares in which an error above `_FAR` counts by its size alone: weighted ones, the
        weights from the last errors (Huber, Robust estimation of a location parameter, 1964)."""
        seen = np.zeros(len(self.columns))
        if self.hiding is not None:
            rounds, load, busy = self.hiding.T
            seen = rounds * np.maximum(row * load - busy, 0.0)
        scale = np.abs(self.columns).mean(axis=0)
        scale[scale == 0] = 1.0
        scale[0] = 1.0
        matrix, target = self.columns / scale, 1.0 - seen
        drawn = np.array([_TRUST, *[_RIDGE] * (len(scale) - 1)])
        weights = np.ones(len(target))
        for _ in range(_TURNS):
            found = _least_squares(matrix, target, weights, drawn)
            errors = matrix @ found - target
            before, weights = weights, _FAR / np.maximum(np.abs(errors), _FAR)
            if np.abs(weights - before).max() < _STILL:
                break
        far = np.abs(errors)
        unexplained = np.where(far < _FAR, far * far, (2 * far - _FAR) * _FAR).sum()
        off = drawn * (found - _wished(found))
        size = float(unexplained + off @ off) + (_NOISE * row / _ROW) ** 2
        return _Solved(row, found / scale, errors, size)


def _either(drafts: bool, value: float) -> tuple[float, float]:
    """In the column without drafts or in that with them."""
    return (0.0, value) if drafts else (value, 0.0)


def _wished(values: np.ndarray) -> np.ndarray:
    """What the values are drawn to: the first to 1 and the others, a little, to 0."""
    wished = np.zeros(len(values))
    wished[0] = 1.0
    return wished


def _least_squares(
    matrix: np.ndarray, target: np.ndarray, weights: np.ndarray, drawn: np.ndarray
) -> np.ndarray:
    """The x ≥ 0 of least Σ weights · (matrix · x - target)² + |drawn · (x - wished)|². Of so few
    unknowns every set of those that are not 0 is tried, unless all of them together are best."""
    weighted, pull = (matrix * weights[:, None]).T, drawn * drawn
    count = matrix.shape[1]
    normal = weighted @ matrix + np.diag(pull)
    right = weighted @ target + pull * _wished(drawn)
    best, least = np.zeros(count), 0.0
    for others in reversed(range(count)):
        for chosen in itertools.combinations(range(1, count), others):
            kept = [0, *chosen]
            part = np.linalg.solve(normal[np.ix_(kept, kept)], right[kept])
            if (part < 0).any():
                continue
            value = -float(right[kept] @ part)  # what is left, but for a constant
            if value < least:
                least, best = value, np.zeros(count)
                best[kept] = part
        if others == count - 1 and least < 0:
            break
    return best


def _edge(runs: Sequence[Run]) -> float:
    """Rounds of a text that its acceptance does not explain, on average; never below 0."""
    found = []
    for run in runs:
        conditional = Acceptance(tuple(text.tested for text in run.texts)).conditional()
        if not run.k or not conditional:  # or texts of a few tokens, that say nothing of drafts
            continue
        found += [
            text.rounds - rounds_for(text.new, conditional, run.k)
            for text in run.texts
            if text.whole
        ]
    return max(0.0, sum(found) / len(found)) if found else 0.0
