"""What a bench run writes down: one JSON line for each measurement, and the lines beside it.

`records.jsonl` holds lines of three kinds: a contestant that was opened (or could not be), a
measurement (one text asked for), a pass (texts that were asked for together, with what only the
whole of them has: its length, memory, energy). Lines are appended and never changed. Reading loses
nothing to a bad line: it is reported with its number, and all others stand. Imports nothing of the
package but the reading of dataclasses, so that whatever reads a run needs no model.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

from paceline.lab.bench_json import Malformed, build, plain

SCHEMA = 1  # of a line; a reader takes no other
RECORDS = "records.jsonl"
MANIFEST = "run.json"
SUMMARY = "summary.json"

EngineName = Literal["paceline", "transformers", "url"]
LoadKind = Literal["closed", "poisson", "replay"]


@dataclass(frozen=True, slots=True)
class Contestant:
    """Who wrote a text, by every setting that could matter.

    name: unique in a run, as the user wrote it. family: contestants with the same one are the same
    engine and target, and one of them, where there is one, is `plain`: the one that speed-ups are
    taken over. k: the most draft tokens a round, None where it is not known. drafter: None where it
    is not known, "none" where nothing is drafted. options: all other settings, as text.
    """

    name: str
    engine: EngineName
    family: str
    plain: bool = False
    model: str = ""
    drafter: str | None = None
    draft: str | None = None
    k: int | None = None
    rule: str | None = None
    adaptive: bool | None = None
    options: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Load:
    """How requests come. closed: `concurrency` at any time, the next when one ends; poisson: `rate`
    a second on average, whether or not others have ended; replay: at the recorded times, `speed`
    times as fast."""

    kind: LoadKind = "closed"
    concurrency: int | None = None
    rate: float | None = None
    speed: float | None = None

    @property
    def name(self) -> str:
        """As the command line writes it."""
        value = {"closed": self.concurrency, "poisson": self.rate, "replay": self.speed}[self.kind]
        return f"{self.kind}:{value:g}" if value is not None else self.kind


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a text was drawn and where it had to end. stop: texts that end it and are not shown."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class SourceCounts:
    """Draft tokens of one drafter: proposed, tested by the rule, accepted."""

    drafted: int = 0
    evaluated: int = 0
    accepted: int = 0


@dataclass(frozen=True, slots=True)
class RoundCounts:
    """What the rounds of one text did, for an engine that says so.

    evaluated: drafted tokens whose predecessors were all accepted, so that the rule tested them; by
    position from the first draft token on. sources: by drafter.
    """

    rounds: int
    drafted: int
    evaluated: int
    accepted: int
    evaluated_by_position: tuple[int, ...] = ()
    accepted_by_position: tuple[int, ...] = ()
    sources: dict[str, SourceCounts] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TimeSpent:
    """Seconds of one text, for an engine that says so.

    prefill: reading the prompt. verify, draft: in rounds that it was part of, whole rounds also
    where others shared them. host: of its time in rounds, what is neither. waste: the part of
    verify and draft that went into draft tokens which were then rejected, round by round: of draft
    their share of what was drafted, of verify that of the positions that the window had.
    """

    prefill: float
    draft: float
    verify: float
    waste: float
    host: float


@dataclass(frozen=True, slots=True)
class Measurement:
    """One text that was asked for.

    item, category, turn: of the workload (turn 0 is the first). load, repeat, pass_id: the pass it
    was part of. due: when it should have been sent, at: when it was, in seconds from the pass's
    beginning. prompt_tokens, new_tokens: None where the engine does not say. ttft: from sending to
    the first piece of text; wall: to the end. event_times: of each piece, seconds from sending;
    event_tokens: tokens in each, or empty where they are not known (a chunk of an endpoint's stream
    may hold several). text: None where texts are not kept; text_hash: the first 16 hexadecimal
    digits of its SHA-256. error: what went wrong, in a line; what had come until then stands.
    """

    contestant: Contestant
    item: str
    category: str
    turn: int
    load: Load
    repeat: int
    pass_id: str
    sampling: Sampling
    due: float = 0.0
    at: float = 0.0
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    ttft: float | None = None
    wall: float | None = None
    event_times: tuple[float, ...] = ()
    event_tokens: tuple[int, ...] = ()
    rounds: RoundCounts | None = None
    spent: TimeSpent | None = None
    text_hash: str | None = None
    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    finish: str | None = None
    error: str | None = None

    @property
    def later_tokens(self) -> int | None:
        """Tokens after those of the first piece, which time to the first piece has paid for: a
        speculating engine's first round brings several. Where a piece's tokens are not known the
        first is taken for one. None where nothing came after it."""
        if len(self.event_times) < 2 or self.new_tokens is None:
            return None
        later = self.new_tokens - (self.event_tokens[0] if self.event_tokens else 1)
        return later if later > 0 else None

    @property
    def tpot(self) -> float | None:
        """Seconds from the first piece of text to the last, by the tokens after the first piece."""
        later = self.later_tokens
        return None if later is None else (self.event_times[-1] - self.event_times[0]) / later


@dataclass(frozen=True, slots=True)
class Pass:
    """Texts that were asked of one contestant under one load: one conversation with nobody beside
    it where the load is closed:1, else the whole workload (or what an interrupted run left of it).

    seconds: from its beginning to the last answer. joules: of the device over that time, None where
    it does not tell; joules_from says who told. rss, device_bytes: the most that the contestant's
    process has held so far, of memory and of the accelerator's; None where it runs elsewhere.
    """

    contestant: str
    load: Load
    repeat: int
    pass_id: str
    requests: int
    seconds: float
    joules: float | None = None
    joules_from: str | None = None
    rss: int | None = None
    device_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Opening:
    """A contestant was made ready, or could not be (error). versions: of what computes; facts: what
    it says of itself once open (threads, device, attention …)."""

    contestant: Contestant
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """What could not be read or measured. where: a line's or contestant's name."""

    where: str
    what: str


@dataclass(slots=True)
class Records:
    """All lines of a run's record, in their order, and what was wrong with others."""

    measurements: list[Measurement] = field(default_factory=list)
    passes: list[Pass] = field(default_factory=list)
    openings: list[Opening] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


