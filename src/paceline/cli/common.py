"""What the commands share: consoles, the options that open an engine, how one is opened."""

from __future__ import annotations

import json
import logging
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from paceline import ConfigError, Engine, EngineConfig, files
from paceline.config import load_toml, read_toml

# Piped output has no screen to fit, so its tables get the width they need.
_PIPED_WIDTH = 120
stdout = Console(highlight=False)
stderr = Console(stderr=True, highlight=False)
for _console in (stdout, stderr):
    if not _console.is_terminal:
        _console.width = _PIPED_WIDTH

MINI_TARGET, MINI_DRAFT = "mini-target", "mini-draft"

Target = Annotated[
    str | None,
    typer.Option("--target", "-t", help="Checkpoint folder, bundled model or hub id.",
                 rich_help_panel="Models", show_default=MINI_TARGET),
]  # fmt: skip
Drafter = Annotated[
    str | None,
    typer.Option("--drafter", "-d", help="none, model, ngram, predicted …, or "
                 "package.module.Class; several as in ngram+model.", rich_help_panel="Models"),
]  # fmt: skip
Draft = Annotated[
    str | None,
    typer.Option("--draft", help="The draft model of --drafter model; mini-draft for mini-target.",
                 rich_help_panel="Models"),
]  # fmt: skip
K = Annotated[
    int | None,
    typer.Option("--k", "-k", help="Draft tokens a round; 0 is plain decoding.",
                 rich_help_panel="Models", show_default="5"),
]  # fmt: skip
Rule = Annotated[
    str | None,
    typer.Option("--rule", help="match (the same text at the same seed), reject or block.",
                 rich_help_panel="Models", show_default="match"),
]  # fmt: skip
Dtype = Annotated[
    str | None,
    typer.Option("--dtype", help="bfloat16, float32 or float64.", rich_help_panel="Models",
                 show_default="bfloat16"),
]  # fmt: skip
Device = Annotated[
    str | None,
    typer.Option("--device", help="auto (a GPU where there is one), cpu or cuda.",
                 rich_help_panel="Models", show_default="auto"),
]  # fmt: skip
Threads = Annotated[
    int | None,
    typer.Option("--threads", help="CPU threads.", rich_help_panel="Models",
                 show_default="measured at start"),
]  # fmt: skip
MaxLength = Annotated[
    int | None,
    typer.Option("--max-length", help="Positions a text may have, prompt included.",
                 rich_help_panel="Models", show_default="the model's own"),
]  # fmt: skip
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="TOML file with engine options; options given here win.",
                 rich_help_panel="Models"),
]  # fmt: skip
Json = Annotated[
    bool,
    typer.Option("--json", help="One JSON object as the last line of standard output."),
]


def fail(message: str, status: int = 2) -> NoReturn:
    """Print `error: message` on standard error and end with `status`."""
    stderr.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
    raise typer.Exit(status)


def engine_options(
    config: Path | None, *, serving: bool = False, **given: object
) -> dict[str, Any]:
    """Return the options for `Engine`: the file's, over them those given; None is not given.

    Without file and target the bundled pair is meant. Where nobody names a drafter, a draft model
    drafts, and in a server (`serving`) before it the text that a request predicts, which costs
    nothing where none does. k is taken as it is unless many are served: a command that writes one
    text gains nothing from measuring rounds first.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    if config is None:
        chosen.setdefault("target", MINI_TARGET)
        if chosen["target"] == MINI_TARGET and "draft" not in chosen:
            # Harmless for drafters without a draft model.
            chosen["draft"] = MINI_DRAFT
    named = chosen if config is None else read_toml(config) | chosen
    if "drafter" not in named:
        with_draft = "draft" in named
        chosen["drafter"] = "model" if with_draft else "none"
        if serving:
            chosen["drafter"] = "predicted+model" if with_draft else "predicted+ngram"
    if config is not None:
        chosen = asdict(load_toml(config, **chosen))
    return chosen if serving else chosen | {"adaptive": bool(chosen.get("adaptive"))}


def settled(device: str | None) -> str:
    """The device that `--device` means, for commands that open several engines or tell of it
    before they do. Raises ConfigError."""
    return EngineConfig.make(target=MINI_TARGET, device=device or "auto").device


@contextmanager
def open_engine(options: dict[str, Any], shown: bool = True) -> Iterator[Engine]:
    """Open an engine, showing on a terminal how far it is, if `shown`; close it at the end."""
    with _opening(str(options["target"]), shown) as progress:
        engine = Engine(progress=progress, **options)
    with engine:
        yield engine


@contextmanager
def _opening(name: str, shown: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Show the steps of an opening on standard error, if `shown` and on a terminal only."""
    columns = (TextColumn("[dim]{task.description}"), BarColumn(), TimeElapsedColumn())
    # Drawn at each step only: a thread that draws would disturb what is being measured.
    with Progress(
        *columns, console=stderr, auto_refresh=False, transient=True,
        disable=not (shown and stderr.is_terminal),
    ) as bar:  # fmt: skip
        task = bar.add_task(f"opening {name}", total=None)

        def step(what: str, done: int, count: int) -> None:
            text = f"opening {name}: {what}"
            bar.update(task, description=text, completed=done, total=count or None, refresh=True)

        yield step


@contextmanager
def telling(wanted: bool) -> Iterator[None]:
    """Print what the package logs on standard error while the block runs, if `wanted`."""
    if not wanted:
        yield
        return

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            stderr.print(record.getMessage(), style="dim", markup=False, soft_wrap=True)

    log, handler = logging.getLogger("paceline"), Told()
    before = log.level
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


@contextmanager
def busy(text: str) -> Iterator[None]:
    """Show `text` on standard error while the block runs, on a terminal only."""
    if not stderr.is_terminal:
        yield
        return
    # Nothing that moves: a thread drawing it would disturb what is being measured.
    with Live(Text(f"{text} …", "dim"), console=stderr, auto_refresh=False, transient=True):
        yield


def read_text(argument: str | None, file: Path | None, what: str) -> str:
    """Return the text given as an argument, in a file or on standard input, whichever it is."""
    if argument is not None and file is not None:
        raise ConfigError(f"{what}: give the text or --file, not both")
    if argument is not None and argument != "-":
        return argument
    if file is not None:
        return files.read_text(file)
    if argument is None and sys.stdin.isatty():
        raise ConfigError(f"no {what}; give it as an argument, with --file or on standard input")
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError:
        raise ConfigError("standard input: not UTF-8 text") from None


def write_json(value: dict[str, Any]) -> None:
    """Print one object on one line of standard output."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # run from its source, without being installed
        return "source"


def versions() -> dict[str, str]:
    """Return what a figure depends on: Python and the packages that compute."""
    names = ("paceline", "torch", "transformers", "tokenizers")
    return {"python": platform.python_version(), **{name: _version(name) for name in names}}


def ratio(value: float | None, digits: int = 3) -> float | None:
    """Round for JSON; None stays None."""
    return None if value is None else round(value, digits)
