"""What a round costs on this machine: measured at start, kept on disk, refined from live rounds.

Seconds of verifying and of drafting over rows, draft tokens and context; between measured points
straight lines, never falling as any of the three grows. Pure: no torch, no device, no clock, no
file (`engine.cost_file` has those).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from paceline.engine.catch_up import CatchUp
from paceline.engine.cost_grid import KINDS, Grid, Kind, Point

_RECENT = 5  # live rounds of which the median counts, so that a single slow one says nothing
_GAIN = 0.04  # how fast a cell follows that median
_DRIFT = 0.01  # and all cells of its kind with it: a clock that falls slows every round
_WIDEST = 3.0  # a correction is kept within exp(±this)


@dataclass(slots=True)
class _Cell:
    """What live rounds say of one cell: the logarithm of live over measured."""

    own: float = 0.0
    factor: float = 1.0
    recent: list[float] = field(default_factory=list)

    def hear(self, value: float) -> float | None:
        """Take a value; the median of the last few, or None while there are too few."""
        self.recent.append(value)
        if len(self.recent) > _RECENT:
            del self.recent[0]
        if len(self.recent) < 3:
            return None
        return sorted(self.recent)[len(self.recent) // 2]

    def shift(self, by: float) -> None:
        """Move the correction."""
        self.own = min(max(self.own + by, -_WIDEST), _WIDEST)
        self.factor = math.exp(self.own)


# Seconds at context 0, seconds a position, correction.
_Entry = tuple[float, float, _Cell]


@dataclass(frozen=True, slots=True)
class _Line:
    """The cells of one number of rows, in the order of the table's ks, to verify and to draft,
    and the host's share with K = 0 and with more."""

    verify: tuple[_Entry, ...]
    draft: tuple[_Entry, ...]
    host: tuple[_Cell, _Cell]