_KINDS: dict[str, type[Measurement] | type[Pass] | type[Opening]] = {
    "measurement": Measurement,
    "pass": Pass,
    "contestant": Opening,
}
_NAMES = {cls: name for name, cls in _KINDS.items()}


def to_line(record: Measurement | Pass | Opening) -> str:
    """One line of JSON, without its end."""
    head = {"schema": SCHEMA, "kind": _NAMES[type(record)]}
    return json.dumps(head | plain(record), ensure_ascii=False, separators=(",", ":"))


def from_line(line: str) -> Measurement | Pass | Opening:
    """Read a line. Raises Malformed, saying what is wrong."""
    try:
        value = json.loads(line)
    except ValueError as error:
        raise Malformed(f"not JSON ({error})") from None
    if not isinstance(value, dict):
        raise Malformed("not an object")
    if value.get("schema") != SCHEMA:
        raise Malformed(f"schema {value.get('schema')!r}, and this version reads {SCHEMA}")
    kind = _KINDS.get(str(value.get("kind")))
    if kind is None:
        raise Malformed(f"unknown kind {value.get('kind')!r}; known: {', '.join(_KINDS)}")
    return build(kind, value)


def read_lines(lines: Iterable[str], where: str = RECORDS) -> Records:
    """Read lines; a bad one becomes a problem that names its number."""
    records = Records()
    places: Mapping[type, list[Any]] = {
        Measurement: records.measurements,
        Pass: records.passes,
        Opening: records.openings,
    }
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = from_line(line)
        except Malformed as error:
            records.problems.append(Problem(f"{where}, line {number}", str(error)))
        else:
            places[type(record)].append(record)
    return records


def read_records(folder: Path) -> Records:
    """Read a run's record; empty where there is none yet."""
    file = folder / RECORDS
    if not file.exists():
        return Records()
    # By "\n" alone: `splitlines` would also cut at separators that JSON allows inside a text.
    return read_lines(file.read_text(encoding="utf-8", errors="replace").split("\n"))


class Recorder:
    """Appends lines to a run's record, each on the disk before the next is begun."""

    def __init__(self, folder: Path) -> None:
        """folder: exists. A last line that was cut off is ended first, so that it spoils none.

        Raises BlockingIOError where another process writes there.
        """
        file = folder / RECORDS
        self._file: TextIO = file.open("a", encoding="utf-8")
        with contextlib.suppress(ImportError):  # not on Windows
            import fcntl

            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._file.close()
                raise
        torn = file.stat().st_size > 0 and file.read_bytes()[-1:] != b"\n"
        if torn:
            self._file.write("\n")

    def write(self, record: Measurement | Pass | Opening) -> None:
        """Append one line."""
        self._file.write(to_line(record) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Safe to call twice."""
        self._file.close()
