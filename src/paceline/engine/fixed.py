"""Drafting as much as was asked for, always: the policy of a user who has decided.

Has the form of `engine.policy.Governor` and learns nothing. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from paceline.engine.acceptance import Seen, Track
from paceline.engine.pilot import Launch


class FixedK:
    """Every row has the draft tokens that its request may have."""

    def __init__(self, k: int) -> None:
        self._k = k

    @property
    def paused(self) -> bool:
        """Whether the drafter need not be kept up to date: where it never drafts."""
        return self._k == 0

    def track(self, limit: int, remaining: int) -> Track:
        """See `Governor.track`."""
        return Track(min(limit, self._k), remaining)

    def first(self, track: Track) -> int:
        """See `Governor.first`."""
        track.waiting = track.limit
        return track.limit

    def fed(self, tokens: int) -> None:
        """See `Governor.fed`."""

    def plan(self, tracks: Sequence[Track], context: float) -> Launch:
        """See `Governor.plan`."""
        asked = tuple(track.waiting for track in tracks)
        next_k = max(track.limit for track in tracks)
        for track in tracks:
            track.waiting = track.limit
        drafts = tuple(track.limit for track in tracks)
        return Launch(len(tracks), context, max(asked), next_k, asked, drafts)

    def put_off(self, tracks: Sequence[Track], launch: Launch) -> Launch:
        """See `Governor.put_off`."""
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
        """Nothing: it learns nothing."""

    def describe(self) -> str:
        """What is done, in words."""
        return f"{self._k} drafts a round, as asked" if self._k else "no drafts, as asked"
