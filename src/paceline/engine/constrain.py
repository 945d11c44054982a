"""Rows that a grammar binds: before a round, which tokens may come at every place of its window.

The one thing that makes the host wait for a draft. The rule sees the target's distribution with
the other tokens taken out, so every rule stays exact; a draft is replaced by what the grammar
forces only under a rule that keeps the text (`match`), where any draft will do.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from paceline.engine.round import Machine
from paceline.engine.sequence import Sequence
from paceline.errors import PacelineError
from paceline.ops.upload import put, upload
from paceline.types import Constraint

log = logging.getLogger(__name__)

FORCED = "forced"  # the source of a token that the grammar left no choice about


@dataclass(slots=True)
class Constrainer:
    """Writes masks, and forced drafts, into the slots."""

    machine: Machine

    def prepare(
        self, rows: list[Sequence], k: int, widest: int, width: Callable[[int], int]
    ) -> tuple[int, list[int], list[tuple[Sequence, BaseException]]]:
        """Masks for a window of k draft tokens, or of what is forced: at most `widest`.

        width: what a round of so many really has, at which every row may have a longer draft than
        it was meant to. Returns how many the window has; per row, how many draft tokens are forced;
        and the rows whose grammar broke down, with its error: no token may come in those, so that
        the round fails them and nobody else. No round of a bound row may be in flight.
        """
        forced, failed = [0] * len(rows), list[tuple[Sequence, BaseException]]()
        bound = [place for place, row in enumerate(rows) if row.request.constraint is not None]
        slots = self.machine.slots
        index = upload([rows[place].slot for place in bound], slots.limits.device)
        waiting = slots.draft_tokens[index].tolist(), slots.draft_count[index].tolist()
        drafts = [tokens[:count] for tokens, count in zip(*waiting, strict=True)]
        if widest and self.machine.rule.keeps_text:
            for which, place in enumerate(bound):
                must = self._must(rows[place], widest, failed)
                if must and must != drafts[which][:k][: len(must)]:
                    self._replace(rows[place].slot, must)
                    drafts[which], forced[place] = must, len(must)
        k = width(max(k, *forced))
        for place, draft in zip(bound, drafts, strict=True):
            self._mask(rows[place], draft[:k], failed)
        return k, forced, failed

    def _must(
        self, sequence: Sequence, widest: int, failed: list[tuple[Sequence, BaseException]]
    ) -> list[int]:
        """The tokens that must come next, as many as a window may hold."""
        room = max(0, min(widest, sequence.limit - len(sequence.tokens) - 1))
        if not room or not sequence.k:
            return []
        try:
            return _constraint(sequence).forced()[:room]
        except BaseException as error:  # llguidance is in Rust: a panic of it is no Exception
            self._fail(sequence, error, failed)
            return []

    def _mask(
        self, sequence: Sequence, draft: list[int], failed: list[tuple[Sequence, BaseException]]
    ) -> None:
        slots = self.machine.slots
        masks = slots.masks[sequence.slot, : len(draft) + 1]
        try:
            if all(sequence is not one for one, _ in failed):
                masks.copy_(_constraint(sequence).masks(draft))
                return
        except BaseException as error:  # llguidance is in Rust: a panic of it is no Exception
            self._fail(sequence, error, failed)
        masks.zero_()

    def _fail(
        self,
        sequence: Sequence,
        error: BaseException,
        failed: list[tuple[Sequence, BaseException]],
    ) -> None:
        mine = not isinstance(error, PacelineError)  # else the request's own fault
        log.log(
            logging.ERROR if mine else logging.INFO,
            "request %s: its grammar failed: %s",
            sequence.request.id,
            error,
            exc_info=error if mine else None,
        )
        failed.append((sequence, error))

    def _replace(self, slot: int, tokens: list[int]) -> None:
        slots = self.machine.slots
        put(slots.draft_tokens[slot], tokens)
        slots.draft_count[slot] = len(tokens)
        slots.draft_source[slot] = len(self.machine.drafter.sources)


def _constraint(sequence: Sequence) -> Constraint:
    constraint = sequence.request.constraint
    assert constraint is not None
    return constraint
