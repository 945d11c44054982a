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

from paceline import CheckpointError, create_drafter
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
from paceline.lab.workload_lines import Message

# Tokens of each prompt: a few dozen give the models something to go on and keep a run short.
PROMPT_TOKENS = 48
DIVERGENCES_SHOWN = 10
MOST_POSITIONS = 4096
PARTS = ("enumeration", "laws", "identity", "mutations", "traffic")
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
    drafter: Annotated[
        list[str] | None,
        typer.Option(
            "--drafter",
            "-d",
            help="A drafter to audit beside the others, once for each; "
            "a name, or package.module.Class.",
            rich_help_panel="Models",
        ),
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(
            "--dtype",
            help="bfloat16, float32 or float64, once for each; the first is "
            "that of the statistics.",
            rich_help_panel="Models",
            show_default="all that fit on the device",
        ),
    ] = None,
    device: common.Device = None,
    threads: common.Threads = None,
    max_length: common.MaxLength = None,
) -> None:
    """Test that speculation changes nothing: laws, identity, mutations, many streams at once.

    Every rule, several drafters and K from 0 to 8 on your own pair; prints what was tested, how
    many cases, and p-values. A dtype that does not fit on the device is left out, which is said.
    The mini pair takes some twenty minutes on two cores, with --quick three to five. Exit status 1
    if a part fails or could not be done.
    """
    options = engine_options(None, target=target, draft=draft, threads=threads)
    for name in drafter or ():  # what is wrong with it is told now, and not after half of the audit
        create_drafter(name, path=options.get("draft") or "", dtype="float32")
    place = common.settled(device)
    pair = Pair(options["target"], options.get("draft"), max_length, threads, place)
    given = [row["prompt"] for row in draw(seed, prompts)] if file is None else read(file)
    console = common.stderr if json_ else common.stdout
    asked = (QUICK if quick else AuditOptions()).asking(dtype or (), drafter or ())
    with common.busy(f"opening {pair.target}"):
        ids, longest = _look(pair, given[:prompts], dtype or ("float32", "bfloat16"))
    if max_length is None:
        # All that fits would leave no room for the engines that are compared.
        pair = dataclasses.replace(pair, max_length=longest)
    with _progress() as progress:
        report = run_audit(pair, ids, asked, progress)
    console.print(f"audit of {pair.target} on {place}", markup=False, soft_wrap=True)
    show(report, console)
    if json_:
        write_json(dataclasses.asdict(report) | {"device": place, "versions": common.versions()})
    if not report.passed:
        raise typer.Exit(1)


def _look(
    pair: Pair, prompts: Sequence[str | list[Message]], dtypes: Sequence[str]
) -> tuple[list[tuple[int, ...]], int]:
    """The prompts' last tokens, and how long texts may be in the first dtype that fits. Raises
    CheckpointError where none does."""
    for dtype in dtypes:
        try:
            with pair.open("none", dtype=dtype) as engine:
                encode, chat = engine.tokenizer.encode, engine.tokenizer.chat
                every = [encode(p) if isinstance(p, str) else chat(p) for p in prompts]
                ids = [tuple(one[-PROMPT_TOKENS:]) for one in every]
                return ids, min(engine.limits.max_length, MOST_POSITIONS)
        except CheckpointError:
            if dtype == dtypes[-1]:
                raise
    raise AssertionError


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
    for made in (
        enumeration(report.enumeration),
        laws(report.laws) if report.laws else None,
        identity(report.identity) if report.identity else None,
        mutations(report.mutations),
        traffic(report.traffic) if report.traffic else None,
    ):
        if made is not None:
            console.print(made[0], style="bold", soft_wrap=True)
            console.print(made[1])
    for part in (report.identity, report.traffic):
        for result in part.results if part else ():
            _divergences(result.dtype, result.divergences, console)
    for busy in report.traffic.results if report.traffic else ():
        for what in busy.wrong[:DIVERGENCES_SHOWN]:
            console.print(f"  traffic, {busy.dtype}: {what}", markup=False, soft_wrap=True)
    for what in report.left_out:
        console.print(f"left out, as it does not fit: {what}", markup=False, soft_wrap=True)
    for name, why in report.incomplete.items():
        console.print(f"{name} could not be done: {why}", markup=False, soft_wrap=True)
    console.print(f"audit {_verdict(report)}")


def _verdict(report: AuditReport) -> str:
    """Passed, or the parts that failed and those that could not be done."""
    parts = {name: getattr(report, name) for name in PARTS}
    failed = [name for name, part in parts.items() if part is not None and not part.passed]
    told = [f"failed: {', '.join(failed)}"] if failed else []
    told += [f"incomplete: {', '.join(report.incomplete)}"] if report.incomplete else []
    return f"[bold red]{'; '.join(told)}[/]" if told else "[green]passed[/]"


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
