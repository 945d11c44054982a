"""Who decides how many tokens are drafted, as the loop sees it: one decision a round. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from paceline.engine.acceptance import Seen, Track


@dataclass(frozen=True, slots=True)
class Launch:
    """What was decided for one round: verify k of the waiting draft tokens, then draft next_k for
    the round after it.

    drafts: those that are meant for each row. A row that has any needs a drafter that is up to
    date with it; what is drafted in the others is not counted on. asked: draft tokens that each
    row's window was to hold.
    """

    rows: int
    context: float
    k: int
    next_k: int
    asked: tuple[int, ...]
    drafts: tuple[int, ...]
    first: float = 0.0  # seconds that bringing the drafter up to date should take

    def without_drafts(self, tracks: Sequence[Track]) -> Launch:
        """The same round, but nothing is drafted behind it."""
        for track in tracks:
            track.waiting = 0
        return replace(self, next_k=0, drafts=(0,) * self.rows, first=0.0)


class Pilot(Protocol):
    """Asked by the loop before a round and told after it: see `engine.policy.Governor`, and
    `engine.fixed.FixedK`."""

    def track(self, limit: int, remaining: int) -> Track: ...
    def first(self, track: Track) -> int: ...
    def fed(self, tokens: int) -> None: ...
    def plan(self, tracks: list[Track], context: float) -> Launch: ...
    def put_off(self, tracks: list[Track], launch: Launch) -> Launch: ...
    def settled(
        self,
        tracks: list[Track],
        launch: Launch,
        seen: Seen,
        *,
        verify_seconds: float = 0.0,
        draft_seconds: float = 0.0,
        wall_seconds: float | None = None,
        elapsed_seconds: float | None = None,
    ) -> None: ...
    @property
    def paused(self) -> bool: ...
    def describe(self) -> str: ...
