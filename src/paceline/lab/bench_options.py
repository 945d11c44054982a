"""What a bench run is asked to do: everything that a command line says, checked."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from paceline import ConfigError, __version__
from paceline.lab.bench_machine import machine
from paceline.lab.bench_manifest import Manifest
from paceline.lab.bench_record import Contestant, Load, Sampling
from paceline.lab.bench_schedule import can_replay
from paceline.lab.workloads import Workload


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What to measure.

    out: the run's folder. sampling: for texts whose item wishes nothing else; given: names of its
    fields that also win over an item's wish. warmup: texts before a contestant's first pass under a
    load. timeout: seconds that a text may take. chat: whether messages are sent as such (template),
    or written out (plain); auto: as such where every contestant can. one_at_a_time: open a
    contestant only when the one before it is closed. texts: keep them, not only their hashes.
    """

    out: Path
    workload: Workload
    contestants: tuple[Contestant, ...]
    loads: tuple[Load, ...] = (Load(concurrency=1),)
    sampling: Sampling = field(default_factory=Sampling)
    given: frozenset[str] = frozenset()
    repeats: int = 1
    seed: int = 0
    warmup: int = 2
    timeout: float = 300.0
    chat: Literal["auto", "template", "plain"] = "auto"
    one_at_a_time: bool = False
    texts: bool = True

    def __post_init__(self) -> None:
        if any(load.kind == "replay" for load in self.loads) and not can_replay(self.workload):
            raise ConfigError(
                "--load replay needs the time of every request: a log of requests whose lines have "
                "a time beside the body"
            )
        names = [load.name for load in self.loads]
        if len(set(names)) < len(names):
            raise ConfigError(f"a load is there twice: {', '.join(names)}")

    @property
    def once(self) -> bool:
        """Whether no prompt is asked of one contestant twice."""
        return self.repeats == 1 and len(self.loads) == 1

    @property
    def most_at_once(self) -> int:
        """Texts that an engine is given room for."""
        return max(load.concurrency or 32 for load in self.loads)

    def manifest(self) -> Manifest:
        """What has to be the same for a run to be resumed."""
        sampling, work = self.sampling, self.workload
        settings = {
            "temperature": f"{sampling.temperature:g}",
            "top_p": f"{sampling.top_p:g}",
            "top_k": str(sampling.top_k),
            "min_p": f"{sampling.min_p:g}",
            "sampling seed": str(sampling.seed),
            "max_tokens": str(sampling.max_tokens),
            "stop": repr(list(sampling.stop)) if sampling.stop else "the items' own",
            "ignore_eos": str(sampling.ignore_eos).lower(),
            "seed": str(self.seed),
            "warm-up texts": str(self.warmup),
            "time-out": f"{self.timeout:g} s",
            "chat": self.chat,
            "contestants open": "one at a time" if self.one_at_a_time else "together",
        }
        if self.given:
            settings["over the items' own wishes"] = ", ".join(sorted(self.given))
        workload = {
            "workload": work.name,
            "format": work.format,
            "conversations": str(len(work.items)),
            "texts": str(work.texts),
            "fingerprint": work.fingerprint,
        }
        versions = {"paceline": __version__}
        for name in ("torch", "transformers", "openai"):
            with suppress(PackageNotFoundError):  # openai is needed for addresses alone
                versions[name] = version(name)
        return Manifest(
            settings=settings,
            workload=workload,
            versions=versions,
            machine=machine(),
            contestants=self.contestants,
            loads=self.loads,
            repeats=self.repeats,
            texts=work.texts,
            skipped=work.skipped,
        )
