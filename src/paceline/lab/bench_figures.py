"""From a run's record to its summary: every figure, each contestant beside its own plain decoding.

Pure reading: the same folder gives the same summary, also while the run is on its way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from paceline.lab.bench_compare import compare
from paceline.lab.bench_manifest import Manifest, read_manifest
from paceline.lab.bench_rates import paces, rate, seconds_of, speedup, whole, writing
from paceline.lab.bench_record import (
    Contestant,
    Load,
    Measurement,
    Opening,
    Pass,
    Problem,
    Records,
    read_records,
)
from paceline.lab.bench_result import Figures, Position, Source, Summary, TimeShares
from paceline.lab.bench_schedule import Key, key
from paceline.lab.bench_statistics import percentiles
from paceline.lab.bench_verdict import verdict


def summarize(folder: Path) -> Summary:
    """All figures of a run's folder. Raises ConfigError where there is no run."""
    manifest, records = read_manifest(folder), read_records(folder)
    last: dict[Key, Measurement] = {key(m): m for m in records.measurements}
    measured = [m for m in last.values() if m.error is None]
    groups = _Groups(manifest, records, list(last.values()))
    figures = tuple(
        groups.figures(contestant, load, category)
        for load in manifest.loads
        for contestant in manifest.contestants
        for category in groups.categories()
        if groups.texts(contestant, load, category)
    )
    openings = {opening.contestant.name: opening for opening in records.openings}
    problems = _problems(manifest, records, last.values(), list(openings.values()))
    complete = len(measured) >= manifest.planned and not any(o.error for o in openings.values())
    comparisons = compare(manifest.contestants, measured)
    return Summary(
        settings=_settings(manifest),
        workload=manifest.workload,
        machine=manifest.machine | manifest.versions,
        openings=tuple(openings.values()),
        figures=figures,
        comparisons=comparisons,
        problems=problems,
        planned=manifest.planned,
        measured=len(measured),
        complete=complete,
        verdict=verdict(
            manifest.contestants, figures, comparisons, len(measured), manifest.planned
        ),
    )


def _settings(manifest: Manifest) -> dict[str, str]:
    chats = {None: "not settled", True: "sent as messages", False: "written out as plain text"}
    return {
        "loads": ", ".join(load.name for load in manifest.loads),
        "repeats": str(manifest.repeats),
        **manifest.settings,
        "chats": chats[manifest.chats],
    }


def _problems(
    manifest: Manifest,
    records: Records,
    last: Iterable[Measurement],
    openings: Sequence[Opening],
) -> tuple[Problem, ...]:
    """What went wrong, each in one line: what happened to many texts is told once, with a count."""
    told = [Problem("workload", line) for line in manifest.skipped]
    told += records.problems
    told += [Problem(o.contestant.name, o.error) for o in openings if o.error is not None]
    told += _unlike(openings)
    counts: dict[tuple[str, str], list[Measurement]] = defaultdict(list)
    for m in last:
        if m.error is not None:
            counts[m.contestant.name, m.error].append(m)
    for (name, error), failed in counts.items():
        where = f"{name}, {failed[0].load.name}, {failed[0].item}"
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        told.append(Problem(where, error + more))
    return tuple(told)


def _unlike(openings: Sequence[Opening]) -> list[Problem]:
    """Contestants of one family that came to compute with other numbers of threads: each chose what
    was fastest when it was opened, and a ratio between them is then not of speculation alone."""
    told = []
    families: dict[str, dict[str, str]] = defaultdict(dict)
    for opening in openings:
        if opening.error is None and "threads" in opening.facts:
            families[opening.contestant.family][opening.contestant.name] = opening.facts["threads"]
    for found in families.values():
        if len(set(found.values())) > 1:
            threads = ", ".join(f"{name} {count}" for name, count in found.items())
            told.append(Problem("threads", f"chosen unlike ({threads}): give --threads"))
    return told


