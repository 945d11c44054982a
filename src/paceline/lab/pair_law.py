"""The next-token law of a calibrated pair, and what follows from it in closed form.

Every token belongs to one of C classes, and the law of the next token depends on the class of the
last one alone. Class i has two successors: the *first*, whose class is i + 1 (so greedy texts
walk a cycle through all classes), and the *second*, whose class is a permutation's. The target
prefers the first everywhere; the draft prefers the second in the classes where it is to be
rejected under greedy decoding, and its probabilities are set such that 1 − TV, averaged over the
classes, is the acceptance asked for. Knows nothing of weights, files or models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paceline.errors import ConfigError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# A class's preferred successor has this logit; all other tokens of the vocabulary together then
# have a probability below 1e-8. Between 16 and 32 bfloat16 has steps of 1/8, so that logits which
# are multiples of it are the same in every dtype.
TOP = 31.0
STEP = 0.125
# Tokens that nobody chooses have this logit after their own class, and 0 after any other.
FILLER = -4.0
MOST_K = 8
# Orders of the classes that are tried: many where they are short and vary much.
_LEAST_TRIES, _MOST_TRIES, _TRIED_CLASSES = 48, 300, 32768
# Stretches of the cycle that have the same share of rejections, so that a short text has it too.
_STRETCH = 128


@dataclass(frozen=True, slots=True)
class Law:
    """C classes over V tokens. klass [V]: each token's class. first, second [C]: the successors
    of a class. agree [C]: the draft's favourite is the target's. p_gap [C]: the target's logit of
    the first less the second's. q_gap [C]: the draft's, negative where it does not agree."""

    klass: Ints
    first: Ints
    second: Ints
    agree: NDArray[np.bool_]
    p_gap: Floats
    q_gap: Floats

    @property
    def classes(self) -> int:
        return len(self.first)

    @property
    def cycle(self) -> Ints:
        """The tokens of the greedy cycle [C], each followed by the next; entry i is of class i."""
        return np.roll(self.first, 1)

    def logits(self, role: str) -> tuple[Floats, Floats]:
        """Return the logits [C] of the first and the second successor, of "target" or "draft"."""
        gap = self.p_gap if role == "target" else self.q_gap
        return TOP - np.maximum(-gap, 0.0), TOP - np.maximum(gap, 0.0)

    def probabilities(self, role: str) -> Floats:
        """Return the exact next-token law, grouped: [C, 4].

        Columns: the first successor; the second; any one token with logit 0 (a successor of
        another class, a filler of another class); any one filler of this class.
        """
        first, second = self.logits(role)
        weights = np.stack(
            [first, second, np.zeros_like(first), np.full_like(first, FILLER)], axis=1
        )
        weights = np.exp(weights - TOP)
        law: Floats = weights / (weights * self.group_sizes()).sum(1, keepdims=True)
        return law

    def group_sizes(self) -> Ints:
        """Return how many tokens each group of `probabilities` has: [C, 4]."""
        size, chosen = len(self.klass), np.concatenate([self.first, self.second])
        fillers = np.bincount(np.delete(self.klass, chosen), minlength=self.classes)
        ones = np.ones(self.classes, np.int64)
        return np.stack([ones, ones, size - 2 - fillers, fillers], axis=1)

    def acceptance(self) -> Floats:
        """Return 1 − TV(p, q) of every class [C]: `reject`'s acceptance at temperature 1."""
        p, q = self.probabilities("target"), self.probabilities("draft")
        result: Floats = (np.minimum(p, q) * self.group_sizes()).sum(1)
        return result

    def match_acceptance(self) -> Floats:
        """Return the acceptance [C] under `match`, target and draft drawing with one noise.

        Token x wins in both iff E_x max(p_y/p_x, q_y/q_x) <= E_y for all y, E exponential; that
        has probability 1 / Σ_y max(p_y/p_x, q_y/q_x).
        """
        p, q, sizes = self.probabilities("target"), self.probabilities("draft"), self.group_sizes()
        ratio = np.maximum(p[:, None] / p[:, :, None], q[:, None] / q[:, :, None])  # [C, x, y]
        result: Floats = (sizes / (ratio * sizes[:, None]).sum(2)).sum(1)
        return result


