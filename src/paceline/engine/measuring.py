"""Measures what rounds cost, before the first request: made-up texts through the same rounds.

Works on slots and pages that nobody holds yet, and leaves them as it found them.
"""

from __future__ import annotations

import itertools
import logging
import platform
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

from paceline.drafters.base import Drafter
from paceline.engine.catch_up import NO_CATCH_UP, CatchUp, Span
from paceline.engine.cost import CostTable
from paceline.engine.cost_file import load_costs, save_costs
from paceline.engine.cost_grid import Point
from paceline.engine.costs import Costs
from paceline.engine.readings import Readings, wait_for
from paceline.engine.round import Machine, Plan
from paceline.engine.rounds import Pending, Rounds
from paceline.types import SamplingFlags

log = logging.getLogger(__name__)

_SHORT, _LONG = 64, 1024  # committed positions a row
_REPEATS, _WARM = 3, 1
_FEW, _CHUNK = 16, 256  # tokens of which bringing a drafter up to date is measured

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Rig:
    """What is measured. readings: how a drafter is brought up to date. ks: the draft lengths there
    are. sizes: numbers of rows to measure; rounded: rounds run at these sizes alone, a smaller
    batch as the next larger one. most(rows): the longest draft of so many rows, or None where
    there is no such bound."""

    machine: Machine
    rounds: Rounds
    readings: Readings
    ks: tuple[int, ...]
    sizes: tuple[int, ...]
    rounded: bool
    most: Callable[[int], int] | None = None


def powers(rows: int) -> tuple[int, ...]:
    """Numbers of rows to measure where any number up to `rows` may run: 1, 2, 4 … and `rows`."""
    return tuple(sorted({1 << i for i in range(rows.bit_length())} | {rows}))


def cost_table(
    rig: Rig, key: Mapping[str, str], seconds: float = 2.0, progress: Progress | None = None
) -> CostTable:
    """The costs of `rig`: as an earlier start measured them, or measured now, in about so many
    seconds, and kept. key: what they depend on beside the rig (models, dtype, capture)."""
    whole = _key(rig, key)
    saved = load_costs(whole)
    if saved is None:
        began = time.perf_counter()
        points = measure(rig, seconds, progress)
        catch_up = measure_catch_up(rig.machine, rig.readings)
        log.info("measured %d costs in %.1f s", len(points), time.perf_counter() - began)
        save_costs(whole, points, catch_up)
    else:
        points, catch_up = list(saved.points), saved.catch_up
    sizes = rig.sizes if rig.rounded else ()
    return CostTable(points, rig.ks, sizes=sizes, most=rig.most, catch_up=catch_up)


def keep(rig: Rig, key: Mapping[str, str], table: CostTable) -> None:
    """Keep what live rounds have added to `table` for the next start."""
    save_costs(_key(rig, key), table.learned(), table.catch_up)


def costs_of(rig: Rig, table: CostTable | None, seconds: float | None) -> Costs:
    """What is known (`table`, with what live rounds said of it); or measured now, in about so many
    seconds, where that is asked for or nothing is known. Nobody may hold slots or pages."""
    sizes = rig.sizes if rig.rounded else ()
    if table is not None and seconds is None:
        return Costs(table.learned(), rig.ks, sizes)
    points = measure(rig, 2.0 if seconds is None else seconds, often=seconds is not None)
    return Costs(tuple(points), rig.ks, sizes)


def measure(
    rig: Rig, seconds: float, progress: Progress | None = None, often: bool = False
) -> list[Point]:
    """Time rounds, those first between which the others lie. However little time there is, plain
    decoding and the longest draft are measured for the fewest and for the most rows. often: go
    round until the time is over, so that a machine whose pace drifts slows all sizes alike."""
    slots = rig.machine.slots.limits.slots
    cells, end = _cells(rig), time.perf_counter() + seconds
    found: dict[tuple[int, int, int], list[tuple[float, float]]] = {cell: [] for cell in cells}
    with torch.inference_mode(), _texts(rig.machine, rig.ks[-1]):
        for done, cell in enumerate(itertools.chain(cells, itertools.cycle(cells))):
            over = time.perf_counter() > end
            if (done >= 4 and over) or (done >= len(cells) and not often):
                break
            size, k, context = cell
            found[cell] += _time(rig, min(size, slots - 1), k, context)
            if progress is not None:
                progress(min(done + 1, len(cells)), len(cells))
    if progress is not None:
        progress(len(cells), len(cells))
    return _points(rig, found)


def _points(
    rig: Rig, found: Mapping[tuple[int, int, int], Sequence[tuple[float, float]]]
) -> list[Point]:
    """The medians of what was timed. Context is a row's, also of those that only fill up a recorded
    size: of them there are some where it is more than all slots."""
    observes, points = rig.machine.drafter.needs.catch_up == "observe", list[Point]()
    slots = rig.machine.slots.limits.slots
    for (size, k, positions), times in found.items():
        if not times:
            continue
        context = positions * min(size, slots - 1) // size if rig.rounded else positions
        verify, draft = (statistics.median(column) for column in zip(*times, strict=True))
        points.append(Point("verify", size, k, context, verify))
        if k or observes:
            points.append(Point("draft", size, k, context, draft))
    return points


