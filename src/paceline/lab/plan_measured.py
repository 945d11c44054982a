"""What a plan rests on: measurements, wherever they come from, and the file that keeps them."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field, replace
from pathlib import Path

from paceline import ConfigError, CostPoint, Costs
from paceline.files import read_text
from paceline.lab.bench_json import Malformed, build, plain
from paceline.lab.plan_acceptance import Acceptance
from paceline.lab.plan_fit import Fitted, Run, Text, fit
from paceline.lab.plan_lengths import mean_length
from paceline.lab.plan_model import Traffic, tokens_per_round

_FORMAT = 1
_ALWAYS = "model"  # the drafter that has a draft for every round


@dataclass(frozen=True, slots=True)
class Drafted:
    """What was measured with one drafter: the table of costs, short runs, runs that were kept apart
    to check the predictions, and bytes on the device by part. adaptive: runs in which the engine
    chose K round by round; their k is the longest. acceptance: counted elsewhere (a server's
    metrics) and used instead of that of the runs."""

    drafter: str
    points: tuple[CostPoint, ...]
    ks: tuple[int, ...]
    runs: tuple[Run, ...]
    draft: str | None = None
    sizes: tuple[int, ...] = ()
    checks: tuple[Run, ...] = ()
    adaptive: tuple[Run, ...] = ()
    memory: dict[str, int] = field(default_factory=dict)
    acceptance: Acceptance | None = None

    @property
    def costs(self) -> Costs:
        """The table."""
        return Costs(self.points, self.ks, self.sizes)

    def fitted(self) -> Fitted:
        """The machine that explains the runs."""
        return fit(self.costs, self.runs)

    def accepted(self) -> Acceptance:
        """How many drafts stand: from elsewhere, or in the runs."""
        return self._seen() if self.acceptance is None else self.acceptance

    def _seen(self) -> Acceptance:
        return Acceptance(
            tuple(t.tested for run in self.runs if run.k for t in run.texts if t.tested.evaluated)
        )

    def pace(self) -> float:
        """Seconds a token of the rounds that an engine ran which chose K itself, for each of the
        best K's: it has to learn costs and acceptance, follows no noise, and looks at what it does
        not use. Both by the model, so that how fast the machine was meanwhile does not count. 1
        where that was not measured."""
        machine, law, shares = self.fitted().machine, self._seen().conditional(), list[float]()
        for run in self.adaptive:
            seconds = {k: machine.round(run.load, k, run.context) for k in self.ks}
            tokens = {k: tokens_per_round(law, k) for k in self.ks}
            rounds = {k: n for k, n in enumerate(run.by_k) if n and k in seconds}
            spent = sum(n * seconds[k] for k, n in rounds.items())
            brought = sum(n * tokens[k] for k, n in rounds.items())
            if brought:
                shares.append(spent / brought / min(seconds[k] / tokens[k] for k in self.ks))
        return statistics.geometric_mean(shares) if shares else 1.0

    @property
    def rows(self) -> int:
        """The most rows that the table was measured for."""
        return max(point.rows for point in self.points)


@dataclass(frozen=True, slots=True)
class Measured:
    """Everything measured of one target. source: in words, for people. engine: the options it was
    opened with, as text; versions: of what computes."""

    source: str
    target: str
    drafters: tuple[Drafted, ...]
    engine: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    format: int = _FORMAT

    def traffic(self) -> Traffic:
        """Mean lengths of the texts (`mean_length`; of prompts, of all that were begun: those of
        the texts that ended might be other ones). Raises ConfigError where nothing was written."""
        texts, (new, _) = self._texts(), mean_length(self._lengths())
        if not new:
            raise ConfigError("nothing was written while it was measured: give more --seconds")
        return Traffic(sum(t.prompt for t in texts) / len(texts), new)

    def longer(self) -> float:
        """The share of the texts that are longer than any that was seen."""
        return mean_length(self._lengths())[1]

    def _texts(self) -> list[Text]:
        return [text for each in self.drafters for run in each.runs for text in run.texts]

    def _lengths(self) -> list[tuple[int, bool]]:
        return [(text.new, text.whole) for text in self._texts()]

    def with_acceptance(self, acceptance: Acceptance, source: str) -> Measured:
        """The same costs under another traffic's acceptance, where one drafter was measured.
        Raises ConfigError where it is not clear whose acceptance it is, and for a drafter that may
        have nothing to propose: such rounds fail at their first token, and no such count has them.
        """
        if len(self.drafters) != 1:
            names = ", ".join(each.drafter for each in self.drafters)
            raise ConfigError(f"metrics are of one drafter, and costs were measured for {names}: "
                              "give that one with --drafter")  # fmt: skip
        name = self.drafters[0].drafter
        if all(part.strip().partition(":")[0] != _ALWAYS for part in name.split("+")):
            raise ConfigError(f"a server's metrics do not count the rounds in which {name} had no "
                              "draft, so its acceptance in them is too high: leave --metrics out, "
                              "and give prompts of that traffic with --file, or a run of paceline "
                              "bench with --bench")  # fmt: skip
        one = replace(self.drafters[0], acceptance=acceptance)
        return replace(self, drafters=(one,), source=f"{self.source}; acceptance of {source}")


def save(measured: Measured, file: Path) -> None:
    """Write it as JSON. Raises ConfigError where that is not possible."""
    try:
        file.write_text(json.dumps(plain(measured) | {"format": _FORMAT}, indent=1) + "\n", "utf-8")
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written ({error.strerror})") from error


def load(file: Path) -> Measured:
    """Read it again. Raises ConfigError."""
    try:
        value = json.loads(read_text(file))
    except ValueError as error:
        raise ConfigError(f"{file}: not JSON ({error}); give a file that --save wrote") from error
    try:
        found = build(Measured, value)
        if found.format != _FORMAT:
            raise Malformed(f"format {found.format}, and this version reads {_FORMAT}")
        if not found.drafters:
            raise Malformed("no drafter was measured")
        for each in found.drafters:
            each.costs  # noqa: B018  raises ValueError where it is no table
    except (Malformed, ValueError) as error:
        raise ConfigError(f"{file}: {error}; give a file that --save wrote") from error
    return found
