"""`paceline pair make`: writes a calibrated pair of checkpoints and says what it promises.

Knows how to show progress and figures, and nothing of how they come about.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from paceline.cli import common
from paceline.lab.pair import PairOptions, PairReport, make_pair
from paceline.lab.pair import Progress as Report
from paceline.lab.pair_law import geometric
from paceline.lab.pair_shapes import SHAPES

app = typer.Typer(
    help="Calibrated pairs: checkpoints of real shapes with a known acceptance.",
    no_args_is_help=True,
)

_SHAPE_HELP = f"{', '.join(SHAPES)}, or a path to a config.json."


@app.callback()
def _pair() -> None:
    """Calibrated pairs: checkpoints of real shapes with a known acceptance."""


@app.command()
def make(
    target_shape: Annotated[str, typer.Option("--target-shape", help=_SHAPE_HELP)],
    draft_shape: Annotated[str, typer.Option("--draft-shape", help="As --target-shape.")],
    acceptance: Annotated[float, typer.Option("--acceptance", "-a", help="Above 0, at most 1.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A folder, new or empty.")],
    seed: Annotated[int, typer.Option("--seed", help="Draws the law and the weights.")] = 0,
    device: Annotated[str, typer.Option("--device", help="cpu, or cuda to be faster.")] = "cpu",
    json_: common.Json = False,
) -> None:
    """Write OUT/target and OUT/draft: made-up weights, real cost, the acceptance you ask for.

    For measuring: transformers, vLLM, llama.cpp and paceline read the same files, nothing is
    downloaded, and the text means nothing. Each folder's README.md says what is promised.
    """
    options = PairOptions(target_shape, draft_shape, acceptance, out, seed, device)
    with _progress() as progress:
        report = make_pair(options, progress)
    if json_:
        common.write_json(_plain(report))
    else:
        show(report)


@contextmanager
def _progress() -> Iterator[Report]:
    """Show bytes written on standard error, on a terminal only."""
    console = common.stderr
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(),
               TransferSpeedColumn())  # fmt: skip
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("choosing the law", total=None)

        def step(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield step


def _plain(report: PairReport) -> dict[str, Any]:
    return {
        "target": str(report.target),
        "draft": str(report.draft),
        "target_bytes": report.target_bytes,
        "draft_bytes": report.draft_bytes,
        "seconds": round(report.seconds, 2),
        **report.stated,
        "versions": common.versions(),
    }


def show(report: PairReport) -> None:
    """Print where the pair is and what it promises."""
    stated, console = report.stated, common.stdout
    greedy, warm = stated["greedy"], stated["temperature_1"]
    for folder, size in ((report.target, report.target_bytes), (report.draft, report.draft_bytes)):
        console.print(f"{folder}  {size / 1e9:.2f} GB", markup=False, soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("", "acceptance", *(f"K = {k}" for k in greedy["tokens_per_round"])):
        table.add_column(column, justify="right" if column else "left")
    asked = stated["acceptance_asked"]
    for name, rate, rounds in (
        ("asked", asked, {k: geometric(asked, int(k)) for k in greedy["tokens_per_round"]}),
        ("greedy", greedy["acceptance"], greedy["tokens_per_round"]),
        ("temperature 1", warm["acceptance_reject"], warm["tokens_per_round"]),
    ):
        table.add_row(name, f"{rate:.4f}", *(f"{value:.3f}" for value in rounds.values()))
    console.print(f"tokens per round; the greedy text repeats after {stated['classes']} tokens")
    console.print(table)
    console.print(f"{report.seconds:.1f} s")
