"""Several drafters as one: row by row, the first that has a draft.

Owns the joining of what its parts need and propose. Which part serves a row depends on counts
alone, which no part may derive from a drawn token, so the choice leaves every rule's distribution
untouched. All parts propose in every round: asking one only where another has nothing would read
the device.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from paceline.drafters.base import Drafter, Draw, TargetInfo, TargetText
from paceline.errors import ConfigError
from paceline.speculation.sampling import one_hot_scores
from paceline.types import (
    Draft,
    Limits,
    MemoryPart,
    Needs,
    Request,
    Rows,
    TargetOut,
    Verdict,
    Window,
)

_CATCH_UP: tuple[Literal["none", "tokens", "observe"], ...] = ("none", "tokens", "observe")


class MixDrafter(Drafter):
    """Asks every part and takes, row by row, the first draft with a count above 0."""

    name: ClassVar[str] = "mix"

    def __init__(self, parts: tuple[Drafter, ...]) -> None:
        """Raises ConfigError without parts, or where more than one keeps a cache."""
        if not parts:
            raise ConfigError("drafter 'mix' needs at least one part: write ngram+model")
        self.parts = parts
        self.needs = _join_needs(parts)

    @property
    def sources(self) -> tuple[str, ...]:
        """The parts' sources, one after the other."""
        return tuple(source for part in self.parts for source in part.sources)

    def memory(self, limits: Limits) -> tuple[MemoryPart, ...]:
        """What all parts take."""
        return tuple(item for part in self.parts for item in part.memory(limits))

    def check(self, target: TargetText) -> None:
        """Every part's."""
        for part in self.parts:
            part.check(target)

    def bind(self, target: TargetInfo, limits: Limits) -> None:
        """Bind every part; what one needs may be known only then."""
        for part in self.parts:
            part.bind(target, limits)
        self.needs = _join_needs(self.parts)

    def admit(self, slot: int, request: Request) -> None:
        """Tell every part."""
        for part in self.parts:
            part.admit(slot, request)

    def release(self, slot: int) -> None:
        """Tell every part."""
        for part in self.parts:
            part.release(slot)

    def observe(
        self, window: Window, out: TargetOut | None, verdict: Verdict | None, rows: Rows
    ) -> None:
        """Show every part the window, with only the features that it declared."""
        for part in self.parts:
            part.observe(window, self._part_of(out, part), verdict, rows)

    def _part_of(self, out: TargetOut | None, part: Drafter) -> TargetOut | None:
        if out is None or part.needs.features == self.needs.features:
            return out
        at = {layer: i for i, layer in enumerate(self.needs.features)}
        chosen = tuple(out.features[at[layer]] for layer in part.needs.features)
        return replace(out, features=chosen)

    def propose(self, rows: Rows, k: int, draw: Draw) -> Draft:
        """Return the first part's draft where it has one, else the next part's, and so on."""
        # What was committed may be another part's draft: to each part all of it is new.
        rows = replace(rows, fresh=rows.committed)
        joined: Draft | None = None
        offset = 0
        for part in self.parts:
            draft = part.propose(rows, k, draw)
            assert draft.parents is None, "mix joins chains; a tree needs a part of its own"
            draft = replace(draft, source=draft.source + offset) if offset else draft
            joined = draft if joined is None else _first(joined, draft)
            offset += len(part.sources)
        assert joined is not None
        return joined


def _first(first: Draft, second: Draft) -> Draft:
    """Join two drafts of the same shape: rows of `first` where it has any, else of `second`."""
    has = first.count > 0  # [B]
    scores: Tensor | None = None
    if first.scores is not None or second.scores is not None:
        scores = torch.where(
            has[:, None, None], _scores(first, second.scores), _scores(second, first.scores)
        )
    return Draft(
        torch.where(has[:, None], first.tokens, second.tokens),
        torch.where(has, first.count, second.count),
        torch.where(has, first.source, second.source),
        scores,
    )


def _scores(draft: Draft, like: Tensor | None) -> Tensor:
    """The draft's log-weights [B, K, V]; one-hot, in the shape of `like`, if it has none."""
    if draft.scores is not None:
        return draft.scores
    assert like is not None
    return one_hot_scores(draft.tokens, like.shape[-1], like.dtype)


def _join_needs(parts: tuple[Drafter, ...]) -> Needs:
    """What all parts need together. Raises ConfigError for parts of which one would miss text."""
    needs = [part.needs for part in parts]
    cached = [part.name for part in parts if part.needs.kv is not None]
    if len(cached) > 1:
        raise ConfigError(
            f"drafter 'mix': only one part may keep a cache, not {' and '.join(cached)}; "
            "leave one out"
        )
    ways = {need.catch_up: part.name for need, part in zip(needs, parts, strict=True)}
    if {"tokens", "observe"} <= ways.keys():  # the former is not brought up to date by windows
        raise ConfigError(
            f"drafter 'mix': {ways['observe']} is shown every window and {ways['tokens']} is "
            "brought up to date from tokens, which cannot stand together; leave one out"
        )
    bounded = [need.most for need in needs if need.most is not None]
    return Needs(
        features=tuple(sorted({layer for need in needs for layer in need.features})),
        kv=next((need.kv for need in needs if need.kv is not None), None),
        host=any(need.host for need in needs),
        most=max(bounded) if len(bounded) == len(needs) else None,
        shift=max(need.shift for need in needs),
        catch_up=max((need.catch_up for need in needs), key=_CATCH_UP.index),
    )
