"""`paceline report`: a page of a bench run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paceline import ConfigError
from paceline.cli.common import stdout
from paceline.lab.bench_figures import summarize
from paceline.lab.bench_result import write_summary


def report(
    run: Annotated[Path, typer.Argument(help="The folder of a bench run.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The page.", show_default="report.html in the folder"),
    ] = None,
    title: Annotated[str | None, typer.Option("--title", help="Its heading.")] = None,
) -> None:
    """Write one HTML file with all figures of a bench run: for reading, sending and printing.

    It needs no network and no other file. A run that is not finished has a page of what there is.
    """
    from paceline.lab.report import write_report

    summary = summarize(run)
    write_summary(run, summary)
    file = out or run / "report.html"
    try:
        write_report(summary, file, title or "Does speculative decoding pay?")
    except OSError as error:
        raise ConfigError(f"--out {file}: cannot be written ({error.strerror})") from None
    stdout.print(f"{file}", soft_wrap=True, markup=False)
