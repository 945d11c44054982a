"""`paceline audit`: is speculation exact on this pair? Runs the five parts and prints the evidence.

Knows how to show a report, and nothing of how it is made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from paceline.cli import common
from paceline.cli.common import engine_options, write_json
from paceline.cli.demo import draw
from paceline.cli.prompts import read
from paceline.lab.audit import AuditOptions, AuditReport, EnumerationReport, MutationReport
from paceline.lab.audit import Progress as Report
from paceline.lab.audit import audit as run_audit
from paceline.lab.audit_clients import TrafficOptions
from paceline.lab.audit_identity import Divergence, IdentityOptions, IdentityReport
from paceline.lab.audit_laws import LawOptions, LawReport
from paceline.lab.audit_pair import Pair
from paceline.lab.audit_traffic import TrafficReport

# Tokens of each prompt: a few dozen give the models something to go on and keep a run short.
PROMPT_TOKENS = 48
DIVERGENCES_SHOWN = 10
MOST_POSITIONS = 4096
QUICK = AuditOptions(
    seeds=1,
    laws=LawOptions(settings=LawOptions().settings[:2], samples=200, texts=16),
    identity=IdentityOptions(settings=IdentityOptions().settings[:2], ks=(0, 1, 5, 8), tokens=16),
    traffic=TrafficOptions(requests=60, longest=40),
)


def audit(
    prompts: Annotated[int, typer.Option("--prompts", help="How many.", min=1, max=64)] = 4,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            "-f",
            "--workload",
            "-w",
            help="Your own prompts: a file or folder as paceline bench takes.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Draws the bundled prompts.", min=0)] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer settings, lengths and samples.")
    ] = False,
    json_: common.Json = False,
    target: common.Target = None,
    draft: common.Draft = None,
    device: common.Device = None,
    threads: common.Threads = None,
    max_length: common.MaxLength = None,
) -> None:
    """Test that speculation changes nothing: laws, identity, mutations, many streams at once.

    Every rule, several drafters and K from 0 to 8 on your own pair; prints what was tested, how
    many cases, and p-values. The mini pair takes some twenty minutes on two cores, with --quick
    three to five. Exit status 1 if a part fails.
    """
    options = engine_options(None, target=target, draft=draft, threads=threads)
    place = common.settled(device)
    pair = Pair(options["target"], options.get("draft"), max_length, threads, place)
    asked = [row["prompt"] for row in draw(seed, prompts)] if file is None else read(file)
    console = common.stderr if json_ else common.stdout
    with common.busy(f"opening {pair.target}"), pair.open("none", dtype="float32") as engine:
        encode, chat = engine.tokenizer.encode, engine.tokenizer.chat
        every = [encode(p) if isinstance(p, str) else chat(p) for p in asked[:prompts]]
        ids = [tuple(one[-PROMPT_TOKENS:]) for one in every]
        longest = min(engine.limits.max_length, MOST_POSITIONS)
    if max_length is None:
        # All that fits would leave no room for the engines that are compared.
        pair = dataclasses.replace(pair, max_length=longest)
    del engine
    with _progress() as progress:
        report = run_audit(pair, ids, QUICK if quick else AuditOptions(), progress)
    console.print(f"audit of {pair.target} on {place}", markup=False, soft_wrap=True)
    show(report, console)
    if json_:
        write_json(dataclasses.asdict(report) | {"device": place, "versions": common.versions()})
    if not report.passed:
        raise typer.Exit(1)


@contextmanager
def _progress() -> Iterator[Report]:
    """Show how far the audit is on standard error, on a terminal only."""
    console = common.stderr
    with Progress(
        console=console, auto_refresh=False, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("")

        def step(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total, refresh=True)

        yield step


def show(report: AuditReport, console: Console) -> None:
    """Print the five parts and the verdict."""
    for title, table in (
        enumeration(report.enumeration),
        laws(report.laws),
        identity(report.identity),
        mutations(report.mutations),
        traffic(report.traffic),
    ):
        console.print(title, style="bold", soft_wrap=True)
        console.print(table)
    for results in (report.identity.results, report.traffic.results):
        for result in results:
            _divergences(result.dtype, result.divergences, console)
    for result in report.traffic.results:
        for what in result.wrong[:DIVERGENCES_SHOWN]:
            console.print(f"  traffic, {result.dtype}: {what}", markup=False, soft_wrap=True)
    failed = [
        name
        for name in ("enumeration", "laws", "identity", "mutations", "traffic")
        if not getattr(report, name).passed
    ]
    verdict = f"[bold red]failed: {', '.join(failed)}[/]" if failed else "[green]passed[/]"
    console.print(f"audit {verdict}")


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in _WORDS else "right", overflow="fold")
    return table


_WORDS = ("rule", "drafter", "setting", "test", "broken on purpose", "dtype", "")


def _mark(passed: bool) -> str:
    return "[green]ok[/]" if passed else "[bold red]FAILED[/]"


def enumeration(report: EnumerationReport) -> tuple[str, Table]:
    """Part (a), a row a rule."""
    table = _table(
        "rule", "cases", "cells", "worst total variation", "",
    )  # fmt: skip
    for rule in dict.fromkeys(result.rule for result in report.results):
        rows = [result for result in report.results if result.rule == rule]
        table.add_row(
            rule, str(len(rows)), str(sum(r.cells for r in rows)),
            f"{max(r.total_variation for r in rows):.3g}", _mark(all(r.passed for r in rows)),
        )  # fmt: skip
    title = (
        f"(a) enumeration: the joint law over rounds, exactly; {len(report.results)} cases, "
        f"{report.cells} cells"
    )
    return title, table


def laws(report: LawReport) -> tuple[str, Table]:
    """Part (b), a row a test."""
    table = _table(
        "rule", "drafter", "test", "setting", "samples", "bins", "p", "adj. p", "least TV", "",
    )  # fmt: skip
    for test in report.tests:
        g = test.test
        table.add_row(
            test.rule, test.drafter, test.kind, test.setting, str(g.samples), str(g.bins),
            f"{g.p_value:.3g}", f"{test.adjusted:.3g}", f"{g.least_total_variation:.3f}",
            _mark(test.passed),
        )  # fmt: skip
    title = (
        f"(b) statistics: {len(report.tests)} G-tests against the target's own law; alpha "
        f"{report.alpha:g} for all together (Holm);\nleast TV: a total variation that would have "
        f"been found with a probability of {report.power:.0%}"
    )
    return title, table


def identity(report: IdentityReport) -> tuple[str, Table]:
    """Part (c), a row a dtype."""
    table = _table(
        "dtype", "texts", "tokens", "differ", "rate", "",
    )  # fmt: skip
    for result in report.results:
        told = _mark(result.passed) if result.asserted else "counted"
        table.add_row(
            result.dtype, str(result.texts), str(result.tokens), str(len(result.divergences)),
            f"{result.rate:.2%}", told,
        )  # fmt: skip
    return "(c) identity under match: the same text for every drafter and K", table


def _divergences(dtype: str, found: Sequence[Divergence], console: Console) -> None:
    """Print where texts first differ, and by how much the winner won there."""
    for d in found[:DIVERGENCES_SHOWN]:
        console.print(
            f"  {dtype}: {d.drafter}, K = {d.k}, {d.setting}, prompt {d.prompt}: token "
            f"{d.index} is {d.speculative_token}, plain {d.plain_token}; margin {d.margin:.2g}",
            markup=False, soft_wrap=True,
        )  # fmt: skip
    if len(found) > DIVERGENCES_SHOWN:
        more = len(found) - DIVERGENCES_SHOWN
        console.print(f"  {dtype}: {more} more (all of them with --json)")


def traffic(report: TrafficReport) -> tuple[str, Table]:
    """Part (e), a row a dtype."""
    table = _table(
        "dtype", "finished", "cancelled", "preempted", "prefix hits", "differ", "",
    )  # fmt: skip
    for result in report.results:
        stats = result.stats
        told = _mark(result.passed) if result.asserted or result.wrong else "counted"
        table.add_row(
            result.dtype, str(result.finished), str(result.cancelled), str(stats.preemptions),
            f"{stats.prefix_hits} of {stats.prefix_asked}", str(len(result.divergences)), told,
        )  # fmt: skip
    return "(e) traffic: many at once, cancelled at random, short of memory; each as alone", table


def mutations(report: MutationReport) -> tuple[str, Table]:
    """Part (d), a row a broken rule."""
    table = _table(
        "broken on purpose", "total variation", "",
    )  # fmt: skip
    for result in report.results:
        table.add_row(
            result.name, f"{result.total_variation:.3g}",
            "[green]found[/]" if result.found else "[bold red]NOT FOUND[/]",
        )  # fmt: skip
    return "(d) mutations: rules broken on purpose, which (a) must find", table
