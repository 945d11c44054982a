"""How many draft tokens the next round has: the most tokens a second, and drafting a gain or off.

`choose` is the decision, a pure function of expected tokens and seconds. `Governor` is what lies
around it: it knows what lies waiting, does not follow noise, lets a drafter rest that does not pay,
and says so in words. No torch, no device, no clock; it decides before a round from rounds that have
settled, never from a drawn token.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

from paceline.engine.acceptance import Acceptance, Seen, Track
from paceline.engine.beside import Beside
from paceline.engine.catch_up import SIDE
from paceline.engine.cost import CostTable
from paceline.engine.pilot import Launch
from paceline.engine.trial import Choice, Trials

log = logging.getLogger(__name__)

_SWITCH = 0.03  # of a round: what a change of K must have gained at least
_PATIENCE = 16  # rounds of rest after which the drafter is said to be paused
_SILENCE = 200  # rounds between two log lines about it
_CLOSE = 0.93  # of drafting, what plain decoding brings at least where it is worth a look
_CLOSE_FOR, _LOOK = 32, 48  # rounds that it must have been so, and plain rounds of such a look


def choose(
    ks: Sequence[int],
    tokens: Sequence[float],
    seconds: Sequence[float],
    latency: float | None,
    spent: Sequence[float] | None = None,
) -> Choice:
    """The k of most tokens a second among rounds of at most `latency` seconds; where there is
    none, the shortest round. tokens, seconds: of a round of each k; spent: seconds with what it
    costs elsewhere, by default nothing. The smaller k wins a tie."""
    choices = list(map(Choice, ks, tokens, seconds, spent or seconds))
    fitting = [c for c in choices if latency is None or c.seconds <= latency]
    if fitting:
        return max(fitting, key=lambda c: c.rate)
    return min(choices, key=lambda c: c.seconds)


# Rows of one rounded offset, one bound on their drafts, and as many waiting: how many there are.
_Groups = dict[tuple[int, int, int], int]


@dataclass(frozen=True, slots=True)
class _View:
    """What a round of each k would be, for the rows at hand."""

    ks: tuple[int, ...]
    rows: int
    tokens: list[float]
    seconds: list[float]
    spent: list[float]

    def at(self, k: int) -> Choice:
        i = self.ks.index(k)
        return Choice(k, self.tokens[i], self.seconds[i], self.spent[i])


class Governor:
    """Decides every round's draft length; the loop asks `plan` before a round and tells `settled`
    after it, in the order of launching."""

    def __init__(
        self, cost: CostTable, acceptance: Acceptance | None = None, latency: float | None = None
    ) -> None:
        """latency: the most seconds a round should take, or None. `cost.ks` are the choices."""
        assert cost.ks[0] == 0, "plain decoding is always a choice"
        self.cost, self.ks, self.latency = cost, cost.ks, latency
        self.acceptance = acceptance or Acceptance(cost.ks[-1])
        self._trials = Trials(cost, self.acceptance)
        self._k = self.ks[1] if len(self.ks) > 1 else 0  # until something is known
        self._beside = Beside()
        self._rows = self._joined = 0  # of the round planned last, and joined since
        self._close = 0  # rounds in a row in which plain decoding seemed as good
        self._looks = 0  # plain rounds that are still to come of a look
        self._missed = 0.0  # seconds that another k would have saved since it is the better one
        self._rest = 0  # rounds in a row without drafts, tries aside
        self._silent = _SILENCE  # rounds since a change was logged
        self._view: _View | None = None
        self._settled: Launch | None = None  # the last one that has

    # --- what the loop calls ---

    def track(self, limit: int, remaining: int) -> Track:
        """A new request that may have `limit` draft tokens a round and write `remaining`
        tokens. Keep it beside the request."""
        return self.acceptance.track(limit, remaining)

    def first(self, track: Track) -> int:
        """A text joins the rounds. Draft tokens to make right behind its prompt, where the device
        can do so, so that the first round has something to verify."""
        self._joined += 1
        track.waiting = min(self._k, track.limit)
        return track.waiting

    def fed(self, tokens: int) -> None:
        """So many tokens of a prompt are being read; a drafter that drafts reads them too."""
        self._beside.fed(self.cost.catching_up((tokens,)))

    def plan(self, tracks: Sequence[Track], context: float) -> Launch:
        """Decide a round for `tracks`, in the order of its rows. context: committed positions a
        row, on average. Before it, `behind` of each track is set where the drafter has a cache
        that may fall behind, and `waiting` to 0 where a row lost its draft."""
        groups: _Groups = {}
        for track in tracks:
            limit, left = track.limit, track.remaining
            most = limit if limit < left else max(left - 1, 0)
            key = track.place, most, track.waiting
            groups[key] = groups.get(key, 0) + 1
        self._count(len(tracks))
        seconds, tokens = self.cost.rounds(len(tracks), context), self._tokens(groups)
        spent = self._spent(tokens, seconds)
        view = self._view = _View(self.ks, len(tracks), tokens, seconds, spent)
        best = choose(self.ks, tokens, seconds, self.latency, spent)
        trying, sure = self._trials.left > 0, best
        if best.k and not self._k:  # the way back has its price: so much must be known to stand
            doubted = self._tokens(groups, -self.acceptance.doubt)
            sure = choose(self.ks, doubted, seconds, self.latency, self._spent(doubted, seconds))
        self._follow(view, sure, tracks)
        next_k = 0
        if any(track.limit for track in tracks):  # else nobody would have what is drafted
            next_k = self._k or self._try(view, best, tracks)
        k = self._window(groups, view, next_k, trying, max(best.rate, view.at(0).rate), context)
        asked = tuple([w if (w := track.waiting) < k else k for track in tracks])
        for track in tracks:
            track.waiting = 0
            if next_k and (self._k or track.tried):
                track.waiting = limit if (limit := track.limit) < next_k else next_k
        drafts = tuple([track.waiting for track in tracks])
        first = self.cost.catching_up([t.behind for t in tracks if t.waiting]) if next_k else 0.0
        return Launch(len(tracks), context, k, next_k, asked, drafts, first)

    def put_off(self, tracks: Sequence[Track], launch: Launch) -> Launch:
        """The drafter has too much to see before it can draft for this round, which was planned
        last; what is launched instead."""
        self._trials.put_off()
        return launch.without_drafts(tracks)

    def settled(
        self,
        tracks: Sequence[Track],
        launch: Launch,
        seen: Seen,
        *,
        verify_seconds: float = 0.0,
        draft_seconds: float = 0.0,
        wall_seconds: float | None = None,
        elapsed_seconds: float | None = None,
    ) -> None:
        """A planned round has settled. tracks: as they were planned. seen: its report. Seconds
        of 0 were not measured; draft_seconds may be those of this round or of the one before it.
        wall_seconds: since the round before it settled, or None where other work (a prompt) lay
        between. elapsed_seconds: the same, whatever lay between, but without what reading prompts
        took; or None where nobody knows."""
        cost, last = self.cost, self._settled
        self._settled = launch
        self._beside.wrote(sum(seen.n))
        if elapsed_seconds is not None and (launch.k > 0) == (launch.next_k > 0):
            self._beside.saw(launch.k > 0, self._expected(launch), elapsed_seconds)
        if self.acceptance.record(tracks, launch.asked, seen):
            self._trials.tested()
        cost.saw("verify", launch.rows, launch.k, launch.context, verify_seconds)
        if last is None or (last.rows, last.next_k) != (launch.rows, launch.next_k):
            return
        cost.saw("draft", launch.rows, launch.next_k, launch.context, draft_seconds)
        if wall_seconds is not None and verify_seconds > 0 and last.k == launch.k:
            spare = wall_seconds - verify_seconds - draft_seconds
            cost.saw_host(launch.rows, launch.k, spare)

    @property
    def paused(self) -> bool:
        """Whether drafting has not paid for a while, so that the drafter need not be kept up to
        date; `Launch.drafts` says when it must be again."""
        return self._rest >= _PATIENCE

    def describe(self) -> str:
        """What is done and why, in one line."""
        view = self._view
        if len(self.ks) == 1:
            return "no drafts"
        if view is None:
            return "no round yet"
        plain, other = view.at(0), view.at(self._k) if self._k else self._best_draft(view)
        rows = "1 row" if view.rows == 1 else f"{view.rows} rows"
        drafts = "1 draft" if other.k == 1 else f"{other.k} drafts"
        if math.isinf(other.seconds):
            return f"drafter paused: no rounds with drafts at {rows}"
        why = (
            f"at {rows} a round of {drafts} takes {_ms(other.seconds)} for "
            f"{other.tokens / view.rows:.1f} tokens a row, plain {_ms(plain.seconds)}"
        )
        if self._k:
            return f"drafting: {why}; {other.rate / plain.rate:.2f} times plain"
        if self._trials.left:
            return f"drafter being tried: {why}"
        if self._looks:
            return f"plain decoding being tried: {why}"
        word = "paused" if self.paused else "resting"
        if not self._fits(other):
            return f"drafter {word}: {why}; a round is to take {_ms(self.latency or 0.0)} at most"
        return f"drafter {word}: {why}; {self._trials.describe(plain)}"

    # --- inside ---

    def _expected(self, launch: Launch) -> float:
        """Seconds that a round should have taken."""
        rows, k, next_k, context = launch.rows, launch.k, launch.next_k, launch.context
        verify = self.cost.verify(rows, k + 1, context)
        draft = self.cost.draft(rows, next_k, context)
        return verify + draft + self.cost.host(rows, k) + launch.first

    def _count(self, rows: int) -> None:
        """Who has come and gone since the round before it, now that so many run."""
        left = self._rows + self._joined - rows
        self._beside.moved(self._joined, max(left, 0))  # some may have joined another pilot's
        self._rows, self._joined = rows, 0

    def _spent(self, tokens: Sequence[float], seconds: Sequence[float]) -> list[float]:
        """Seconds of a round of each k, with what it costs beside."""
        (plain, drafting), reading = self._beside.late, self._beside.reading
        return [
            s * (1 + drafting) + n * reading if k else s * (1 + plain)
            for k, n, s in zip(self.ks, tokens, seconds, strict=True)
        ]

    def _tokens(self, groups: _Groups, shift: int = 0) -> list[float]:
        """Tokens that a round of each k commits, all rows together. shift: of all their places."""
        sums = [0.0] * len(self.ks)
        for (place, most, _), count in groups.items():
            expected = self.acceptance.tokens(place + shift)
            for i, k in enumerate(self.ks):
                sums[i] += count * expected[k if k < most else most]
        return sums

    def _follow(self, view: _View, best: Choice, tracks: Sequence[Track]) -> None:
        """Change K once the change would have gained what it costs: so noise costs little, and
        no gain, however small, is left for long."""
        now = view.at(self._k)
        looked, self._looks = self._looks == 1, max(0, self._looks - 1)
        if self._k and best.k and self._worth_a_look(view, best):
            self._looks = _LOOK
            self._switch(view.at(0))
        elif looked and best.k:
            self._switch(best)
        elif best.k == self._k or self._looks:
            self._missed = 0.0
        elif not self._fits(now):
            self._switch(best)
        else:
            self._missed += now.spent - now.tokens / best.rate
            price = _SWITCH * now.seconds
            if not self._k:
                price += self.cost.catching_up(track.behind for track in tracks)
                if not self._trials.left:  # else it is on its way already
                    price += self._trials.lead_in(view.rows, now, best)
            elif not best.k:  # the way back will cost something too, and more only later
                price += self.cost.catching_up([SIDE] * view.rows)
            if self._missed > price:
                self._switch(best)
        self._rest = 0 if self._k else self._rest + 1
        self._silent += 1
        if self._looks:
            self._rest = 0
        if self._rest == _PATIENCE and len(self.ks) > 1:
            self._say()

    def _worth_a_look(self, view: _View, best: Choice) -> bool:
        """Whether plain decoding has seemed nearly as good for a while, and drafting alone is
        known."""
        plain = view.at(0)
        close = self._fits(plain) and plain.rate > _CLOSE * best.rate
        self._close = self._close + 1 if close else 0
        return self._close >= _CLOSE_FOR and self._beside.lopsided

    def _switch(self, best: Choice) -> None:
        self._k, self._missed = best.k, 0.0
        if best.k:
            self._trials.over()
            if self.paused:
                self._say()

    def _say(self) -> None:
        """Log what is done, but not over and over where two choices are as good."""
        if self._silent >= _SILENCE:
            log.info("%s", self.describe())
            self._silent = 0
        else:
            log.debug("%s", self.describe())

    def _try(self, view: _View, best: Choice, tracks: Sequence[Track]) -> int:
        other = self._best_draft(view)
        if self._looks or not other.k or not self._fits(other):
            return 0
        return self._trials.step(view.at(0), other, best.k > 0, tracks)

    def _best_draft(self, view: _View) -> Choice:
        """The best choice but for K = 0."""
        if len(self.ks) == 1:
            return view.at(0)
        return choose(self.ks[1:], view.tokens[1:], view.seconds[1:], self.latency, view.spent[1:])

    def _fits(self, choice: Choice) -> bool:
        most = math.inf if self.latency is None else self.latency
        return choice.seconds <= most and not math.isinf(choice.seconds)

    def _window(
        self, groups: _Groups, view: _View, next_k: int, trying: bool, rate: float, context: float
    ) -> int:
        """How many of the waiting draft tokens to verify. They are paid for, so one more is worth
        it while it brings more than its own seconds would elsewhere, at `rate` tokens a second.
        Where every row waits with next_k that is all of them; in a try it is by intent."""
        most = max(key[2] for key in groups)
        k = next(k for k in self.ks if k >= most)
        if k == 0 or trying or all(key[2] == next_k for key in groups):
            return k
        best, best_worth = 0, -math.inf
        for k in self.ks:
            spent = self.cost.verify(view.rows, k + 1, context)
            if k and (math.isinf(spent) or (self.latency is not None and spent > self.latency)):
                break
            worth = -rate * spent
            for (place, _, waiting), count in groups.items():
                worth += count * self.acceptance.tokens(place)[min(k, waiting)]
            if worth > best_worth:
                best, best_worth = k, worth
        return best


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"
