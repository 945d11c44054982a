"""A bench summary as tables on a terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from paceline.lab.bench_result import Comparison, Figures, Interval, Summary

_PROBLEMS_SHOWN = 12
_WIDE = 400  # columns, where no screen bounds a table


def show(summary: Summary, console: Console) -> None:
    """Print figures, comparisons, problems and the verdict."""
    for load in dict.fromkeys(f.load.name for f in summary.figures):
        rows = [f for f in summary.figures if f.load.name == load]
        console.print(f"load {load}", style="bold")
        _print(_figures([f for f in rows if f.category is None]), console)
        if any(f.category is not None for f in rows):
            _print(_categories([f for f in rows if f.category is not None]), console)
    for comparison in summary.comparisons:
        _comparison(comparison, console)
    for problem in summary.problems[:_PROBLEMS_SHOWN]:
        console.print(f"[red]problem:[/] {escape(f'{problem.where}: {problem.what}')}",
                      soft_wrap=True)  # fmt: skip
    if len(summary.problems) > _PROBLEMS_SHOWN:
        console.print(f"{len(summary.problems) - _PROBLEMS_SHOWN} more problems in the summary")
    console.print(f"{summary.measured} of {summary.planned} texts measured")
    console.print(" ".join(summary.verdict), style="bold", soft_wrap=True, markup=False)


def _print(table: Table, console: Console) -> None:
    """A table as wide as it is where no screen bounds it."""
    wide = Console(file=console.file, width=_WIDE, highlight=False)
    (console if console.is_terminal else wide).print(table)


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", overflow="fold")
    return table


def _figures(rows: list[Figures]) -> Table:
    table = _table(
        "contestant", "tok/s", "speed-up", "writing", "TTFT ms\np50/95/99", "TPOT ms\np50/95/99",
        "tokens\na round", "accep-\ntance", "tokens\na text", "failed",
    )  # fmt: skip
    for f in rows:
        table.add_row(
            escape(f.contestant), number(f.tok_s, 1), number(f.speedup), number(f.writing_speedup),
            _percentiles(f, "ttft"), _percentiles(f, "tpot"), plain(f.tokens_per_round),
            plain(f.acceptance), plain(f.length, 0), str(f.failed or ""),
        )  # fmt: skip
    return table


def _categories(rows: list[Figures]) -> Table:
    """Speed-ups: a row a category, a column a contestant that has any."""
    sped = [f for f in rows if f.speedup is not None]
    names = list(dict.fromkeys(f.contestant for f in sped))
    table = _table("speed-up by category", *(escape(name) for name in names))
    for category in dict.fromkeys(f.category for f in sped):
        mine = {f.contestant: f for f in sped if f.category == category}
        cells = [number(mine[name].speedup) if name in mine else "" for name in names]
        table.add_row(escape(str(category)), *cells)
    return table


def _comparison(c: Comparison, console: Console) -> None:
    colour = "green" if c.same == c.texts else "red" if c.binding else "yellow"
    line = f"{c.contestant}: {c.same} of {c.texts} texts as {c.other}"
    if c.lengths is not None and abs(c.lengths - 1) > 0.005:
        line += f", {c.lengths:.2f} times as long"
    if c.unlike:
        line += f"; {c.unlike} prompts were not read as the same number of tokens"
    console.print(f"[{colour}]{escape(line)}[/]", soft_wrap=True)
    for p in c.partings[: 3 if c.binding else 0]:
        where = f"token {p.token}" if p.token is not None else f"character {p.character}"
        console.print(
            f"  {p.item}, turn {p.turn + 1}, parts at {where}: {p.text!r} and {p.other!r}",
            markup=False, soft_wrap=True,
        )  # fmt: skip


def number(value: Interval | None, digits: int = 2) -> str:
    """A value with its interval."""
    if value is None:
        return ""
    if value.low is None or value.high is None:
        return f"{value.value:.{digits}f}"
    return f"{value.value:.{digits}f} ({value.low:.{digits}f}–{value.high:.{digits}f})"


def plain(value: float | None, digits: int = 2) -> str:
    """A number, or nothing."""
    return "" if value is None else f"{value:.{digits}f}"


def _percentiles(f: Figures, name: str) -> str:
    found = getattr(f, name)
    if found is None:
        return ""
    digits = 0 if found.p50 >= 0.1 else 1
    return "/".join(f"{1e3 * value:.{digits}f}" for value in (found.p50, found.p95, found.p99))
