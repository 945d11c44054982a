"""A bench run made up of plain numbers, for tests of what is computed and shown."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

from paceline.lab.bench_manifest import Manifest, write_manifest
from paceline.lab.bench_record import (
    Contestant,
    Load,
    Measurement,
    Opening,
    Pass,
    Recorder,
    RoundCounts,
    Sampling,
    SourceCounts,
    TimeSpent,
)

ALONE = Load(concurrency=1)


def contestant(name: str, **more: object) -> Contestant:
    """One of the family `p`, plain where its name says so."""
    plain = name.endswith("plain")
    fields: dict[str, object] = {
        "engine": "paceline", "family": "p", "plain": plain, "model": "target",
        "drafter": "none" if plain else "model", "k": 0 if plain else 4, "rule": "match",
    }  # fmt: skip
    return Contestant(name, **(fields | more))  # type: ignore[arg-type]


def measurement(
    who: Contestant,
    item: str = "a",
    *,
    tokens: int = 11,
    seconds: float = 1.0,
    first: float = 0.2,
    text: str = "text",
    **more: object,
) -> Measurement:
    """A text of `tokens` in `seconds`, the first of them after `first`."""
    writing = seconds - first
    times = tuple(first + writing * n / (tokens - 1) for n in range(tokens))
    fields: dict[str, object] = {
        "category": "", "turn": 0, "load": ALONE, "repeat": 0, "pass_id": f"{who.name} {item}",
        "sampling": Sampling(), "prompt_tokens": 5, "new_tokens": tokens, "ttft": first,
        "wall": seconds, "event_times": times, "event_tokens": (1,) * tokens, "text": text,
        "text_hash": hashlib.sha256(text.encode()).hexdigest()[:16],
        "token_ids": tuple(text.encode()), "finish": "stop",
    }  # fmt: skip
    return Measurement(who, item, **(fields | more))  # type: ignore[arg-type]


def write_run(
    folder: Path,
    contestants: Sequence[Contestant],
    measurements: Sequence[Measurement],
    *,
    passes: Sequence[Pass] = (),
    openings: Sequence[Opening] = (),
    loads: Sequence[Load] = (ALONE,),
    texts: int = 1,
    skipped: Sequence[str] = (),
) -> Path:
    """A run's folder as `bench` leaves it."""
    folder.mkdir(exist_ok=True)
    manifest = Manifest(
        settings={"seed": "0"}, workload={"workload": "made up", "texts": str(texts)},
        versions={"paceline": "0"}, machine={"processor": "abacus", "cores": "2"},
        contestants=tuple(contestants), loads=tuple(loads), repeats=1, texts=texts,
        skipped=tuple(skipped), chats=False,
    )  # fmt: skip
    write_manifest(folder, manifest)
    recorder = Recorder(folder)
    for record in (*openings, *measurements, *passes):
        recorder.write(record)
    recorder.close()
    return folder


def write_large_run(folder: Path, seed: int = 0) -> Path:
    """A run with everything in it: three engines, two loads, categories, partings, a failure."""
    draw = random.Random(seed)
    who = [
        contestant("paceline:plain"),
        contestant("paceline"),
        contestant("paceline:drafter=ngram", drafter="ngram"),
        contestant("paceline:adaptive", adaptive=True),
        contestant("transformers:plain", engine="transformers", family="t", rule=None),
        contestant("transformers:assisted", engine="transformers", family="t", rule=None),
        contestant("url:http://127.0.0.1:8000/v1", engine="url", family="u", rule=None, k=None,
                   drafter=None),
    ]  # fmt: skip
    gain = dict(zip([c.name for c in who], (1, 2.4, 1.4, 2.5, 1, 1.2, 2.2), strict=True))
    loads, measurements, passes = (ALONE, Load(concurrency=4)), [], []
    items = [(f"q{n}", ("writing", "coding", "math")[n % 3]) for n in range(12)]
    for load in loads:
        for c in who:
            crowd = load.concurrency or 1
            for item, category in items:
                tokens = draw.randint(40, 90)
                base = 3.0 if c.engine == "transformers" else 1.0
                seconds = (0.08 + tokens * 0.004 * base / gain[c.name]) * draw.uniform(0.9, 1.1)
                drafted, rounds = (tokens * 2, tokens // 2) if gain[c.name] > 1 else (0, tokens)
                by = [rounds, rounds * 3 // 4, rounds // 2, rounds // 4]
                counts = RoundCounts(
                    rounds, drafted, sum(by), sum(by[1:]) + by[3] // 2, tuple(by),
                    (*by[1:], by[3] // 2),
                    {str(c.drafter): SourceCounts(drafted, sum(by), sum(by[1:]))},
                ) if drafted else RoundCounts(rounds, 0, 0, 0)  # fmt: skip
                told = c.engine == "paceline"
                text = f"text of {item}" + ("!" if c.engine == "transformers" and category == "math"
                                            else "")  # fmt: skip
                made = measurement(
                    c, item, tokens=tokens, seconds=seconds * crowd, first=0.07 * crowd, text=text,
                    category=category, load=load, rounds=counts if told else None,
                    pass_id=f"{c.name} {load.name} {item if crowd == 1 else ''}",
                    spent=TimeSpent(0.06, 0.25 * seconds if drafted else 0, 0.4 * seconds,
                                    0.2 * seconds if drafted else 0, 0.1 * seconds)
                    if told else None,
                )  # fmt: skip
                measurements.append(made)
                if crowd == 1:
                    passes.append(Pass(c.name, load, 0, made.pass_id, 1, seconds,
                                       rss=600 << 20 if told else None))  # fmt: skip
    openings = [Opening(c, 4.0, {"torch": "2.13.0"}, {"threads": "2"}) for c in who]
    bad = measurement(who[-1], "q12", category="writing")
    failed = Measurement(
        bad.contestant,
        "q12",
        "writing",
        0,
        ALONE,
        0,
        "x",
        Sampling(),
        error="InternalServerError: 500",
    )
    return write_run(
        folder, who, [*measurements, failed], passes=passes, openings=openings, loads=loads,
        texts=13, skipped=["prompts.jsonl, line 7: not JSON"],
    )  # fmt: skip


if __name__ == "__main__":
    import sys

    write_large_run(Path(sys.argv[1]))