class CostTable:
    """Seconds of rounds; see the module. Every method takes the rows that really run."""

    def __init__(
        self,
        points: Iterable[Point],
        ks: Sequence[int],
        *,
        sizes: Sequence[int] = (),
        most: Callable[[int], int] | None = None,
        catch_up: CatchUp | None = None,
    ) -> None:
        """ks: the draft lengths a round may have. sizes: where rounds are recorded for these
        numbers of rows alone, so that each runs as the next larger one; empty where any number
        runs as it is. most(rows): the longest draft that rounds of so many rows are made for.
        catch_up: of a drafter that rested; zeros where it need not be (it keeps nothing, or sees
        every window anyway), None for a guess."""
        self.points = tuple(points)
        self.ks = tuple(sorted(set(ks)))
        self._most = most
        self._index = {k: i for i, k in enumerate(self.ks)}
        self.sizes = tuple(sorted(sizes))
        if not any(point.kind == "verify" for point in self.points):
            raise ValueError("a cost table needs at least one measured verify window")
        self._grids = {kind: Grid(kind, self.points) for kind in KINDS}
        self._cells: dict[tuple[str, int, int], _Cell] = {}
        self._shared = {kind: _Cell() for kind in KINDS}
        self._lines: dict[int, _Line] = {}
        step = self._grids["draft"].at(1, 1)[0]
        self.catch_up = CatchUp(step, step / 64) if catch_up is None else catch_up

    # --- asking ---

    def verify(self, rows: int, window: int, context: float = 0.0) -> float:
        """Seconds of a target pass over `window` positions a row, up to the verdict."""
        return self._seconds("verify", rows, window - 1, context)

    def draft(self, rows: int, k: int, context: float = 0.0) -> float:
        """Seconds of drafting k tokens a row; k = 0 is what a drafter takes that must observe."""
        return self._seconds("draft", rows, k, context)

    def host(self, rows: int, k: int) -> float:
        """Seconds that a round takes beside verifying and drafting, as live rounds say."""
        return self._cell("host", rows, int(k > 0)).own

    def catching_up(self, behind: Iterable[int]) -> float:
        """Seconds to bring a drafter up to date with rows that lie so many tokens behind."""
        return self.catch_up.seconds(behind)

    def rounds(self, rows: int, context: float = 0.0) -> list[float]:
        """Seconds of a round that verifies and drafts k tokens a row, for each k of `ks`;
        infinite where there is no such round."""
        line = self._lines.get(rows) or self._line(rows)
        verify, draft = self._shared["verify"].factor, self._shared["draft"].factor
        host0, host = line.host
        return [
            (v + vs * context) * vc.factor * verify
            + (d + ds * context) * dc.factor * draft
            + (host.own if k else host0.own)
            for k, (v, vs, vc), (d, ds, dc) in zip(self.ks, line.verify, line.draft, strict=True)
        ]

    # --- learning from live rounds ---

    def saw(self, kind: Kind, rows: int, k: int, context: float, seconds: float) -> None:
        """A live round verified, or drafted, k tokens a row in `seconds`."""
        base, slope, cell = self._entry(kind, rows, k)
        expected, shared = base + slope * context, self._shared[kind]
        if seconds <= 0 or not 0 < expected < math.inf:
            return
        ratio = cell.hear(math.log(seconds / expected))
        if ratio is not None:
            error = ratio - cell.own - shared.own
            cell.shift(_GAIN * error)
            shared.shift(_DRIFT * error)

    def saw_host(self, rows: int, k: int, seconds: float) -> None:
        """A live round of k took `seconds` beside verifying and drafting (negative is noise)."""
        self._follow(self._cell("host", rows, int(k > 0)), seconds)

    def learned(self) -> tuple[Point, ...]:
        """The measured points with what live rounds said of their own cells, for the next start.
        What all cells share is today's mood of the machine and is left out."""
        return tuple(
            replace(point, seconds=point.seconds * self._factor(point)) for point in self.points
        )

    # --- inside ---

    def _follow(self, cell: _Cell, value: float) -> None:
        median = cell.hear(value)
        if median is not None:
            cell.own = max(0.0, cell.own + (_GAIN + _DRIFT) * (median - cell.own))

    def _factor(self, point: Point) -> float:
        cell = self._cells.get((point.kind, point.rows, point.k))
        return 1.0 if cell is None else cell.factor

    def _size(self, rows: int) -> int:
        """The rows that are computed where `rows` run."""
        place = bisect_left(self.sizes, rows)
        return self.sizes[place] if place < len(self.sizes) else rows

    def _share(self, rows: int) -> float:
        """Of the rows that are computed, those that run: what only fills up has no context."""
        return rows / self._size(rows)

    def _cell(self, kind: str, rows: int, k: int) -> _Cell:
        """The correction at the nearest measured number of rows (a ratio changes slowly)."""
        sizes = self._grids["verify"].sizes
        size = min(sizes, key=lambda size: (abs(math.log(size / self._size(rows))), size))
        return self._cells.setdefault((kind, size, k), _Cell())

    def _seconds(self, kind: Kind, rows: int, k: int, context: float) -> float:
        base, slope, cell = self._entry(kind, rows, k)
        return (base + slope * context) * cell.factor * self._shared[kind].factor

    def _entry(self, kind: Kind, rows: int, k: int) -> _Entry:
        place = self._index.get(k)
        if place is None:
            base, slope = self._grids[kind].at(self._size(rows), k)
            return base, slope * self._share(rows), self._cell(kind, rows, k)
        line = self._lines.get(rows) or self._line(rows)
        return (line.verify if kind == "verify" else line.draft)[place]

    def _line(self, rows: int) -> _Line:
        def cells(kind: Kind) -> tuple[_Entry, ...]:
            grid, size, share = self._grids[kind], self._size(rows), self._share(rows)
            most = self.ks[-1] if self._most is None else self._most(rows)
            there = [grid.at(size, k) if k <= most else (math.inf, 0.0) for k in self.ks]
            return tuple(
                (base, slope * share, self._cell(kind, rows, k))
                for k, (base, slope) in zip(self.ks, there, strict=True)
            )

        host = self._cell("host", rows, 0), self._cell("host", rows, 1)
        line = self._lines[rows] = _Line(cells("verify"), cells("draft"), host)
        return line
