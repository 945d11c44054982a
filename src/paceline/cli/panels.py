"""The demonstration's two panels: text as it is written, accepted draft tokens in colour.

Drawn between rounds and never during one: there is no refresh thread, and the clocks shown count
only the engine's own time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from paceline import Event

_COLOURS = {"target": "", "model": "green", "ngram": "cyan", "predicted": "magenta"}
_OTHER = "yellow"
_FRAME_SECONDS = 0.05


@dataclass(slots=True)
class Writing:
    """One text in the making. seconds: what the engine took, drawing not included."""

    title: str
    seconds: float = 0.0
    token_ids: list[int] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    text: str = ""

    def read(self, events: Iterator[Event]) -> Iterator[None]:
        """Take events one by one, on the clock; yields after each, off the clock."""
        while True:
            began = time.perf_counter()
            event = next(events, None)
            self.seconds += time.perf_counter() - began
            if event is None:
                return
            self.token_ids += event.token_ids
            self.sources += event.sources
            self.text += event.text
            yield


def coloured(writing: Writing, decode: Callable[[Sequence[int]], str]) -> Text:
    """Return the text with each token in its drafter's colour.

    A character that several tokens make up gets the colour of the last.
    """
    shown = Text()
    done, start = 0, 0
    for i, source in enumerate(writing.sources):
        last = i + 1 == len(writing.sources)
        if not last and writing.sources[i + 1] == source:
            continue  # one piece a run of tokens
        text = decode(writing.token_ids[start : i + 1])
        if text.endswith("\ufffd") and not last:
            continue
        start = i + 1
        # A stop string is decoded here but is no part of the text.
        piece = text[: max(0, len(writing.text) - done)]
        done += len(piece)
        shown.append(piece, _COLOURS.get(source, _OTHER))
    return shown


class Panels:
    """Two panels side by side on a terminal; silent anywhere else."""

    def __init__(self, console: Console, decode: Callable[[Sequence[int]], str]) -> None:
        self._console, self._decode = console, decode
        self._live: Live | None = None
        self._next_frame = 0.0
        self._prompt = ""
        self._writings: list[Writing] = []

    @contextmanager
    def show(self, prompt: str, writings: list[Writing]) -> Iterator[None]:
        """Draw these texts until the block ends; their last state stays on the screen."""
        self._prompt, self._writings = prompt, writings
        if not self._console.is_terminal:
            yield
            return
        with Live(console=self._console, auto_refresh=False) as self._live:
            yield
            self._draw()
        self._live = None

    def update(self) -> None:
        """Draw a frame, if the last one is old enough."""
        if self._live is not None and time.perf_counter() >= self._next_frame:
            self._draw()
            self._next_frame = time.perf_counter() + _FRAME_SECONDS

    def _draw(self) -> None:
        assert self._live is not None
        self._live.update(render(self._console, self._prompt, self._writings, self._decode))
        self._live.refresh()


def render(
    console: Console,
    prompt: str,
    writings: list[Writing],
    decode: Callable[[Sequence[int]], str],
) -> Columns:
    """Return the panels; long texts show their end, so that they fit the screen."""
    width = max(24, (console.width - 2) // len(writings))
    room = max(6, console.height - 6)
    head = "\n".join(prompt.rstrip("\n").splitlines()[-4:])
    bodies = []
    for writing in writings:
        body = Text().append(head + "\n" if head else "", "dim")
        body.append_text(coloured(writing, decode))
        bodies.append(body.wrap(console, width - 4)[-room:])
    height = 2 + max(len(lines) for lines in bodies)
    panels = [
        Panel(
            Text("\n").join(lines),
            title=writing.title,
            subtitle=f"{len(writing.token_ids)} tokens, {writing.seconds:.2f} s",
            width=width,
            height=height,
        )
        for writing, lines in zip(writings, bodies, strict=True)
    ]
    return Columns(panels, padding=(0, 1), equal=True)
