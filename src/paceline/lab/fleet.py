"""A fleet of replicas through a day of requests: a discrete-event simulation, step by step as the
engine works, with the measured costs.

A step admits who has a slot, reads a chunk of the prompts, and runs one round of all that are being
written, with the K of most tokens a second. Between two changes (a text ends, one comes) all rounds
are alike and are taken together. Pure: no engine, no clock; random numbers from a seed.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from paceline.lab.fleet_traffic import Arrival
from paceline.lab.plan_acceptance import shifted
from paceline.lab.plan_model import Machine, outcomes, tokens_per_round

_CONTEXT = 64  # positions to which a context is rounded when costs are looked up


@dataclass(frozen=True, slots=True)
class Replica:
    """One engine. ks: the draft lengths it may choose from, (0,) for none; conditional: acceptance
    by position, of all texts; offsets: by how many logits texts differ from it, of which each text
    draws one, none for texts that are alike. pace: seconds of rounds for
    each that the machine's model says, of an engine that chooses K itself (`Drafted.pace`). slots:
    texts at once; chunk: prompt tokens a step; positions: that its cache holds, None for enough. A
    text is let in where what it may grow to fits beside the others, so nothing is preempted."""

    machine: Machine
    ks: tuple[int, ...]
    conditional: tuple[float, ...]
    slots: int
    chunk: int = 512
    positions: int | None = None
    offsets: tuple[float, ...] = ()
    pace: float = 1.0


@dataclass(frozen=True, slots=True)
class Served:
    """One request's times: seconds to its first token, and for each token behind the first round's
    (None where there are none); when it ended; which replica."""

    ttft: float
    tpot: float | None
    end: float
    replica: int


@dataclass(slots=True)
class _Text:
    """A request in a replica. law: its acceptance by position; left: prompt tokens to be read;
    ends: the replica's round that is its last; rounds, since, tokens: drawn for it with the present
    K, from which round, for how many tokens; before: rounds under an earlier K.
    """

    number: int
    arrival: Arrival
    law: tuple[float, ...]
    left: int
    ends: int = 0
    rounds: int = 0
    since: int = 0
    tokens: float = 0.0
    before: int = 0
    first: float | None = None

    @property
    def context(self) -> float:
        return self.arrival.prompt + self.arrival.new / 2


@dataclass(slots=True)
class _State:
    """A replica at work."""

    about: Replica
    index: int
    random: np.random.Generator
    served: dict[int, Served]
    clock: float = 0.0
    round: int = 0
    k: int = 0
    waiting: deque[_Text] = field(default_factory=deque)
    reading: deque[_Text] = field(default_factory=deque)
    running: dict[int, _Text] = field(default_factory=dict)
    ending: list[tuple[int, int]] = field(default_factory=list)  # (round, number), a heap
    contexts: float = 0.0  # sum over those that run
    held: int = 0  # positions that those with a slot may grow to
    busy: float = 0.0
    read: float = 0.0
    choices: dict[tuple[int, int], tuple[int, float]] = field(default_factory=dict)

    @property
    def outstanding(self) -> int:
        return len(self.waiting) + len(self.reading) + len(self.running)

    def take(self, number: int, arrival: Arrival) -> None:
        """A request comes at the present of the simulation."""
        if not self.outstanding:
            self.clock = max(self.clock, arrival.at)
        law, offsets = self.about.conditional, self.about.offsets
        if offsets:
            law = shifted(law, offsets[self.random.integers(len(offsets))])
        # All of a prompt but its last token is read; the last is the first window's root.
        self.waiting.append(_Text(number, arrival, law, max(arrival.prompt - 1, 0)))

    def advance(self, until: float) -> None:
        """Work up to the first moment between two steps that is not before `until`."""
        while self.clock < until and self.outstanding:
            self._step(until)

    def _step(self, until: float) -> None:
        self._admit()
        began = self.clock
        self._read()
        self.read += self.clock - began
        if self.running:
            k, seconds = self._choose()
            if k != self.k:
                self._redraw(k)
            # Alike until a text ends, or somebody comes; with prompts to be read, one at a time.
            count = 1
            if not self.reading and not (self.waiting and self._fits(self.waiting[0])):
                soonest = self.ending[0][0] - self.round
                due = math.ceil((until - self.clock) / seconds) if until < math.inf else soonest
                count = max(1, min(soonest, due))
            self._rounds(count, seconds)
        self.busy += self.clock - began

    def _fits(self, text: _Text) -> bool:
        if len(self.reading) + len(self.running) >= self.about.slots:
            return False
        if self.about.positions is None or not self.held:
            return True
        size = text.arrival.prompt + text.arrival.new
        return self.held + size <= self.about.positions

    def _admit(self) -> None:
        while self.waiting and self._fits(self.waiting[0]):
            text = self.waiting.popleft()
            self.held += text.arrival.prompt + text.arrival.new
            self.reading.append(text)

    def _read(self) -> None:
        """Read a chunk of the prompts, first come, first served; those that are done run."""
        left = self.about.chunk
        drafting = max(self.about.ks) > 0
        over = self.about.machine.drafting if drafting else self.about.machine.plain
        while self.reading and left > 0:
            text = self.reading[0]
            tokens = min(left, text.left)
            whole = max(text.arrival.prompt - 1, 0)
            share = tokens / whole if whole else 1.0
            self.clock += over.of_text(text.arrival.prompt) * share
            text.left -= tokens
            left -= max(tokens, 1)
            if text.left:
                break
            self.reading.popleft()
            self.running[text.number] = text
            self.contexts += text.context
            self._draw(text, float(text.arrival.new), first=True)

    def _choose(self) -> tuple[int, float]:
        """(K, seconds of a round) of most tokens a second for those that run."""
        rows = len(self.running)
        place = round(self.contexts / rows / _CONTEXT)
        found = self.choices.get((rows, place))
        if found is None:
            machine, context = self.about.machine, float(place * _CONTEXT)
            pace = self.about.pace
            seconds = {k: machine.round(rows, k, context) * pace for k in self.about.ks}
            law = self.about.conditional
            k = max(self.about.ks, key=lambda k: (tokens_per_round(law, k) / seconds[k], -k))
            found = self.choices[rows, place] = k, seconds[k]
        return found

    def _draw(self, text: _Text, tokens: float, first: bool = False) -> None:
        """How many rounds of the present K `text` takes for so many tokens."""
        text.tokens, text.since = tokens, self.round
        text.rounds = rounds = draw_rounds(self.random, text.law, self.k, tokens)
        if first and self.k:
            edge = self.about.machine.edge
            text.rounds = rounds = rounds + int(edge + self.random.random())
        text.ends = self.round + rounds
        heapq.heappush(self.ending, (text.ends, text.number))

    def _redraw(self, k: int) -> None:
        """Another K from here on: what is left of each text is drawn anew."""
        self.k, self.ending = k, []
        for text in self.running.values():
            done = self.round - text.since
            text.before += done
            left = text.tokens * (1 - done / text.rounds)
            self._draw(text, max(left, 1.0), first=not text.before)

    def _rounds(self, count: int, seconds: float) -> None:
        began = self.clock
        self.round += count
        self.clock += count * seconds
        for text in self.running.values():
            if text.first is None:
                text.first = began + seconds
        while self.ending and self.ending[0][0] <= self.round:
            _, number = heapq.heappop(self.ending)
            text = self.running.pop(number)
            self.contexts -= text.context
            self.held -= text.arrival.prompt + text.arrival.new
            self._end(text)

    def _end(self, text: _Text) -> None:
        assert text.first is not None
        rounds = text.before + text.rounds
        behind = text.arrival.new * (1 - 1 / rounds)
        tpot = (self.clock - text.first) / behind if behind > 0 else None
        ttft = text.first - text.arrival.at
        self.served[text.number] = Served(ttft, tpot, self.clock, self.index)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of the requests, in their order. busy: the share of the time that replicas worked,
    on average, and read: that they read prompts; rounds: of all replicas; seconds: from the
    beginning to the last token."""

    served: tuple[Served, ...]
    busy: float
    read: float
    rounds: int
    seconds: float

    def ttft(self, share: float) -> float:
        """Seconds to the first token that `share` of the requests do not exceed."""
        return quantile([each.ttft for each in self.served], share)

    def tpot(self, share: float) -> float:
        """Likewise seconds a token; 0 where no text has two rounds."""
        return quantile([each.tpot for each in self.served if each.tpot is not None], share)


