"""From what a round committed to what the user reads: tokens, text, stop strings, counts.

Host only. One `Reader` a request; it alone decides where the text ends when a stop string does.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from paceline.text import Detokenizer, Lead, StopStrings, Tokenizer
from paceline.types import (
    Completion,
    Event,
    FinishReason,
    Request,
    RoundReport,
    SequenceStats,
    TokenLogprob,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Committed:
    """One row of a verdict, on the host. Token ids in order; drafted and accepted count draft
    tokens of the window; ended: the device closed the row (a stop token or the limit); k, seconds:
    as in `RoundReport`."""

    token_ids: tuple[int, ...]
    source: str
    drafted: int
    evaluated: int
    accepted: int
    ended: bool
    failed: bool
    logprobs: tuple[TokenLogprob, ...] | None = None
    k: int = 0
    seconds: float = 0.0

    def report(self, stand: int) -> RoundReport:
        """What the round did for the request, where `stand` of its tokens stand."""
        return RoundReport(
            k=self.k,
            drafted=self.drafted,
            evaluated=min(self.evaluated, stand),
            accepted=min(self.accepted, stand),
            drafter=self.source if self.drafted else None,
            seconds=self.seconds,
        )


@dataclass(frozen=True, slots=True)
class _End:
    """How a text ends. by_token: the last one, which is not shown."""

    finish: FinishReason
    reason: str | int | None = None
    by_token: bool = False

    @property
    def name(self) -> str:
        """The stop string whose token ended the text, or nothing."""
        return self.reason if self.by_token and isinstance(self.reason, str) else ""


@dataclass(slots=True)
class Reader:
    """Collects one request's tokens and text, and hands them out as events.

    The event with `finish` is held back until `seal`: whoever sees it finds everything about the
    request counted, and its slot and pages free, or free as soon as a round on its way is read.
    """

    request: Request
    tokenizer: Tokenizer
    eos_ids: frozenset[int]
    stats: SequenceStats
    token_ids: list[int] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    events: deque[Event] = field(default_factory=deque)
    finish: FinishReason | None = None
    closed: bool = False  # the event with `finish` is there: other threads look at nothing else
    last: Event | None = None  # that event, until it may be seen
    stop_reason: str | int | None = None
    error: Exception | None = None
    notify: Callable[[], None] | None = None  # called after each event
    _pieces: list[str] = field(default_factory=list)
    _text: _TextEnd = field(init=False)

    def __post_init__(self) -> None:
        self._text = _TextEnd(self.tokenizer, self.request)

    def take(self, row: Committed) -> int:
        """Add what one round committed for this request, as one event.

        Returns how many of its tokens stand: fewer than it brought where a stop string ended
        the text among them.
        """
        ids, end = list(row.token_ids), self._end(row)
        pieces, rest = [""] * len(ids), ""
        shown = ids[:-1] if end is not None and end.by_token else ids
        unchecked = max(0, self.request.params.min_tokens - len(self.token_ids))
        texts, hit = self._text.take(shown, unchecked)
        pieces[: len(texts)] = texts
        if hit is not None:
            ids = ids[: len(texts)]
            del pieces[len(ids) :]
        elif end is not None:
            rest, hit = self._text.rest(armed=len(ids) > unchecked)
            if hit is None and self.request.params.include_stop_str_in_output:
                rest += end.name
            if pieces:
                pieces[-1], rest = pieces[-1] + rest, ""
        if hit is not None:
            end = _End("stop", hit)
        sources = [row.source if i < row.accepted else "target" for i in range(len(ids))]
        logprobs = None if row.logprobs is None else row.logprobs[: len(ids)]
        if end is not None:  # only now: what raises before leaves a text that can still be closed
            self.finish, self.stop_reason = end.finish, end.reason
        self._emit(ids, pieces, sources, logprobs, row.report(len(ids)), rest)
        return len(ids)

    def _end(self, row: Committed) -> _End | None:
        """How the device ended the row, if it did."""
        if not row.ended:
            return None
        last = row.token_ids[-1] if row.token_ids else None
        if last is None or last not in self.stop_ids:
            return _End("length")
        name = self.tokenizer.token(last)
        if name in self.request.params.stop:  # asked for by its name
            return _End("stop", name, by_token=True)
        return _End("stop", None if last in self.eos_ids else last, by_token=True)

    def close(self, finish: FinishReason, error: Exception | None = None) -> None:
        """End the request from outside: cancelled, or failed with `error`."""
        if self.finish is None:
            self.finish, self.error = finish, error
            rest = ""
            try:
                rest, _ = self._text.rest()
            except BaseException:  # it may be why the request fails: it has to end nevertheless
                log.debug("request %s: no rest of its text", self.request.id, exc_info=True)
            self._emit([], [], [], None, None, rest)

    def seal(self) -> None:
        """Nothing about a request that has ended changes any more: its last event may be seen."""
        assert self.last is not None
        self._hand_out(self.last)
        self.last = None

    @property
    def stop_ids(self) -> frozenset[int]:
        """Token ids that end this request's text."""
        params = self.request.params
        eos: frozenset[int] = frozenset() if params.ignore_eos else self.eos_ids
        return eos | frozenset(params.stop_token_ids)

    def _emit(
        self,
        ids: list[int],
        pieces: list[str],
        sources: list[str],
        logprobs: Sequence[TokenLogprob] | None,
        report: RoundReport | None,
        rest: str,
    ) -> None:
        """rest: text of no token of this event."""
        text = "".join(pieces) + rest
        self.token_ids += ids
        self.sources += sources
        self.logprobs += logprobs or ()
        self._pieces.append(text)
        self.stats.emitted += len(ids)
        event = Event(
            request_id=self.request.id,
            token_ids=tuple(ids),
            text=text,
            sources=tuple(sources),
            logprobs=None if logprobs is None else tuple(logprobs),
            finish=self.finish,
            stop_reason=self.stop_reason,
            pieces=tuple(pieces),
            round=report,
        )
        if self.finish is not None:
            self.last = event
        else:
            self._hand_out(event)

    def _hand_out(self, event: Event) -> None:
        self.events.append(event)
        self.closed = event.finish is not None
        if self.notify is not None:
            self.notify()

    def completion(self) -> Completion:
        """The whole text, once `finish` is set."""
        assert self.finish is not None
        return Completion(
            request_id=self.request.id,
            prompt_tokens=len(self.request.prompt),
            token_ids=tuple(self.token_ids),
            text="".join(self._pieces),
            sources=tuple(self.sources),
            finish=self.finish,
            stop_reason=self.stop_reason,
            seed=self.request.seed,
            logprobs=None if self.request.params.logprobs is None else tuple(self.logprobs),
            stats=self.stats,
        )


