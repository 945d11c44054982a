"""The command `paceline`: one file a command, nothing here but how they hang together.

A user's mistake is one line on standard error and exit status 2; Ctrl-C is exit status 130. What
a command reports goes to standard output, what it is busy with to standard error.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from paceline import PacelineError, __version__
from paceline.cli import audit, bench, demo, generate, info, pair, plan, report, serve
from paceline.cli.common import fail, stderr

# click's, which typer keeps to itself: an unknown option or command, a value out of range.
_UsageError: Any = typer.BadParameter.__mro__[1]


@contextmanager
def _one_line() -> Iterator[None]:
    """Where the command line itself is wrong, say it in a line instead of a box."""
    try:
        yield
    except _UsageError as error:
        message = error.format_message().strip().rstrip(".")
        if type(error).__name__ == "NoArgsIsHelpError" or not message:
            raise
        command = error.ctx.command_path if error.ctx else "paceline"
        fail(f"{message[0].lower()}{message[1:]}; {command} --help shows what there is", 2)


class _Group(TyperGroup):
    """Turns what a command raises into a line and an exit status."""

    def make_context(self, *args: Any, **extra: Any) -> Any:
        with _one_line():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:  # click's context, which typer does not export
        try:
            with _one_line():
                return super().invoke(ctx)
        except PacelineError as error:
            fail(str(error), error.exit_status)
        except KeyboardInterrupt:
            stderr.print("interrupted")
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # The reader of our output has gone (`| head`); Python would complain once more when
            # it flushes at exit.
            sys.stdout = None
            raise typer.Exit(141) from None


app = typer.Typer(
    cls=_Group,
    name="paceline",
    help="Lossless speculative decoding: the target's own text, sooner.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"paceline {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version and stop."
    ),
) -> None:
    pass


app.command()(demo.demo)
app.command()(generate.generate)
app.command()(serve.serve)
app.command()(audit.audit)
app.command()(bench.bench)
app.command()(report.report)
app.command()(plan.plan)
app.add_typer(pair.app, name="pair")
app.command()(info.info)


def main() -> None:
    """Run the command line."""
    # A terminal that cannot show a character shows a question mark, not a traceback.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    app()