def simulate(replica: Replica, gpus: int, arrivals: Sequence[Arrival], seed: int = 0) -> Outcome:
    """Send `arrivals` (in the order of their times), each to the replica with the fewest requests
    at that moment, the first of equals."""
    assert gpus >= 1, "a fleet has replicas"
    served: dict[int, Served] = {}
    random = np.random.default_rng(seed)
    states = [_State(replica, i, random, served) for i in range(gpus)]
    for number, arrival in enumerate(arrivals):
        for state in states:
            state.advance(arrival.at)
        min(states, key=lambda state: state.outstanding).take(number, arrival)
    for state in states:
        state.advance(math.inf)
    end = max((each.end for each in served.values()), default=0.0)
    whole = gpus * end or 1.0
    return Outcome(
        tuple(served[n] for n in range(len(arrivals))),
        busy=sum(state.busy for state in states) / whole,
        read=sum(state.read for state in states) / whole,
        rounds=sum(state.round for state in states),
        seconds=end,
    )


def draw_rounds(
    random: np.random.Generator, conditional: Sequence[float], k: int, tokens: float
) -> int:
    """Rounds of k drafts until `tokens` tokens are there: drawn round by round."""
    wanted = max(1, round(tokens))
    if not k:
        return wanted
    edges = np.cumsum(outcomes(conditional, k))
    edges[-1] = 1.0
    total = rounds = 0
    while True:
        some = max(8, math.ceil((wanted - total) / tokens_per_round(conditional, k) * 1.2))
        drawn = 1 + np.searchsorted(edges, random.random(some), side="right")
        sums = total + np.cumsum(drawn)
        if sums[-1] >= wanted:
            return rounds + 1 + int(np.searchsorted(sums, wanted))
        total, rounds = int(sums[-1]), rounds + some


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of them do not exceed; 0 of none."""
    return float(np.quantile(values, share)) if values else 0.0