class _TextEnd:
    """Detokenizes and looks for stop strings; finds at which token a stop string is complete."""

    def __init__(self, tokenizer: Tokenizer, request: Request) -> None:
        special = not request.params.skip_special_tokens
        self._detokenizer = Detokenizer(tokenizer, request.prompt, special)
        params = request.params
        self._stops = StopStrings(params.stop, params.include_stop_str_in_output)
        self._searching = bool(params.stop)
        self._lead = Lead(params.stop_after, params.stop_opened_by) if params.stop_after else None

    def take(self, ids: list[int], unchecked: int) -> tuple[list[str], str | None]:
        """Add tokens, the first `unchecked` of which may not complete a stop string.

        Returns the text that may be shown, an entry for each token that stands, and the stop string
        that was met. Token by token, so that neither which tokens stand nor how the text is split
        depends on how many a round brought.
        """
        if not self._searching:
            return [self._detokenizer.push((token,)) for token in ids], None
        shown = []
        for place, token in enumerate(ids):
            text = self._detokenizer.push([token])
            safe, hit = self._feed(text, armed=place >= unchecked)
            shown.append(safe)
            if hit is not None:
                return shown, hit
        return shown, None

    def _feed(self, text: str, armed: bool, last: bool = False) -> tuple[str, str | None]:
        """`StopStrings.feed` of what is behind the lead. last: the text ends here."""
        if self._lead is None:
            return self._stops.feed(text, armed)
        shown, pieces = self._lead.feed(text, armed, last)
        for piece, counts in pieces:
            safe, hit = self._stops.feed(piece, counts)
            shown += safe
            if hit is not None:
                return shown, hit
        return shown, None

    def rest(self, armed: bool = True) -> tuple[str, str | None]:
        """What was held back, at the end of the text, and the stop string that is in it: bytes of
        one character wait for each other, and with sentencepiece a newline is such a byte. armed:
        see `StopStrings.feed`."""
        tail = self._detokenizer.flush()
        safe, hit = self._feed(tail, armed, last=True) if self._searching else (tail, None)
        return (safe, hit) if hit is not None else (safe + self._stops.flush(), None)