def measure_catch_up(machine: Machine, readings: Readings) -> CatchUp:
    """What it takes to show a drafter text that it has not seen; zeros where it never needs it."""
    if machine.drafter.needs.catch_up != "tokens":
        return NO_CATCH_UP
    device = machine.slots.limits.device

    def seconds(count: int) -> float:
        found = []
        for _ in range(_REPEATS):
            wait_for(device)
            began = time.perf_counter()
            readings.catch_up([Span(1, 0, count)])
            wait_for(device)
            found.append(time.perf_counter() - began)
        return min(found)

    with torch.inference_mode(), _texts(machine, 0) as longest:
        many = min(_CHUNK, longest)
        few = min(_FEW, many)
        short, long = seconds(few), seconds(many)
    token = max(0.0, long - short) / max(1, many - few)
    return CatchUp(max(0.0, short - few * token), token)


def _cells(rig: Rig) -> list[tuple[int, int, int]]:
    """(Rows, k, context), the most telling first: the corners, the other sizes, long texts, and
    then the draft lengths between."""
    longest = _longest(rig.machine, rig.ks[-1])
    first, *between = rig.sizes
    sizes = [first, *between[-1:], *between[:-1]]

    def ends(size: int) -> list[int]:
        return sorted({0, max(k for k in rig.ks if rig.most is None or k <= rig.most(size))})

    short = min(_SHORT, longest)
    cells = [(size, k, short) for size in sizes for k in ends(size)]
    if longest >= 2 * short:
        cells += [(size, k, longest) for size in sizes for k in ends(size)]
    # The shortest draft first: it is not half of one of two, and at high loads the best.
    middle = sorted(rig.ks[1:-1], key=lambda k: (k != 1, abs(k - rig.ks[-1] / 2)))
    cells += [(size, k, short) for k in middle for size in sizes if 0 < k < ends(size)[-1]]
    return cells


def _longest(machine: Machine, k: int) -> int:
    """Committed positions of the long texts: a round of k drafts must fit behind them."""
    return max(1, min(_LONG, machine.slots.limits.max_length - 2 * k - 2))


@contextmanager
def _texts(machine: Machine, k: int) -> Iterator[int]:
    """Made-up texts in all slots, each with pages of its own as far as there are enough. Yields
    how many positions they may have, rounds of k drafts behind them not counted."""
    slots, limits = machine.slots, machine.slots.limits
    longest = _longest(machine, k)
    each = -(-min(longest + 2 * k + 2, limits.max_length) // limits.page_size)
    held = slice(1, limits.slots)
    for slot in range(1, limits.slots):
        first = (slot - 1) * each
        pages = [1 + (first + i) % (limits.pages - 1) for i in range(each)]
        slots.set_pages(slot, 0, pages)
    slots.limit[held], slots.k_limit[held] = limits.max_length, limits.max_k
    slots.stop_ids[held] = -1
    try:
        yield longest
    finally:
        for slot in range(1, limits.slots):
            slots.release(slot)
        for field in (slots.length, slots.limit, slots.k_limit, slots.draft_count, slots.tokens):
            field[held] = 0


def _time(rig: Rig, rows: int, k: int, context: int) -> list[tuple[float, float]]:
    """Seconds to verify and to draft k tokens in each of so many rows, some times over."""
    slots, limits = rig.machine.slots, rig.machine.slots.limits
    index = torch.arange(1, rows + 1, device=limits.device)
    bound = min(context + 2 * k + 2, limits.max_length)
    plan = Plan(slots.batch(index), (bound,) * rows, SamplingFlags(), k, k)
    ahead, flying = rig.rounds.ahead(plan), deque[tuple[float, Pending]]()
    found = []
    for turn in range(_REPEATS + _WARM + ahead):
        slots.active[1 : rows + 1] = True
        slots.length[1 : rows + 1], slots.draft_count[1 : rows + 1] = context, k
        flying.append((time.perf_counter(), rig.rounds.launch(plan)))
        # As many in flight as live rounds have: a device that waits for its host is slower.
        while len(flying) > ahead:
            began, pending = flying.popleft()
            outcome = pending.wait()
            wall = time.perf_counter() - began
            if turn >= _WARM + ahead:  # and drafting may be told of one round late
                found.append((outcome.verify_seconds or wall, outcome.draft_seconds))
    for _, pending in flying:
        pending.wait()
    return found


def _version() -> str:
    try:
        return version("paceline")
    except PackageNotFoundError:  # run from its source, without being installed
        return "source"


def _described(drafter: Drafter) -> str:
    """Its class and, where it keeps them as the guide says, its options: what one costs says
    nothing of another of the same name."""
    made = type(drafter)
    parts = [_described(part) for part in getattr(drafter, "parts", ())]
    options = getattr(drafter, "options", "")
    return " ".join([f"{made.__module__}.{made.__qualname__}", str(options), *parts]).strip()


def _key(rig: Rig, key: Mapping[str, str]) -> dict[str, str]:
    """Everything that the costs depend on."""
    machine, limits = rig.machine, rig.machine.slots.limits
    device, needs = limits.device, machine.drafter.needs
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else platform.processor()
    return {
        "paceline": _version(),
        "torch": torch.__version__,
        "device": f"{device.type} {name or platform.machine()}",
        "threads": "" if on_gpu else str(torch.get_num_threads()),
        "target": f"{machine.target.spec} {limits.vocab_size}",
        "drafter": f"{_described(machine.drafter)} {needs}",
        "rule": machine.rule.__class__.__name__,
        "limits": f"{limits.slots} {limits.max_length} {limits.pages}",
        "ks": str(rig.ks),
        "sizes": f"{rig.sizes} {rig.rounded}",
        **key,
    }
