"""`paceline bench`: measure contestants on a workload. `lab.bench` does it, this shows it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from paceline import ConfigError, sampling_params
from paceline.cli import common
from paceline.cli.bench_tables import show
from paceline.cli.common import stderr, write_json
from paceline.lab import workloads
from paceline.lab.bench import Progress as Report
from paceline.lab.bench import run as run_bench
from paceline.lab.bench_json import plain
from paceline.lab.bench_options import BenchOptions
from paceline.lab.bench_record import Sampling
from paceline.lab.bench_result import read_summary
from paceline.lab.bench_spec import parse_contestants, parse_load

WORK, RUN, DRAW = "Workload", "Run", "Sampling"
DEFAULT = ["paceline:plain", "paceline", "paceline:drafter=ngram", "paceline:adaptive"]
_LINE_SECONDS = 15.0  # between two lines of progress, where there is no terminal


def _option(panel: str, *names: str, text: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


def bench(
    contestants: Annotated[
        list[str] | None,
        typer.Argument(
            help="paceline[:plain|adaptive|k=4|drafter=ngram|…], transformers[:assisted|lookup], "
            "url:http://host:port/v1[,model=…,key-env=NAME,plain].",
            show_default=" ".join(DEFAULT),
        ),
    ] = None,
    out: Annotated[
        Path, _option(RUN, "--out", "-o", text="Folder of the run; what is there is resumed.")
    ] = Path("bench"),
    workload: Annotated[
        str, _option(WORK, "--workload", "-w", text="A file, a folder of prompts, or mini.")
    ] = workloads.BUILT_IN,
    format: Annotated[
        str, _option(WORK, "--format", text="auto, " + ", ".join(workloads.FORMATS) + ".")
    ] = "auto",
    prompts: Annotated[
        int | None,
        _option(WORK, "--prompts", text="Draw so many, evenly from all categories.", min=1,
                show_default="all"),
    ] = None,
    strict: Annotated[
        bool, _option(WORK, "--strict", text="Refuse a workload with a bad line.")
    ] = False,
    chat: Annotated[
        str, _option(WORK, "--chat", text="Messages: auto, template, or plain text.")
    ] = "auto",
    load: Annotated[
        list[str] | None,
        _option(RUN, "--load", text="closed:N, poisson:R or replay:F; repeatable.",
                show_default="closed:1"),
    ] = None,
    repeats: Annotated[int, _option(RUN, "--repeats", text="Of everything.", min=1)] = 1,
    warmup: Annotated[
        int, _option(RUN, "--warmup", text="Texts before the first that counts.", min=0)
    ] = 2,
    timeout: Annotated[
        float, _option(RUN, "--timeout", text="Seconds a text may take.", min=0.1)
    ] = 300.0,
    seed: Annotated[
        int, _option(RUN, "--seed", text="Draws prompts, order, arrivals and texts.", min=0)
    ] = 0,
    one_at_a_time: Annotated[
        bool,
        _option(RUN, "--one-at-a-time", text="Open a contestant when the one before is closed, for "
                "memory that does not hold all of them; they are then not interleaved."),
    ] = False,
    texts: Annotated[
        bool, _option(RUN, "--texts/--no-texts", text="Keep the texts, or their hashes alone.")
    ] = True,
    temperature: Annotated[
        float | None, _option(DRAW, "--temperature", text="0 is greedy.", show_default="0")
    ] = None,
    top_p: Annotated[float | None, _option(DRAW, "--top-p", text="1 is off.")] = None,
    top_k: Annotated[int | None, _option(DRAW, "--top-k", text="0 is off.")] = None,
    min_p: Annotated[float | None, _option(DRAW, "--min-p", text="0 is off.")] = None,
    max_tokens: Annotated[
        int | None, _option(DRAW, "--max-tokens", text="Of a text, at most.", show_default="256")
    ] = None,
    stop: Annotated[
        list[str] | None, _option(DRAW, "--stop", text="Text that ends a text; repeatable.")
    ] = None,
    ignore_eos: Annotated[
        bool | None,
        _option(DRAW, "--ignore-eos", text="Write on to the limit. Loops flatter drafters."),
    ] = None,
    json_: common.Json = False,
    target: common.Target = None,
    draft: common.Draft = None,
    dtype: common.Dtype = None,
    device: common.Device = None,
    threads: common.Threads = None,
    max_length: common.MaxLength = None,
) -> None:  # fmt: skip
    """Measure engines and settings on your prompts, side by side.

    Every contestant gets the same prompts and the same sampling, in turns drawn from --seed. Each
    measurement is kept as it comes: a run that was ended goes on when it is started again. Exit
    status 1 where something could not be measured. `paceline report OUT` makes a page of it.
    """
    shared = {"target": target or common.MINI_TARGET, "draft": draft, "dtype": dtype,
              "device": device, "threads": threads, "max_length": max_length}  # fmt: skip
    if draft is None and shared["target"] == common.MINI_TARGET:
        shared["draft"] = common.MINI_DRAFT
    given = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p,
             "max_tokens": max_tokens, "stop": tuple(stop) if stop else None,
             "ignore_eos": ignore_eos}  # fmt: skip
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    sampling_params(**chosen)  # refuses what no engine would take
    if chat not in ("auto", "template", "plain"):
        raise ConfigError(f"--chat must be auto, template or plain, not {chat!r}")
    options = BenchOptions(
        out=out,
        workload=workloads.load(workload, format, prompts, seed, strict),
        contestants=tuple(
            parse_contestants(
                contestants or DEFAULT, {k: str(v) for k, v in shared.items() if v is not None}
            )
        ),
        loads=tuple(parse_load(text) for text in load or ["closed:1"]),
        sampling=Sampling(seed=seed, **chosen),
        given=frozenset(chosen),
        repeats=repeats,
        seed=seed,
        warmup=warmup,
        timeout=timeout,
        chat=chat,  # type: ignore[arg-type]
        one_at_a_time=one_at_a_time,
        texts=texts,
    )
    _warn(options)
    console = stderr if json_ else common.stdout
    try:
        with _progress(stderr) as progress:
            summary = run_bench(options, progress)
    except KeyboardInterrupt:
        summary = read_summary(out)
        show(summary, console)
        stderr.print(f"interrupted; the same command goes on from here, {out} has what there is")
        raise typer.Exit(130) from None
    show(summary, console)
    console.print(f"everything is in {out}; paceline report {out} makes a page of it",
                  soft_wrap=True, markup=False)  # fmt: skip
    if json_:
        write_json(plain(summary))
    if not summary.complete:
        raise typer.Exit(1)


def _warn(options: BenchOptions) -> None:
    """Say what the figures will lack, before they are taken."""
    for line in options.workload.skipped:
        stderr.print(f"skipped: {line}", markup=False, soft_wrap=True)
    addresses = [c.options["url"] for c in options.contestants if c.engine == "url"]
    for address in dict.fromkeys(a for a in addresses if addresses.count(a) > 1):
        stderr.print(
            f"note: several contestants ask {address} for the same prompts: unless its prefix "
            "cache is off, the second finds them read",
            markup=False, soft_wrap=True,
        )  # fmt: skip
    plains = {c.family for c in options.contestants if c.plain}
    for contestant in options.contestants:
        if contestant.family not in plains:
            stderr.print(
                f"note: no plain decoding of {contestant.name}'s engine among the contestants, so "
                "no speed-up of it",
                markup=False, soft_wrap=True,
            )  # fmt: skip


@contextmanager
def _progress(console: Console) -> Iterator[Report]:
    """A bar on a terminal, elsewhere a line now and then."""
    if not console.is_terminal:
        last = -_LINE_SECONDS

        def line(what: str, done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last >= _LINE_SECONDS:
                last = time.monotonic()
                console.print(f"{done} of {total} texts; {what}", markup=False, soft_wrap=True)

        yield line
        return
    columns = (
        TextColumn("[dim]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    # Drawn when a text is done: a thread that draws would disturb what is measured.
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as bar:
        task = bar.add_task("")

        def step(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total, refresh=True)

        yield step