def make_law(vocab: int, ordinary: Ints, classes: int, acceptance: float, seed: int) -> Law:
    """Draw a law. ordinary: tokens that may be successors, at least 2·classes of them.

    Raises ConfigError where so many classes cannot give so small an acceptance.
    """
    if acceptance * classes < 1:
        raise ConfigError(
            f"acceptance {acceptance:g} is below 1/{classes}, the least that {classes} classes can "
            "have; ask for more, or take wider shapes"
        )
    random = np.random.default_rng(seed)
    chosen = random.permutation(ordinary)[: 2 * classes].astype(np.int64)
    first, second = chosen[:classes], chosen[classes:]
    klass = random.integers(0, classes, vocab)
    klass[first] = (np.arange(classes) + 1) % classes
    # A permutation here as well makes the chain of classes doubly stochastic: sampled texts visit
    # all classes alike, and the average over classes is the average over the text.
    klass[second] = random.permutation(classes)
    agreeing = round(acceptance * classes)
    agree = _arrange(random, classes, agreeing, acceptance)
    p_gap, up, down = _gaps(acceptance, classes, agreeing)
    q_gap = np.full(classes, -down)
    q_gap[agree] = random.permutation(up)
    return Law(klass, first, second, agree, np.full(classes, p_gap), q_gap)


def _sigmoid(x: ArrayLike) -> Floats:
    return np.asarray(1.0 / (1.0 + np.exp(-np.asarray(x, np.float64))))


def _grid(probability: float) -> float:
    """Return the gap on the grid whose first successor is nearest to having `probability`."""
    odds = np.log(probability / max(1.0 - probability, 1e-12))
    return float(np.clip(round(odds / STEP), 2, (TOP - 16) / STEP) * STEP)


def _gaps(acceptance: float, classes: int, agreeing: int) -> tuple[float, Floats, float]:
    """Choose the gaps of p, of q where it agrees [agreeing], and of q where it does not.

    With two successors the acceptance of a class is 1 − |p₁ − q₁| under `reject` and `match`
    alike. The shares of classes that agree and the average are given; s, the acceptance where the
    draft does not agree, is as large as leaves the agreeing draft's favourite 0.6.
    """
    share = (classes - agreeing) / agreeing
    s = min(0.5, 0.4 / (0.5 + share))
    p_gap, down = _grid(1 - s / 2), _grid(1 - s / 2)
    p = float(_sigmoid(p_gap))
    below = 1 - abs(p - (1 - float(_sigmoid(down))))
    wanted = (acceptance * classes - (classes - agreeing) * below) / agreeing
    # No gap of the grid is right for all; two neighbours in the right numbers are on average.
    levels = _sigmoid(np.arange(1, int(p_gap / STEP) + 1) * STEP)
    index = int(np.clip(np.searchsorted(levels, p - (1 - wanted)) + 1, 2, len(levels)))
    low, high = float(levels[index - 2]), float(levels[index - 1])
    upper = round(agreeing * float(np.clip((p - (1 - wanted) - low) / (high - low), 0, 1)))
    up = np.full(agreeing, (index - 1) * STEP)
    up[:upper] = index * STEP
    return p_gap, up, down


