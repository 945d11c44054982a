"""Measurements for a plan out of a bench run's records: paceline's contestants in closed loops.

A pass is a stretch; the seconds of its rounds, which every text counts, stand for the table of
costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from paceline import ConfigError, CostPoint, EngineConfig
from paceline.lab.bench_record import (
    RECORDS,
    Contestant,
    Measurement,
    Pass,
    Records,
    read_lines,
    read_records,
)
from paceline.lab.bench_schedule import key
from paceline.lab.plan_acceptance import Counts, counted
from paceline.lab.plan_fit import Run, Text
from paceline.lab.plan_measured import Drafted, Measured


def read(path: Path) -> tuple[Measured, list[str]]:
    """What a run's folder, or its records file, holds, and what of it cannot be used, in words.
    Raises ConfigError."""
    if path.is_dir():
        records, where = read_records(path), path / RECORDS
    elif path.is_file():
        text = path.read_text(encoding="utf-8", errors="replace")
        records, where = read_lines(text.split("\n"), path.name), path
    else:
        raise ConfigError(
            f"{path}: there is no such run; give the folder that paceline bench wrote"
        )
    problems = [f"{each.where}: {each.what}" for each in records.problems]
    measured, left_out = gather(records, str(where))
    return measured, problems + left_out


def gather(records: Records, source: str) -> tuple[Measured, list[str]]:
    """Raises ConfigError where there is no plain decoding, or nothing that drafts."""
    left_out: list[str] = []
    runs: list[tuple[Contestant, Run, list[CostPoint]]] = []
    passes = {each.pass_id: each for each in records.passes}
    for contestant in _contestants(records):
        own = [m for m in records.measurements if m.contestant.name == contestant.name]
        reason = _unfit(contestant, own)
        if reason is not None:
            left_out.append(f"{contestant.name}: left out, {reason}")
            continue
        for load in sorted({m.load.concurrency or 0 for m in own if m.load.kind == "closed"}):
            some = [m for m in own if m.load.kind == "closed" and m.load.concurrency == load]
            left_out += _cut_off(f"{contestant.name}, {load} at a time", some, passes)
            found = _run(contestant, load, some, passes)
            if found is not None:
                runs.append((contestant, *found))
    models = sorted({contestant.model for contestant, _, _ in runs})
    if len(models) > 1:
        raise ConfigError(
            f"{source}: several targets ({', '.join(models)}), and a plan is of one: bench them in "
            "runs of their own"
        )
    plain = [(run, points) for contestant, run, points in runs if not run.k]
    if not plain:
        raise ConfigError(
            f"{source}: no plain decoding by paceline in a closed loop; bench a contestant without "
            "a drafter too, and at a load closed:N"
        )
    drafters = sorted({c.drafter or "" for c, run, _ in runs if run.k})
    if not drafters:
        raise ConfigError(f"{source}: no contestant with a fixed K of 1 or more")
    found_drafters = []
    for name in drafters:
        some_runs = [(c, run, points) for c, run, points in runs if run.k and c.drafter == name]
        every = [points for _, _, points in some_runs] + [points for _, points in plain]
        found_drafters.append(
            Drafted(
                drafter=name,
                draft=some_runs[0][0].draft,
                points=_merged([point for points in every for point in points]),
                ks=tuple(sorted({0, *(run.k for _, run, _ in some_runs)})),
                runs=(*(run for run, _ in plain), *(run for _, run, _ in some_runs)),
            )
        )
    versions = next((o.versions for o in records.openings if o.versions), {})
    measured = Measured(
        source=f"bench run {source}",
        target=runs[0][0].model,
        drafters=tuple(found_drafters),
        engine=_engine(runs[0][0]),
        versions=versions,
    )
    return measured, left_out


def _engine(contestant: Contestant) -> dict[str, str]:
    """What its engine was opened with, as text."""
    names = {field.name for field in fields(EngineConfig)}
    told = {name: text for name, text in contestant.options.items() if name in names}
    return told | ({"rule": contestant.rule} if contestant.rule is not None else {})


def _contestants(records: Records) -> list[Contestant]:
    return list({m.contestant.name: m.contestant for m in records.measurements}.values())


def _unfit(contestant: Contestant, own: Sequence[Measurement]) -> str | None:
    """Why nothing can be planned from it, or None."""
    if contestant.engine != "paceline":
        return f"it is {contestant.engine}, and rounds are counted by paceline alone"
    if contestant.adaptive and (contestant.k or 0) > 0:
        return "it chooses K round by round, and a plan needs runs of one K"
    if not any(m.rounds is not None and m.spent is not None for m in own):
        return "its texts have no counts of rounds"
    if not any(m.load.kind == "closed" for m in own):
        return "it ran in no closed loop"
    return None


def _cut_off(where: str, some: Sequence[Measurement], passes: dict[str, Pass]) -> list[str]:
    """A line about the texts of passes that have not ended, if there are any."""
    cut = sum(m.error is None and m.pass_id not in passes for m in some)
    if not cut:
        return []
    return [f"{where}: {cut} texts left out, their pass was cut off, and nobody wrote down how "
            "long it took"]  # fmt: skip


def _run(
    contestant: Contestant, load: int, some: Sequence[Measurement], passes: dict[str, Pass]
) -> tuple[Run, list[CostPoint]] | None:
    """One contestant at one load, and the seconds of its rounds. Of passes that ended: of one that
    was cut off nobody knows how long it took. What a resumed run asked for once more took its time
    each time, and is one text."""
    good = [m for m in some if m.error is None and m.rounds is not None and m.spent is not None
            and m.new_tokens and m.rounds.rounds and m.pass_id in passes]  # fmt: skip
    spent = sum(passes[pid].seconds for pid in {m.pass_id for m in good})
    if not good or not spent:
        return None
    k = 0 if contestant.plain or contestant.drafter in (None, "none") else contestant.k or 0
    texts = tuple(_text(m, k > 0) for m in {key(m): m for m in good}.values())
    rounds = sum(m.rounds.rounds for m in good if m.rounds is not None)
    new = sum(m.new_tokens or 0 for m in good)
    prompt = sum(m.prompt_tokens or 0 for m in good) / len(good)
    context = prompt + new / len(good) / 2
    run = Run(contestant.drafter or "none", load, k, spent, new, len(good), new / rounds, prompt,
              context, texts)  # fmt: skip
    verify = sum(m.spent.verify for m in good if m.spent is not None) / rounds
    draft = sum(m.spent.draft for m in good if m.spent is not None) / rounds
    points = [CostPoint("verify", load, k, round(context), verify)]
    if k:
        points.append(CostPoint("draft", load, k, round(context), draft))
    return run, points


def _text(m: Measurement, drafts: bool) -> Text:
    assert m.rounds is not None
    counts, none = m.rounds, Counts((), ())
    by_place = counts.evaluated_by_position, counts.accepted_by_position
    found = counted(counts.rounds, *by_place) if drafts else none
    return Text(m.prompt_tokens or 0, m.new_tokens or 0, counts.rounds, found, m.ttft, m.tpot)


def _merged(points: Sequence[CostPoint]) -> tuple[CostPoint, ...]:
    """One point for each cell: at one context, the mean of those measured, since a cell of one
    measured context has no slope to be told from noise."""
    cells: dict[tuple[str, int, int], list[CostPoint]] = {}
    for point in points:
        cells.setdefault((point.kind, point.rows, point.k), []).append(point)
    return tuple(
        CostPoint(
            some[0].kind,
            some[0].rows,
            some[0].k,
            round(sum(p.context for p in some) / len(some)),
            sum(p.seconds for p in some) / len(some),
        )
        for some in cells.values()
    )
