"""What rounds cost, as a value that can be handed out, kept and read again.

The same measured points and the same lines between them as the engine's own table
(`engine.cost`), without what live rounds teach. Pure: no torch, no device, no clock.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

from paceline.engine.cost_grid import Grid, Point


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of rounds by rows, draft tokens and context.

    points: what was measured. ks: the draft lengths that rounds are made for, 0 among them.
    sizes: numbers of rows that rounds run at where they run at these alone, a smaller batch as the
    next larger one; empty where any number runs as it is. Raises ValueError where no verify
    window was measured.
    """

    points: tuple[Point, ...]
    ks: tuple[int, ...]
    sizes: tuple[int, ...] = ()
    _verify: Grid = field(init=False, repr=False, compare=False)
    _draft: Grid = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not any(point.kind == "verify" for point in self.points):
            raise ValueError("costs need at least one measured verify window")
        object.__setattr__(self, "_verify", Grid("verify", self.points))
        object.__setattr__(self, "_draft", Grid("draft", self.points))

    def verify(self, rows: int, k: int, context: float = 0.0) -> float:
        """Seconds of a target pass over k draft tokens and one more a row, up to the verdict.
        context: committed positions a row."""
        return self._at(self._verify, rows, k, context)

    def draft(self, rows: int, k: int, context: float = 0.0) -> float:
        """Seconds of drafting k tokens a row; k = 0 is what a drafter takes that must observe."""
        return self._at(self._draft, rows, k, context)

    def round(self, rows: int, k: int, context: float = 0.0) -> float:
        """Seconds of a round that verifies and drafts k tokens a row, the host's share left out."""
        return self.verify(rows, k, context) + self.draft(rows, k, context)

    def _at(self, grid: Grid, rows: int, k: int, context: float) -> float:
        place = bisect_left(self.sizes, rows)
        size = self.sizes[place] if place < len(self.sizes) else rows
        base, slope = grid.at(size, k)
        # The rows that only fill up a recorded size have no context to read.
        return base + slope * context * rows / size