def _arrange(
    random: np.random.Generator, classes: int, agreeing: int, acceptance: float
) -> NDArray[np.bool_]:
    """Return agree [C]: of several random orders the one whose rounds are most like those of
    independent draws, for every K."""
    if agreeing == classes:
        return np.ones(classes, np.bool_)
    best, least = None, np.inf
    tries = min(max(_TRIED_CLASSES // classes, _LEAST_TRIES), _MOST_TRIES)
    for _ in range(tries):
        agree = _shuffled(random, classes, agreeing)
        miss = 0.0
        for k in range(1, MOST_K + 1):
            rounds = greedy_rounds(agree, k)
            miss += abs(rounds.tokens_per_round / geometric(acceptance, k) - 1)
            miss += abs(rounds.acceptance_rate / acceptance - 1)
        if miss < least:
            best, least = agree, miss
    assert best is not None
    return best


def _shuffled(random: np.random.Generator, classes: int, agreeing: int) -> NDArray[np.bool_]:
    """Return a random order in which every stretch has its share, to the nearest whole class."""
    agree = np.zeros(classes, np.bool_)
    for start in range(0, classes, _STRETCH):
        end = min(start + _STRETCH, classes)
        share = round(end * agreeing / classes) - round(start * agreeing / classes)
        agree[start : start + share] = True
        random.shuffle(agree[start:end])
    return agree


def geometric(acceptance: float, k: int) -> float:
    """Return (1 − α^(K+1)) / (1 − α), the tokens per round of independent acceptances."""
    return float(sum(acceptance**j for j in range(k + 1)))


@dataclass(frozen=True, slots=True)
class Rounds:
    """What rounds of K draft tokens come to. acceptance_rate: accepted / evaluated."""

    tokens_per_round: float
    acceptance_rate: float


def greedy_rounds(agree: NDArray[np.bool_], k: int) -> Rounds:
    """Walk the greedy cycle in rounds of k, to the end of time, averaged over all starts."""
    accepted = _accepted(agree, k)
    size = len(agree)
    step = (np.arange(size) + accepted + 1) % size
    end = step
    for _ in range(size.bit_length()):  # every walk is in its loop by then
        end = end[end]
    mean_accepted, mean_evaluated = np.zeros(size), np.zeros(size)
    evaluated = np.minimum(accepted + 1, k)
    seen = np.zeros(size, np.bool_)
    for root in np.unique(end):
        if not seen[root]:
            loop = [int(root)]
            while (after := int(step[loop[-1]])) != root:
                loop.append(after)
            seen[loop] = True
            mean_accepted[loop] = accepted[loop].mean()
            mean_evaluated[loop] = evaluated[loop].mean()
    rates = mean_accepted[end] / mean_evaluated[end]
    return Rounds(1 + float(mean_accepted[end].mean()), float(rates.mean()))


def _accepted(agree: NDArray[np.bool_], k: int) -> Ints:
    """Return how many of k draft tokens stand in a round whose root is of each class [C]."""
    count = np.zeros(len(agree), np.int64)
    alive = np.ones(len(agree), np.bool_)
    for j in range(k):
        alive = alive & np.roll(agree, -j)
        count += alive
    return count


def greedy_walk(agree: NDArray[np.bool_], root: int, k: int, rounds: int) -> list[int]:
    """Return the draft tokens accepted in each of the first `rounds` rounds of a greedy text whose
    prompt ends with a token of class `root`."""
    accepted, out = _accepted(agree, k), []
    for _ in range(rounds):
        out.append(int(accepted[root]))
        root = (root + out[-1] + 1) % len(agree)
    return out


def sampled_rounds(law: Law, k: int) -> Rounds:
    """Return what rounds of k come to at temperature 1, in the long run, by the Markov chain of
    the round's root over the classes; the same under `reject` and `match`.

    With two successors both rules accept the first with min(p₁, q₁), the second with
    min(p₂, q₂), and after a rejection give the one that the target has more of. The other
    tokens' 1e-8 is left out.
    """
    p, q = (_sigmoid(gap) for gap in (law.p_gap, law.q_gap))
    kept = np.minimum(p, q), np.minimum(1 - p, 1 - q)
    lost = np.maximum(p - q, 0), np.maximum(q - p, 0)
    to_second = law.klass[law.second]

    def move(state: Floats, by: tuple[Floats, Floats]) -> Floats:
        moved = np.roll(state * by[0], 1)
        moved[to_second] += state * by[1]
        return moved

    root = np.full(law.classes, 1.0 / law.classes)
    for _ in range(200):
        alive, after = root, np.zeros_like(root)
        masses = [1.0]
        for _ in range(k):
            after = after + move(alive, lost)
            alive = move(alive, kept)
            masses.append(float(alive.sum()))
        after = after + move(alive, (p, 1 - p))
        change = float(np.abs(after - root).sum())
        root = after / after.sum()
        if change < 1e-13:
            break
    return Rounds(sum(masses), sum(masses[1:]) / sum(masses[:-1]))


def summary(law: Law) -> dict[str, Any]:
    """Return the figures that card, config.json and report state, as plain values."""
    rounds = range(1, MOST_K + 1)
    greedy = [greedy_rounds(law.agree, k) for k in rounds]
    sampled = [sampled_rounds(law, k) for k in rounds]

    def by_k(values: list[Rounds], field: str) -> dict[str, float]:
        return {str(k): round(getattr(v, field), 6) for k, v in zip(rounds, values, strict=True)}

    return {
        "classes": law.classes,
        "greedy": {
            "acceptance": float(law.agree.mean()),
            "cycle_length": law.classes,
            "tokens_per_round": by_k(greedy, "tokens_per_round"),
            "acceptance_in_rounds": by_k(greedy, "acceptance_rate"),
        },
        "temperature_1": {
            "acceptance_reject": float(law.acceptance().mean()),
            "acceptance_match": float(law.match_acceptance().mean()),
            "acceptance_block": "at least reject's",
            "tokens_per_round": by_k(sampled, "tokens_per_round"),
            "acceptance_in_rounds": by_k(sampled, "acceptance_rate"),
        },
    }
