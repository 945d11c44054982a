"""What comes on top of the table of costs, from short runs of known K and load.

A stretch of a closed loop of B texts lasts
    T = rounds · (m · t(B, K, context) + h + r · B) + begun · s,
t from the table. Least squares find h, r and s, seconds a round, row and text, none below 0, and
m, near 1, for a machine that is slower or faster than when the table was measured. Where rounds are
recorded, of r · B counts only what the device's work does not hide. Pure numbers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paceline import Costs
from paceline.lab.plan_acceptance import Acceptance, Counts
from paceline.lab.plan_lengths import mean_length
from paceline.lab.plan_model import Machine, Overhead, device_seconds, rounds_for

_ROWS = tuple(2.5e-6 * n for n in range(201))  # seconds of the host for a row, half a ms at most
_TRUST = 0.1  # in the table: what its being wrong by a share weighs beside a run's being so
_RIDGE = 1e-3  # keeps what the runs do not tell apart small
_LEAST = 0.01  # of a predicted time, the error that is assumed at least


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


def fit(costs: Costs, runs: Sequence[Run]) -> Fitted:
    """The machine that explains `runs` best, those without and those with drafts each for
    themselves. With no runs of a kind, the other's overheads stand for it."""
    plain, plain_errors = _overhead(costs, [run for run in runs if not run.k])
    drafting, drafting_errors = _overhead(costs, [run for run in runs if run.k])
    errors = [*plain_errors, *drafting_errors]
    size = math.sqrt(sum(e * e for e in errors) / len(errors)) if errors else 0.0
    machine = Machine(costs, plain or drafting or Overhead(), drafting or plain or Overhead(),
                      _edge(runs))  # fmt: skip
    return Fitted(machine, max(size, _LEAST))


def _overhead(costs: Costs, runs: Sequence[Run]) -> tuple[Overhead | None, list[float]]:
    """(Overheads, relative errors of the runs); None where there are no runs.

    Where rounds are recorded the host works beside the device, and a row's seconds count beyond
    what hides them: they are looked for on a grid, the others by least squares for each.
    """
    if not runs:
        return None, []
    prompt = sum(run.prompt for run in runs) / len(runs)
    hidden = bool(costs.sizes)
    best: tuple[float, Overhead, np.ndarray] | None = None
    for row in _ROWS if hidden else (None,):
        matrix, target = _system(costs, runs, prompt, row)
        found = _least_squares(matrix, target)
        errors = matrix @ found - target
        # Of rows that nothing is seen of, the least.
        size = float(errors @ errors) + (_RIDGE * row if row is not None else 0.0)
        if best is None or size < best[0]:
            scale, by_round, by_text = (float(x) for x in found[:3])
            by_row = row if row is not None else float(found[3])
            over = Overhead(by_round, by_row, by_text, prompt, hidden, scale)
            best = size, over, errors
    assert best is not None
    return best[1], [float(e) for e in best[2]]


def _system(
    costs: Costs, runs: Sequence[Run], prompt: float, row: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Each run's time as shares of it: the table's, what a round, a text and (row: None) a row add;
    and what of it they are to make."""
    columns, target = [], []
    for run in runs:
        own, busy = device_seconds(costs, run.load, run.k, run.context)
        rounds = run.rounds / run.seconds
        size = Overhead(text=1.0, prompt=prompt).of_text(run.prompt)
        columns.append([rounds * own, rounds, run.begun * size / run.seconds])
        seen = 0.0
        if row is None:
            columns[-1].append(rounds * run.load)
        else:
            seen = rounds * Overhead(row=row, hidden=True).of_round(run.load, busy)
        target.append(1.0 - seen)
    return np.array(columns), np.array(target)


def _least_squares(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The x ≥ 0 of least |matrix · x - target|², the first drawn to 1 and the others, a little, to
    0. Of so few unknowns every set of those that are not 0 is tried."""
    count = matrix.shape[1]
    scale = np.abs(matrix).mean(axis=0)
    scale[scale == 0] = 1.0
    scale[0] = 1.0
    drawn = np.array([_TRUST, *[_RIDGE] * (count - 1)])
    whole = np.vstack([matrix / scale, np.diag(drawn)])
    wanted = np.concatenate([target, [_TRUST], np.zeros(count - 1)])
    best, least = np.zeros(count), float(wanted @ wanted)
    for others in range(count):
        for chosen in itertools.combinations(range(1, count), others):
            kept = [0, *chosen]
            part = np.linalg.lstsq(whole[:, kept], wanted, rcond=None)[0]
            if (part < 0).any():
                continue
            rest = whole[:, kept] @ part - wanted
            if float(rest @ rest) < least:
                least = float(rest @ rest)
                best = np.zeros(count)
                best[kept] = part
    result: np.ndarray = best / scale
    return result


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