class _Groups:
    """Measurements by contestant and load, and what is computed over them."""

    def __init__(self, manifest: Manifest, records: Records, last: list[Measurement]) -> None:
        """last: of every text, the measurement that stands."""
        self._manifest, self._records = manifest, records
        self._all: dict[tuple[str, str], list[Measurement]] = defaultdict(list)
        for m in last:
            self._all[m.contestant.name, m.load.name].append(m)
        self._known = dict.fromkeys(m.category for m in last)

    def categories(self) -> list[str | None]:
        """All texts together, and each category where there are several."""
        return [None, *sorted(self._known)] if len(self._known) > 1 else [None]

    def texts(self, contestant: Contestant, load: Load, category: str | None) -> list[Measurement]:
        found = self._all[contestant.name, load.name]
        return [m for m in found if category is None or m.category == category]

    def figures(self, contestant: Contestant, load: Load, category: str | None) -> Figures:
        asked = self.texts(contestant, load, category)
        good = [m for m in asked if m.error is None]
        tokens = sum(m.new_tokens or 0 for m in good)
        pace = self._paces(contestant, load)
        # Beside others a text that failed has held a place in the pass all the same.
        timed = asked if pace else good
        passes = self._passes_of(contestant, load)
        joules = _joules(passes, good) if category is None else None
        over = self._plain_of(contestant)
        its = self.texts(over, load, category) if over is not None else []
        plain = [m for m in its if m.error is None]
        sped = speedup(good, plain, whole)
        rounds = [m.rounds for m in good if m.rounds is not None]
        made, drafted = sum(r.rounds for r in rounds), sum(r.drafted for r in rounds)
        evaluated = sum(r.evaluated for r in rounds)
        accepted = sum(r.accepted for r in rounds)
        in_rounds = sum(m.new_tokens or 0 for m in good if m.rounds is not None)
        return Figures(
            contestant=contestant.name,
            load=load,
            category=category,
            requests=len(asked),
            failed=len(asked) - len(good),
            tokens=tokens,
            seconds=seconds_of(timed, pace),
            tok_s=rate(timed, pace),
            speedup=sped,
            writing_speedup=speedup(good, plain, writing),
            over=over.name if over is not None and sped is not None else None,
            length=tokens / len(good) if good and tokens else None,
            natural=sum(m.finish == "stop" for m in good) / len(good) if good else None,
            ttft=percentiles([m.ttft for m in good if m.ttft is not None]),
            tpot=percentiles([m.tpot for m in good if m.tpot is not None]),
            tokens_per_round=in_rounds / made if made else None,
            acceptance=accepted / evaluated if evaluated else None,
            draft_efficiency=accepted / drafted if drafted else None,
            positions=_positions(good),
            sources=_sources(good),
            time=_shares(good),
            joules_per_token=joules,
            joules_from=next((p.joules_from for p in passes if p.joules_from), None)
            if joules is not None
            else None,
            rss=max((p.rss for p in passes if p.rss is not None), default=None),
            device_bytes=max(
                (p.device_bytes for p in passes if p.device_bytes is not None), default=None
            ),
        )

    def _passes_of(self, contestant: Contestant, load: Load) -> list[Pass]:
        return [
            p for p in self._records.passes
            if p.contestant == contestant.name and p.load.name == load.name
        ]  # fmt: skip

    def _paces(self, contestant: Contestant, load: Load) -> dict[str, float]:
        if load.name == "closed:1":
            return {}  # nobody beside it: a text's time is its own
        every = [
            m for m in self._records.measurements
            if m.contestant.name == contestant.name and m.load.name == load.name
        ]  # fmt: skip
        return paces(every, self._passes_of(contestant, load))

    def _plain_of(self, contestant: Contestant) -> Contestant | None:
        """The plain decoding of the same engine, for one that is not it."""
        if contestant.plain:
            return None
        family = (c for c in self._manifest.contestants if c.family == contestant.family)
        return next((c for c in family if c.plain), None)


def _joules(passes: Sequence[Pass], good: Sequence[Measurement]) -> float | None:
    """Joules a token, over the passes that were counted."""
    counted = {p.pass_id: p.joules for p in passes if p.joules is not None}
    tokens = sum(m.new_tokens or 0 for m in good if m.pass_id in counted)
    used = sum(counted[name] for name in {m.pass_id for m in good if m.pass_id in counted})
    return used / tokens if tokens else None


def _positions(good: Sequence[Measurement]) -> tuple[Position, ...]:
    evaluated: dict[int, int] = defaultdict(int)
    accepted: dict[int, int] = defaultdict(int)
    for m in good:
        if m.rounds is not None:
            for place, count in enumerate(m.rounds.evaluated_by_position, 1):
                evaluated[place] += count
            for place, count in enumerate(m.rounds.accepted_by_position, 1):
                accepted[place] += count
    joint, found = 1.0, []
    for place in sorted(evaluated):
        if not evaluated[place]:
            break
        conditional = accepted[place] / evaluated[place]
        joint *= conditional
        found.append(Position(place, evaluated[place], accepted[place], conditional, joint))
    return tuple(found)


def _sources(good: Sequence[Measurement]) -> tuple[Source, ...]:
    totals: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for m in good:
        for name, counts in m.rounds.sources.items() if m.rounds is not None else ():
            for place, value in enumerate((counts.drafted, counts.evaluated, counts.accepted)):
                totals[name][place] += value
    return tuple(Source(name, *counts) for name, counts in sorted(totals.items()))


def _shares(good: Sequence[Measurement]) -> TimeShares | None:
    told = [m for m in good if m.spent is not None and m.wall]
    whole = sum(m.wall or 0.0 for m in told)
    if not whole:
        return None
    sums = {
        name: sum(getattr(m.spent, name) for m in told) / whole
        for name in ("prefill", "draft", "verify", "host", "waste")
    }
    known = sums["prefill"] + sums["draft"] + sums["verify"] + sums["host"]
    return TimeShares(**sums, other=max(0.0, 1.0 - known))
